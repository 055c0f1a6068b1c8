"""What a run asks of the machine: files that are whole, a folder that is its own, and an error that says what is wrong."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TextIO

from distill.errors import DistillError, RunError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_DESKTOP = ("libGL", "libgthread", "libxcb")  # libraries that opencv-python asks for
_FULL_BYTES = 1 << 20  # less than this left on the disk explains any failure to write
# What a machine does to someone who did nothing wrong.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_FAULTS = _NO_ROOM | {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}


def machine_fault(error: BaseException, path: Path | None = None) -> RunError | None:
    """The error as one line for the user where the machine is to blame: a full disk, say, or too little memory.

    Args:
        error: any exception.
        path: what was being written, or where; without it only what the error itself tells.
    """
    if isinstance(error, OSError) and error.errno in _FAULTS:
        verb, name = "write" if error.errno in _NO_ROOM else "use", path or error.filename
        return RunError((f"cannot {verb} {name}: " if name else "") + os.strerror(error.errno))
    if isinstance(error, ImportError) and any(name in str(error) for name in _DESKTOP):
        mend = "pip install --no-deps opencv-python-headless==VERSION, with the version of opencv-python"
        return RunError(f"OpenCV needs the libraries of a desktop ({error}); a server does without: {mend}")
    # torch's, by name: to import torch takes seconds, and what fails here may not have.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        return RunError("out of memory: a smaller batch=, distill.batch= or imgsz= takes less")
    if isinstance(error, (OSError, RuntimeError)) and path is not None:
        folder = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("."))
        # torch.save says nothing of the cause, only that its writer failed.
        if "inline_container" in str(error) or shutil.disk_usage(folder).free < _FULL_BYTES:
            return RunError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
    return None


def take(folder: Path) -> TextIO | None:
    """Lock the folder. The system lets go of the lock when the process ends, however it ends."""
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


def sync(path: Path) -> None:
    """Have the bytes on the disk before the name says that they are; a folder is left to the system."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
