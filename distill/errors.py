"""The one family of errors that users read: one line that says what is wrong, where, and how to fix it."""

from __future__ import annotations


class DistillError(Exception):
    """A mistake that the user can fix. The command line prints only its message and exits with `exit_status`."""

    exit_status = 2


class RunError(DistillError):
    """The input was right but the machine failed: a full disk, for example."""

    exit_status = 1


class Interrupted(DistillError):
    """The user stopped a run."""

    exit_status = 130  # what a shell reports for SIGINT


def first_line(error: BaseException) -> str:
    """The first line of another library's exception, or its name if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
