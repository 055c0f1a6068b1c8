"""What every stage of a run needs: the recipe, the folder, the console, the data, and the few things done with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import prune
from distill.demo import dataset as shapes
from distill.engine import preflight as inputs
from distill.engine import steps
from distill.engine.folder import RunFolder
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.device import pick_device
from distill.recipe.schema import SHAPES, Recipe
from distill.training import schedule
from distill.training.task import DistillationTask
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.agreement import CONFIDENCE, Reference
from distill.yolo.evaluation.evaluate import EvalSettings
from distill.yolo.export import check_exports
from distill.yolo.families import outputs
from distill.yolo.training.train import Trained, train

# The networks of a run folder.
TEACHER, SPARSE, PRUNED, REPAIRED, TRAINED, AVERAGED, STUDENT = (
    f"{name}.pt" for name in ("teacher", "sparse", "pruned", "repaired", "trained", "averaged", "student")
)
TOGETHER = ("teacher", "sparsify", "distill")  # stages that several processes share; the leader does the others
NO_LABELS = {"map50_95": None, "map50": None, "per_class": None}


class Session:
    """One run. Making it opens and checks everything that was given; nothing is written before that is in order.

    Raises:
        DistillError: what is wrong with the recipe's model, data, losses, exports or device.
        PruneError: a budget that cannot be met.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, console: Console) -> None:
        self.recipe, self.folder, self.console = recipe, folder, console
        self.device = pick_device(recipe.device)
        check_exports(recipe.export)
        batches = {"batch": recipe.batch, "distill.batch": recipe.distill.batch}
        if recipe.teacher.train:
            batches["teacher.train.batch"] = recipe.teacher.train.batch
        parallel.check_divisible(batches)
        self.given = inputs.open_teacher(recipe) if recipe.model else None
        self.losses = inputs.fitting_losses(recipe, self.given, console)
        inputs.check_network(recipe, self.given)
        self.data = self._open_data()
        folder.open()
        if self.given is not None:
            inputs.warn_of_size(recipe, self.given, console)
        for warning in self.data.warnings:
            console.warn(warning)
        self.warnings = tuple(console.warnings)  # of what was given; a stage keeps its own

    def _open_data(self) -> DataSet:
        recipe, path = self.recipe, Path(self.recipe.data)
        if recipe.data == SHAPES:
            self.folder.open()
            path = self.folder.path / "data" / "data.yaml"
            if parallel.is_leader():
                shapes.generate(path.parent, **asdict(recipe.shapes), progress=self.console.track)
            parallel.broadcast()
        data = datasets.load(path, self.given.names if self.given else None, progress=self.console.track)
        inputs.check_labels(recipe, data, self.losses)
        return data

    def stage(self, name: str, work: Callable[..., Mapping[str, Any]], *given: Any) -> dict[str, Any]:
        """Do `work(session, *given)` once and keep what it returns. A resumed run takes what it left."""
        if self.folder.done(name) is not None:
            self.console.line(f"{name}: done before")
        elif parallel.is_leader():
            self.console.header(name)
            start, warned = time.monotonic(), len(self.console.warnings)
            payload = dict(work(self, *given))
            warnings = self.console.warnings[warned:]
            self.folder.finish(name, {**payload, "seconds": time.monotonic() - start, "warnings": warnings})
        elif name in TOGETHER:
            work(self, *given)
        parallel.broadcast()
        if not parallel.is_leader():
            self.folder.refresh()
        return self.done(name)

    def done(self, name: str) -> dict[str, Any]:
        """What a stage left; empty where it was not part of this run."""
        return self.folder.done(name) or {}

    def load(self, name: str) -> Detector:
        """A network of the run folder."""
        return checkpoint.load(self.folder.path / name)

    def save(self, detector: Detector, name: str, plan: prune.PrunePlan | None = None) -> None:
        """Write a network into the run folder, as stock ultralytics reads it."""
        path, kept = self.folder.path / name, plan.to_dict() if plan else None
        if parallel.is_leader():
            checkpoint.save(detector.model, path, names=detector.names, imgsz=self.recipe.imgsz, plan=kept)

    def images(self, network: Detector, count: int) -> Tensor:
        """Training images as `network` sees them in validation: see `steps.calibration_images`."""
        return steps.calibration_images(self.recipe, network, self.data, count)

    def evaluate(self, name: str) -> dict[str, Any]:
        """mAP of a network of the run folder; where there are no labels that is None, and agreement with the teacher there."""
        if self.data.labelled:
            return asdict(steps.evaluate_detector(self.load(name), self.data, self.eval_settings, self.console))
        found = steps.evaluate_agreement(self.load(name), self.reference, self.console)
        return {**NO_LABELS, **asdict(found), "teacher_boxes": self.reference.boxes, "confidence": CONFIDENCE}

    @cached_property
    def reference(self) -> Reference:
        """What the teacher sees on the held-back images."""
        return steps.predict_reference(self.load(TEACHER), self.data, self.eval_settings, self.console)

    @property
    def eval_settings(self) -> EvalSettings:
        """How every network of this run is measured."""
        return EvalSettings(self.recipe.imgsz, self.recipe.batch, self.device)

    def task(self, student: Detector, keep_inputs: Mapping[str, Sequence[int]] | None = None) -> DistillationTask:
        """What pulls `student` towards the teacher: the recipe's losses, and the labels where there are any.

        Args:
            student: a network of this run.
            keep_inputs: of the plan that cut it; None where it has all of the teacher's channels.
        """
        return outputs.distillation(
            student.model,
            checkpoint.fused(self.load(TEACHER).model),
            self.losses,
            keep_inputs=keep_inputs,
            labels=self.recipe.distill.labels if self.data.labelled else 0.0,
        )

    def train(self, model: Any, course: schedule.Schedule, name: str, **options: Any) -> Trained:
        """Train in ultralytics' loop; everything it writes goes into the run folder."""
        self.console.line(course.describe())
        return train(
            model,
            self.data,
            course,
            folder=self.folder.path / "training" / name,
            console=self.console,
            imgsz=self.recipe.imgsz,
            device=self.recipe.device,
            seed=self.recipe.seed,
            workers=self.recipe.workers,
            resume=self.folder.resumed,
            val_batch=self.recipe.batch,
            **options,
        )
