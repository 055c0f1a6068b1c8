"""Everything about YOLO detectors. This file decides how ultralytics behaves; `upstream.py` is all that is used of it.

Importing the package sets, before ultralytics is imported:

- `YOLO_OFFLINE=true`, `YOLO_AUTOINSTALL=false`: no look-ups, downloads, usage statistics or pip installs.
- `YOLO_VERBOSE=false`: its logger shows errors only, and no progress bars. `Console` shows the progress of a run.
- `YOLO_CONFIG_DIR`: a folder that goes with the process, see `distill.machine.private`. ultralytics writes a settings file
  when it is first imported, and its settings switch on loggers (MLflow, ClearML, Comet, ...) that write beside the run
  folder; here they are off, and a recipe's `loggers` names those that follow a training.
- The number of threads: ultralytics sets `OMP_NUM_THREADS=1` unless torch was imported first.

Variables that the user has set are kept, and nothing is changed if the user's program has imported ultralytics before.
"""

from __future__ import annotations

import os
import sys

import torch  # noqa: F401  before ultralytics, so that torch chooses its own number of threads

from distill.machine import private

_LOGGERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")


def _import_ultralytics() -> None:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    ours = "YOLO_CONFIG_DIR" not in os.environ
    private.settle()
    threads = os.environ.get("OMP_NUM_THREADS")

    from ultralytics.utils import SETTINGS

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # child processes choose for themselves too
    if ours:
        SETTINGS.update({"sync": False, **{name: False for name in _LOGGERS if name in SETTINGS}})


if "ultralytics" not in sys.modules:
    _import_ultralytics()
