"""Errors that the machine causes, as one line: a full disk, too little memory, a missing system library."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from distill.errors import RunError

_DESKTOP = ("libGL", "libgthread", "libxcb")  # libraries that opencv-python asks for
_FULL_BYTES = 1 << 20  # a disk with less than this left explains any failure to write
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_GONE = {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN}  # a disk or a network drive
_NAMES = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_FAULTS = _NO_ROOM | _GONE | _NAMES | {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def write_fault(error: OSError, path: Path) -> RunError:
    """The error as one line for the user; `path` is what could not be written."""
    return machine_fault(error, path) or RunError(f"cannot write {path}: {error.strerror or error}")


def machine_fault(error: BaseException, path: Path | None = None) -> RunError | None:
    """The error as one line for the user if the machine is to blame, otherwise None.

    `path` is what was being written, or its folder; None if only the error itself can tell.
    """
    if isinstance(error, OSError) and error.errno in _FAULTS:
        verb, name = "write" if error.errno in _NO_ROOM else "use", path or error.filename
        return RunError((f"cannot {verb} {name}: " if name else "") + os.strerror(error.errno))
    if isinstance(error, ImportError) and any(name in str(error) for name in _DESKTOP):
        fix = "pip install --no-deps opencv-python-headless==VERSION, with the version of opencv-python"
        return RunError(f"OpenCV needs the libraries of a desktop ({error}); a server does without: {fix}")
    # torch's errors are told by name: importing torch takes seconds, and it may not be imported yet.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        return RunError("out of memory: a smaller batch=, distill.batch= or imgsz= takes less")
    if isinstance(error, (OSError, RuntimeError)) and path is not None:
        folder = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("."))
        # torch.save does not name the cause, only that its writer failed.
        if "inline_container" in str(error) or shutil.disk_usage(folder).free < _FULL_BYTES:
            return RunError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
    return None
