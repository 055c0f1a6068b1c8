"""What other libraries write for themselves: settings, caches, usage statistics. It goes into one folder, with the process.

So nothing is left outside a run folder. ultralytics wants a folder for its settings, matplotlib one for its list of
fonts, torch one for what it compiles, and ONNX Runtime reports its use. Variables that the user has set are kept, and a
folder that a library has had before is used by it again.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from distill.errors import RunError
from distill.machine.files import LOCK, fcntl, is_abandoned, remove

PREFIX = "distill-private-"


def settle() -> None:
    """Tell the libraries where to write. Call it before they are imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    home = Path(os.path.expanduser("~"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    cached = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    earlier = {
        "MPLCONFIGDIR": (home / ".matplotlib", config / "matplotlib", cached / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": (Path(tempfile.gettempdir()) / f"torchinductor_{_user()}",),
        "YOLO_CONFIG_DIR": (),  # see `distill.yolo`: a run's settings are never those of the user
    }
    for variable, folders in earlier.items():
        if variable not in os.environ and not any(map(os.path.isdir, folders)):
            os.environ[variable] = str(private_folder() / variable)


@cache
def private_folder() -> Path:
    """A folder that is removed when the process ends; if it is killed, when the next one begins.

    Raises:
        RunError: there is no place for temporary files.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        for left in folder.parent.glob(f"{PREFIX}*"):
            if is_abandoned(left):
                with contextlib.suppress(OSError):
                    remove(left)
        # Locked before it gets the name by which others know that it is: they never see it without its lock.
        lock = (folder / "new").open("w", encoding="utf-8")
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / "new", folder / LOCK)
    except OSError as error:
        raise RunError(f"no folder for temporary files: {error.strerror or error}: set TMPDIR to one") from error

    def end(owner: int = os.getpid()) -> None:
        if os.getpid() == owner:  # a forked child inherits the handler, and the folder is still in use
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return folder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container's user without a name
        return f"uid_{os.getuid()}"
