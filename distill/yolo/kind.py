"""Detectors of ultralytics and of the original YOLOv5, as the stages of a run see them: see `distill.kinds.kind`."""

# ruff: noqa: D102 - the docstrings are those of Kind
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import prune
from distill.demo import dataset as shapes
from distill.demo.drawing import CLASSES
from distill.kinds.kind import Kind, Seen, Write
from distill.kinds.opened import Exported, Opened, Pairing, Taught, Trained
from distill.losses.base import points_of
from distill.machine.console import Console
from distill.machine.progress import ProgressCallback
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import runtimes_for
from distill.machine.words import printable
from distill.recipe.schema import Shapes, Unlabelled
from distill.results.quality import Pictures
from distill.results.steps import Native, TeacherForward
from distill.training.points import image_of
from distill.training.schedule import Schedule
from distill.training.task import LABELLED, DistillationTask
from distill.training.tuning import Trials
from distill.yolo import export
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets
from distill.yolo.data import unlabelled
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import calibration
from distill.yolo.evaluation.difference import worst_class
from distill.yolo.evaluation.evaluate import PARTS, EvalSettings, evaluate, swap_with_teacher
from distill.yolo.evaluation.judge import Judge
from distill.yolo.evaluation.pictures import make_pictures
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.fit import fitted
from distill.yolo.families.match import UNLIKE, match
from distill.yolo.families.outputs import distillation, foreign_teacher, run, sensitivity_of, teacher_of
from distill.yolo.families.points import keep_at, neck_keep
from distill.yolo.families.table import family_of, gives_of, stride_of
from distill.yolo.training.forwards import check_runtime, choose_forwards, use_forwards
from distill.yolo.training.loggers import Loggers, check_loggers
from distill.yolo.training.train import train
from distill.yolo.training.tuning import YoloBench
from distill.yolo.upstream import get_cfg


class Yolo:
    """The kind of YOLO detectors."""

    default_size = 640  # of ultralytics too
    default_losses = None
    shapes = CLASSES
    lacks: Mapping[str, str] = {}
    draws = True
    adapter = YOLO_ADAPTER

    def open(
        self, model: str | Path, *, trust: bool = False, code: Sequence[str | Path] = (), weights: str | None = None
    ) -> Detector:
        return checkpoint.load(model, trust=trust, code=code)

    def build(
        self,
        model: str,
        names: Mapping[int, str],
        *,
        width: float | None = None,
        seed: int = 0,
        key: str = "teacher.train.model",
        data: str | Path | None = None,
    ) -> nn.Module:
        shape = None if data is None else datasets.keypoints_in(data)
        return build(model, names, width=width, seed=seed, key=key, kpt_shape=shape)

    def save(
        self, model: nn.Module, path: Path, *, names: Mapping[int, str], imgsz: int, plan: dict[str, Any] | None = None
    ) -> None:
        checkpoint.save(model, path, names=names, imgsz=imgsz, plan=plan)

    def fused(self, model: nn.Module) -> nn.Module:
        return checkpoint.fused(model)

    def deployed(self, model: nn.Module) -> nn.Module:
        return checkpoint.deployed(model)

    def family(self, network: Opened) -> str:
        title, file = family_of(network.model).title, getattr(network.model, "yaml", {}).get("yaml_file", "")
        return f"{printable(file, 60)}, of {title}" if file else title

    def title(self, network: Opened) -> str:
        return family_of(network.model).title

    def stride(self, model: nn.Module) -> int:
        return stride_of(model)

    def native(self, network: Opened, folder: Path, imgsz: int) -> Native | None:
        native = family_of(network.model).native
        if native is None:
            return None
        native.save(network.model, folder / native.file, names=network.names, imgsz=imgsz)
        return Native(native.file, native.about, native.commands)

    def load_data(self, path: str | Path, model: Opened | None, progress: ProgressCallback | None) -> DataSet:
        if model is None:
            return datasets.load(path, progress=progress)
        args: Any = getattr(model.model, "args", None) or {}
        task, head = family_of(model.model).task, cast(Any, model.model).model[-1]
        options: dict[str, Any] = {"single_cls": bool(args.get("single_cls")), "progress": progress}
        return datasets.load(path, model.names, task=task, keys=task.keys(head), **options)

    def generate(self, folder: Path, options: Shapes, progress: ProgressCallback | None) -> Path:
        return shapes.generate(folder, **asdict(options), progress=progress)

    def names_in(self, path: str | Path) -> Mapping[int, str] | None:
        return datasets.names_in(path)

    def fingerprint(self, data: DataSet) -> str:
        return datasets.fingerprint(data)

    def calibration(self, network: nn.Module, data: DataSet, count: int, size: int, seed: int) -> Tensor:
        # Validators pad even a square image by half a stride. A network that was repaired without that border sees
        # things in it.
        frame, by_area = stride_of(network) // 2, family_of(network).area_resize
        return calibration((*data.train, *data.unlabelled), count, size, seed=seed, by_area=by_area, frame=frame)

    def find_unlabelled(
        self, options: Unlabelled, data: DataSet | None, progress: ProgressCallback | None
    ) -> DataSet | None:
        found = unlabelled.find(options.images, data.config["path"] if data is not None else None, progress)
        return data if data is None else unlabelled.beside(data, found)

    def decode_videos(self, data: DataSet, folder: Path, most: int, progress: ProgressCallback | None) -> DataSet:
        return unlabelled.decoded(data, folder, most, progress)

    def sensitivity(self, model: nn.Module) -> Callable[[Any], Tensor]:
        return sensitivity_of(model)

    def gives(self, model: nn.Module) -> frozenset[str]:
        return gives_of(model)

    def pair(self, student: Opened, teacher: Opened) -> Pairing:
        network = fitted(teacher, student)
        common = match(student.model, network.model)
        untaught = "branch that works without NMS" if common.alone else ""
        return Pairing(network, common.gives, UNLIKE, common.by_cell, untaught)

    def task(
        self,
        student: nn.Module,
        teachers: Sequence[Taught],
        plan: prune.PrunePlan | None,
        *,
        size: int,
        labels: float,
        unlabelled: float,
        features: Sequence[str],
    ) -> DistillationTask:
        taught = []
        for each in teachers:
            folded = checkpoint.fused(each.network)
            if not each.original:
                taught.append(foreign_teacher(folded, each.losses, student, each.name))
                continue
            points = points_of(each.losses, features)
            taught.append(
                teacher_of(folded, each.losses, None if plan is None else keep_at(each.network, plan, points))
            )
        return distillation(student, taught, labels=labels, unlabelled=unlabelled, features=features)

    def trial_batch(
        self, data: DataSet | None, network: nn.Module, *, count: int, size: int, known: int
    ) -> dict[str, Any]:
        images = torch.rand(count, 3, size, size) if data is None else calibration(data.train, count, size)
        if not known:
            return {"img": images}
        known = min(known, len(images))
        boxes = {"cls": torch.zeros(known, 1), "bboxes": torch.full((known, 4), 0.5)}
        return {"img": images, "batch_idx": torch.arange(known).float(), **boxes, LABELLED: known}

    def ready(self, student: nn.Module) -> None:
        cast(Any, student).args = get_cfg()  # which its own loss on labels reads, if a loss asks for that

    def neck(self, model: nn.Module, size: int) -> list[tuple[int, ...]]:
        return [tuple(feature.shape) for feature in run(model, image_of(model, size)).neck]

    def neck_keep(self, model: nn.Module, plan: prune.PrunePlan) -> list[tuple[int, ...]]:
        return neck_keep(model, plan.keep_inputs)

    def check_options(self, teacher_runtime: str, loggers: Iterable[str], device: torch.device) -> None:
        check_loggers(loggers)
        check_runtime(teacher_runtime, device)

    def schedule(self, schedule: Schedule) -> Schedule:
        return schedule

    def trials(
        self, data: DataSet, schedule: Schedule, *, network: nn.Module, imgsz: int, device: torch.device, seed: int
    ) -> Trials:
        return Trials(YoloBench(data, imgsz), schedule, imgsz, device, seed)

    def choose_forwards(
        self, task: DistillationTask, images: Tensor, wanted: str, steps: int
    ) -> dict[str, TeacherForward]:
        return choose_forwards(task, images, wanted, steps)

    def use_forwards(self, task: DistillationTask, chosen: Mapping[str, TeacherForward], imgsz: int) -> None:
        use_forwards(task, chosen, imgsz)

    def train(
        self,
        model: Any,
        data: DataSet,
        schedule: Schedule,
        *,
        console: Console,
        loggers: tuple[Sequence[str], str, str] | None = None,
        **options: Any,
    ) -> Trained:
        follow = None if loggers is None else Loggers(*loggers, console.warn)
        return train(model, data, schedule, console=console, loggers=follow, **options)

    def judge(
        self,
        teacher: Callable[[], nn.Module],
        data: DataSet,
        console: Console,
        *,
        imgsz: int,
        batch: int,
        device: torch.device,
    ) -> Judge:
        return Judge(teacher, data, EvalSettings(imgsz, batch, device), console)

    def pictures(
        self,
        data: DataSet,
        panels: Mapping[str, Seen],
        write: Write,
        *,
        count: int,
        figures: tuple[Mapping[str, float], Mapping[str, float]],
        small: bool,
        warn: Callable[[str], None],
    ) -> Pictures:
        return make_pictures(data, panels, write, count=count, worst=worst_class(*figures), small=small, warn=warn)

    def swapped(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: DataSet,
        *,
        imgsz: int,
        batch: int,
        device: torch.device,
    ) -> dict[str, float]:
        settings = EvalSettings(imgsz, batch, device)
        swaps = {part: swap_with_teacher(teacher, part, device) for part in PARTS}
        return {part: evaluate(student, data, settings, swap=swap).score for part, swap in swaps.items()}

    def check_exports(self, formats: Iterable[str]) -> None:
        export.check_exports(formats)

    def export(
        self,
        path: Path,
        format: str,
        out_dir: Path,
        imgsz: int,
        *,
        trust: bool = False,
        code: Sequence[str | Path] = (),
    ) -> Exported:
        return export.export_checkpoint(path, format, out_dir, imgsz, trust=trust, code=code)

    def input_side(self, model: nn.Module, imgsz: int) -> int:
        return export.input_side(model, imgsz)

    def runtimes(self, formats: Sequence[str]) -> list[Runtime]:
        return runtimes_for(formats)


YOLO: Kind = Yolo()
