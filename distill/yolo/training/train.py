"""Trains a YOLO in ultralytics' loop: on labels, under a penalty, or towards its teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.device import in_bfloat16, loaders, pick_device
from distill.machine.progress import EpochCallback
from distill.results.records import Brief
from distill.training.learning import Penalty
from distill.training.schedule import Schedule
from distill.training.state import TrainingState
from distill.training.task import DistillationTask
from distill.yolo.data.dataset import DataSet
from distill.yolo.training.learner import Learner
from distill.yolo.training.loggers import Loggers
from distill.yolo.training.ultralytics_trainer import Job, run_loop
from distill.yolo.upstream import DetectionModel

SAME_NAME = ("epochs", "batch", "optimizer", "momentum", "weight_decay", "close_mosaic")  # here and in ultralytics


@dataclass(frozen=True, repr=False)
class Trained(Brief):
    """The result of `train`."""

    model: DetectionModel  # with the averaged weights of its best epoch; float32, eval, on the CPU
    # Per epoch `epoch` (from 1), `lr`, every loss by name, `map50_95` and `map50` (None if the epoch was not validated).
    # The same whenever a training is repeated.
    history: list[dict[str, Any]]
    # The epoch of the weights: the best on the validation images; the last without labels or with a penalty, which has
    # its effect at the end.
    best_epoch: int
    map50_95: float | None  # of those weights on the validation images; None without labels
    seconds: list[float]  # per epoch, duration of its steps, with loading images and without validation


def train(
    model: DetectionModel,
    data: DataSet,
    schedule: Schedule,
    *,
    folder: Path,
    console: Console,
    task: DistillationTask | None = None,
    penalty: Penalty | None = None,
    imgsz: int = 640,
    device: str = "",
    seed: int = 0,
    workers: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    val_batch: int = 16,
    on_epoch: EpochCallback | None = None,
    loggers: Loggers | None = None,
) -> Trained:
    """Train a network of any structure in ultralytics' loop.

    Args:
        model: the network; it is copied and not changed. With a task, its student.
        data: images and labels. Without labels there is no validation, and the last epoch is the result.
        schedule: length, learning rate, augmentation.
        folder: everything written goes here; `weights/last.pt` after each epoch.
        console: shows a bar for each epoch.
        task: trains towards a teacher; None trains on the labels alone.
        penalty: (network, progress 0 to 1) -> scalar added to the loss, which is a mean per image.
        imgsz: side of the square training images in pixels.
        device: cpu, 0, cuda:1; empty takes a GPU if there is one. Training is in bfloat16 if the GPU computes in it.
        seed: of shuffling and augmentation. On a CPU the same seed gives the same weights, even if the run was resumed;
            but with mosaic, which draws on the images seen last, only if it was not.
        workers: processes that load images; None chooses. ultralytics uses none on a CPU.
        patience: end after so many epochs without a better mAP; None never does.
        resume: go on after the last finished epoch in `folder`; begin if there is none.
        val_batch: images in a batch of validation, see `distill.yolo.evaluation.evaluate`.
        on_epoch: called after each epoch with its row of `Trained.history`.
        loggers: follow the training.

    Raises:
        DistillError: a missing device, a loss without effect, training that diverged, a folder of another run.
        RunError: the disk is full.
    """
    if task is not None and task.student is not model:
        raise ValueError("train(model, task=task) trains task.student: pass it as model")
    if task is None and not data.labelled:
        raise DistillError(f"{data.path}: no labels, and training without a teacher needs them")
    device = str(pick_device(device))
    weights = folder / "weights"
    state, state_dicts = (TrainingState.read(weights) if resume else None) or (TrainingState(), None)
    if not state.stopped:
        learner = Learner(model, task, penalty, schedule)
        settings = {
            "task": data.task.name,
            "model": "student",  # a name that is never opened: the module is handed over
            "exist_ok": True,
            "plots": False,
            "verbose": False,
            "data": str(data.path),
            "project": str(folder.absolute().parent),
            "name": folder.name,
            "imgsz": imgsz,
            "device": device,
            "seed": seed,
            "workers": loaders() if workers is None else workers,
            "patience": patience or 0,
            "amp": "bf16" if in_bfloat16(torch.device(device)) else False,
            **{name: getattr(schedule, name) for name in SAME_NAME},
            **schedule.augmentation,
            "nbs": schedule.batch,  # gradients are not accumulated
            "lr0": schedule.lr,
            "warmup_epochs": 0,  # the schedule warms up, step by step
        }
        run_loop(
            Job(learner, data, schedule, weights, state, state_dicts, console, val_batch, on_epoch, loggers), settings
        )
        parallel.broadcast()
        if not parallel.is_leader():
            state, _ = TrainingState.read(weights) or (state, None)
    result: Any = copy.deepcopy(model).cpu().float().eval()
    result.load_state_dict(state.best_weights)
    if data.names:
        result.names = dict(data.names)
    return Trained(result, state.history, state.best_epoch, state.best_score, state.seconds)
