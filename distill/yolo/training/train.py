"""Trains a YOLO in ultralytics' own loop: from scratch, under a penalty, or towards its teacher."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import DetectionModel

from distill.errors import DistillError
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.device import in_bfloat16, pick_device
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.data.dataset import DataSet
from distill.yolo.training.learner import Penalty, make_learner
from distill.yolo.training.state import StateFiles, TrainingState
from distill.yolo.training.ultralytics_trainer import Job, run_loop


@dataclass(frozen=True)
class Trained:
    """What training gives back.

    Attributes:
        model: the network that was given, with the averaged weights of its best epoch; float32, eval, on the CPU.
        history: per epoch `epoch` (from 1), `lr`, every loss by name, `map50_95` and `map50` (None where the epoch
            was not validated).
        best_epoch: the epoch the weights are from: the best on the validation images; the last where there are no
            labels, or where a penalty was to have its effect.
        map50_95: of those weights on the validation images, or None without labels.
        seconds: that the steps of each epoch took, with loading images and without validation. Apart from the history,
            which is the same whenever a training is repeated.
    """

    model: DetectionModel
    history: list[dict[str, Any]]
    best_epoch: int
    map50_95: float | None
    seconds: list[float]


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
) -> Trained:
    """Train a network with ultralytics' trainer, whatever its structure.

    Args:
        model: the network; copied, so that what is given stays as it is. With a task, its student.
        data: images and labels. Without labels there is no validation, and the last epoch is the result.
        schedule: length, learning rate, augmentation.
        folder: everything written goes here; `weights/last.pt` after each epoch.
        console: shows a bar for each epoch.
        task: trains towards a teacher; without one the labels alone teach.
        penalty: (network, progress 0 to 1) -> scalar added to the loss, which is a mean per image.
        imgsz: side of the square training images in pixels.
        device: cpu, 0, cuda:1; empty takes a GPU where there is one. Where a GPU computes in bfloat16, so does
            training.
        seed: of shuffling and augmentation. On a CPU the same seed gives the same weights, also where a run was
            resumed; but with mosaic, whose images come from those seen just before, only where it was not.
        workers: processes that load images; chosen if None. ultralytics uses none on a CPU.
        patience: end after this many epochs without a better mAP.
        val_batch: images in a batch of validation: see `distill.yolo.evaluation.evaluate`.
        resume: go on after the last finished epoch that `folder` knows of; start anew if there is none.

    Raises:
        DistillError: a device that is not there, a loss that teaches nothing, training that diverged, a folder of
            another run.
        RunError: the disk is full.
    """
    if task is not None and task.student is not model:
        raise ValueError("train(model, task=task) trains task.student: pass it as model")
    if task is None and not data.labelled:
        raise DistillError(f"{data.path}: no labels, and training without a teacher needs them")
    device = str(pick_device(device))
    files = StateFiles(folder / "weights")
    progress, states = (files.read() if resume else None) or (TrainingState(), None)
    if not progress.stopped:
        learner = make_learner(model, task, penalty, schedule)
        settings = _settings(schedule, data, folder, imgsz, device, seed, workers, patience)
        run_loop(Job(learner, data, schedule, files, progress, states, console, val_batch), settings)
        parallel.agree()
        if not parallel.leads():
            progress, _ = files.read() or (progress, None)
    result: Any = copy.deepcopy(model).cpu().float().eval()
    result.load_state_dict(progress.best_weights)
    if data.names:
        result.names = dict(data.names)
    return Trained(result, progress.history, progress.best_epoch, progress.best_map, progress.seconds)


def _settings(
    schedule: Schedule,
    data: DataSet,
    folder: Path,
    imgsz: int,
    device: str,
    seed: int,
    workers: int | None,
    patience: int | None,
) -> dict[str, Any]:
    """ultralytics' arguments. What decides the course of training is in the schedule; the rest is its default."""
    return {
        "task": "detect",
        "model": "student",  # a name that is never opened: the module is handed over
        "data": str(data.path),
        "project": str(folder.absolute().parent),
        "name": folder.name,
        "exist_ok": True,
        "epochs": schedule.epochs,
        "batch": schedule.batch,
        "nbs": schedule.batch * schedule.accumulate,  # else gradients are accumulated to a nominal batch of 64
        "imgsz": imgsz,
        "device": device,
        "seed": seed,
        "workers": min(8, os.cpu_count() or 1) if workers is None else workers,
        "patience": patience or 0,
        "optimizer": schedule.optimizer,
        "lr0": schedule.lr,
        "momentum": schedule.momentum,
        "weight_decay": schedule.weight_decay,
        "warmup_epochs": 0,  # the schedule warms up, step by step
        **schedule.augmentation,
        "close_mosaic": schedule.close_mosaic,
        "amp": "bf16" if in_bfloat16(torch.device(device)) else False,
        "plots": False,
        "verbose": False,
    }
