"""The one family of errors a user is meant to read: one line that says what, where and how to mend it."""

from __future__ import annotations


class DistillError(Exception):
    """A mistake the user can mend. The command line prints its message alone and exits with `exit_status`."""

    exit_status = 2


class RunError(DistillError):
    """The run was right and the machine was not: a full disk, say. Exit status 1."""

    exit_status = 1


def first_line(error: BaseException) -> str:
    """An exception of somebody else's as half a sentence: its first line, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
