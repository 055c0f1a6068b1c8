"""Files that appear whole or not at all, and a folder that one run has to itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from distill.errors import DistillError, RunError
from distill.machine.faults import machine_fault

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
UNFINISHED = ".unfinished-"  # begins the name of a file that is not complete yet


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Make a file or a folder under a temporary name beside `path`, then rename it: readers never see half of it.

    `write` makes it at the path that it is called with, which has the suffix of `path`. A missing folder around `path`
    is made, and what is at `path` is replaced.

    Raises:
        RunError: the disk is full or not writable. What was at `path` is still there, and nothing else.
    """
    draft = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        if draft.is_file():  # its bytes must be on the disk before the final name promises them
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir():  # a folder cannot be replaced in one step
            remove(path)
        os.replace(draft, path)
    except BaseException as error:
        fault = machine_fault(
            error, path
        )  # before the draft is removed: that frees the room whose lack explains the error
        remove(draft)
        if fault is None and isinstance(error, OSError):
            fault = RunError(f"cannot write {path}: {error.strerror or error}")
        if fault is None:
            raise
        raise fault from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `write_atomically` does."""
    write_atomically(path, lambda draft: draft.write_bytes(content))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; a missing one is no error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_folder(folder: Path) -> TextIO:
    """Lock a folder for this process, until the returned file is closed or the process ends.

    Raises:
        DistillError: another process has the lock.
    """
    lock = (folder / LOCK).open("a+", encoding="utf-8")
    if fcntl is not None:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise DistillError(
                f"{folder} is in use by another run (process {holder}): wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
