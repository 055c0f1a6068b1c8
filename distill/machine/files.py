"""Files that appear whole or not at all, and a folder that one run has to itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from distill.errors import DistillError
from distill.machine.faults import machine_fault, write_fault

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
        # Before the draft is removed: that frees the room whose lack explains the error.
        fault = write_fault(error, path) if isinstance(error, OSError) else machine_fault(error, path)
        with contextlib.suppress(OSError):  # what is wrong with the disk is in the fault
            remove(draft)
        if fault is None:
            raise
        raise fault from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `write_atomically` does."""
    write_atomically(path, lambda draft: draft.write_bytes(content))


def read_json(file: Path) -> Any:
    """The plain data in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ValueError("no file")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def has_content(path: Path) -> bool:
    """Whether there is a file or a folder that is not empty. After a power failure a file may have lost all it held."""
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def check_place(folder: Path) -> None:
    """Make sure that a folder can be made and written into, and leave no trace.

    Raises:
        RunError: it cannot.
    """
    try:
        above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        # Of a name of its own: runs side by side are begun by threads of one process.
        os.rmdir(tempfile.mkdtemp(prefix=f"{UNFINISHED}{os.getpid()}-", dir=above))
    except OSError as error:
        raise write_fault(error, folder) from error


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files of a folder by their names, each as `write_atomically` does."""
    for name, content in contents.items():
        write_bytes(folder / name, content)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder that is removed in the end; if the process is killed, by the next that makes one there.

    Args:
        parent: where it is made.
        prefix: begins its name.
    """
    for left in parent.glob(f"{prefix}*"):
        if _is_abandoned(left):
            with contextlib.suppress(OSError):
                remove(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # Locked before it has the name by which others know that it is: they never see it without its lock.
    with (folder / "new").open("w", encoding="utf-8") as lock:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / "new", folder / LOCK)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that had locked a folder of ours has ended. Unknown counts as no."""
    if fcntl is None:
        return False
    try:
        if folder.lstat().st_uid != os.getuid():
            return False
        with (folder / LOCK).open("r+", encoding="utf-8") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, without a lock, or gone
        return False
    return True


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
