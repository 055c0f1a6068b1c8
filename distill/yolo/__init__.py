"""The only package that imports ultralytics, and the only place that decides how ultralytics behaves.

Importing it sets, before ultralytics is imported, what it would otherwise do behind the user's back:

- `YOLO_OFFLINE=true`, `YOLO_AUTOINSTALL=false`: no look-ups, no downloads, no usage statistics, no pip installs.
- `YOLO_VERBOSE=false`: its logger says errors only and its progress bars stay off; a run has one voice, `Console`.
- `YOLO_CONFIG_DIR`: a throwaway folder. ultralytics writes a settings file the first time it is imported, and those
  settings switch on loggers (MLflow, ClearML, Comet, ...) that write beside the run folder; here they are off.
- The number of threads: ultralytics sets `OMP_NUM_THREADS=1` for torch unless torch was imported first.

A variable that the user has set wins, and nothing is touched where the user's own program imported ultralytics first.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile

import torch  # noqa: F401  before ultralytics, so that it keeps its own choice of threads

_LOGGERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")


def _import_ultralytics() -> None:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    private = "YOLO_CONFIG_DIR" not in os.environ
    if private:
        folder = os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="distill-ultralytics-")
        atexit.register(_remove, folder, os.getpid())
    threads = os.environ.get("OMP_NUM_THREADS")

    from ultralytics.utils import SETTINGS

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # child processes choose for themselves too
    if private:
        SETTINGS.update({"sync": False, **{name: False for name in _LOGGERS if name in SETTINGS}})


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the handler, and the folder is still in use
        shutil.rmtree(folder, ignore_errors=True)


if "ultralytics" not in sys.modules:
    _import_ultralytics()
