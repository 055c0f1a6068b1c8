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
import tempfile
from functools import cache
from pathlib import Path

from distill.errors import RunError
from distill.machine.files import scratch_folder

PREFIX = "distill-private-"


def settle() -> None:
    """Tell the libraries where to write. Call it before they are imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a video that cannot be decoded is a line of ours
    home = Path(os.path.expanduser("~"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    cached = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    earlier = {
        "MPLCONFIGDIR": (home / ".matplotlib", config / "matplotlib", cached / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": (private_folder().parent / f"torchinductor_{_user()}",),
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
    stack = contextlib.ExitStack()
    try:
        folder = stack.enter_context(scratch_folder(Path(tempfile.gettempdir()), PREFIX))
    except OSError as error:
        raise RunError(f"no folder for temporary files: {error.strerror or error}: set TMPDIR to one") from error

    def end(owner: int = os.getpid()) -> None:
        if os.getpid() == owner:  # a forked child inherits the handler, and the folder is still in use
            stack.close()

    atexit.register(end)
    return folder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container's user without a name
        return f"uid_{os.getuid()}"
