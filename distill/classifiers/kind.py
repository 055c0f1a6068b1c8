"""Classifiers of timm and torchvision, as the stages of a run see them: see `distill.kinds.kind`."""

# ruff: noqa: D102 - the docstrings are those of Kind
from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.classifiers import checkpoint, export, teaching, upstream
from distill.classifiers import data as datasets
from distill.classifiers.data import ImageSet
from distill.classifiers.judge import Judge
from distill.classifiers.network import GIVES, sensitivity
from distill.classifiers.training import Bench, Trained, train
from distill.classifiers.upstream import TIMM
from distill.classifiers.widths import LOADER
from distill.demo import crops
from distill.errors import DistillError
from distill.kinds.kind import Kind, Seen, Write
from distill.kinds.opened import Exported, Opened, Pairing, Taught
from distill.losses.spec import LossSpec
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.files import write_bytes
from distill.machine.progress import ProgressCallback
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import runtimes_for
from distill.recipe.schema import Shapes, Unlabelled
from distill.results.quality import Pictures
from distill.results.steps import Native, TeacherForward
from distill.training.schedule import Schedule
from distill.training.task import LABELLED, DistillationTask
from distill.training.tuning import Trials

ABOUT, LOAD = "student.json", "load_student.py"
_IN_PYTORCH = ("auto", "torch")  # words of `distill.teacher_runtime`


class Classifiers:
    """The kind of classifiers."""

    default_size = 224  # of timm too
    default_losses = (LossSpec("kl"), LossSpec("feature_pkd"))
    shapes = crops.NAMES
    lacks = teaching.LACKS
    draws = False
    adapter = prune.Adapter()

    def open(
        self, model: str | Path, *, trust: bool = False, code: Sequence[str | Path] = (), weights: str | None = None
    ) -> Opened:
        return checkpoint.load(model, weights)

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
        if width is not None:
            raise DistillError("teacher.train.width: timm's architectures have no width factor: name another one")
        return checkpoint.build(model, names, seed=seed, key=key)

    def save(
        self, model: nn.Module, path: Path, *, names: Mapping[int, str], imgsz: int, plan: dict[str, Any] | None = None
    ) -> None:
        checkpoint.save(model, path, classes=names, imgsz=imgsz, plan=plan)

    def fused(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).eval()

    def deployed(self, model: nn.Module) -> nn.Module:
        return self.fused(model)

    def family(self, network: Opened) -> str:
        made: Any = network.model.made_of
        return f"{made['arch']}, of {self.title(network)}"

    def title(self, network: Opened) -> str:
        made: Any = network.model.made_of
        return f"{made['library']} {upstream.VERSIONS[made['library']]}"

    def stride(self, model: nn.Module) -> int:
        return 1

    def native(self, network: Opened, folder: Path, imgsz: int) -> Native | None:
        about = checkpoint.about(network.model, network.names, imgsz)
        write_bytes(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        library = about["library"]
        create = "timm.create_model" if library == TIMM else "torchvision.models.get_model"
        write_bytes(folder / LOAD, LOADER.format(library=library, create=create).encode())
        text = f"loads student.pt, whose widths are in {ABOUT}, with {library} and torch alone"
        return Native(LOAD, text, ("python -i {file}  # then: model = load()",), (ABOUT,))

    def load_data(self, path: str | Path, model: Opened | None, progress: ProgressCallback | None) -> ImageSet:
        return datasets.load(path, None if model is None else model.names, progress=progress)

    def generate(self, folder: Path, options: Shapes, progress: ProgressCallback | None) -> Path:
        return crops.generate(folder, **asdict(options), progress=progress)

    def names_in(self, path: str | Path) -> Mapping[int, str] | None:
        return datasets.names_in(path)

    def fingerprint(self, data: ImageSet) -> str:
        return datasets.fingerprint(data)

    def calibration(self, network: nn.Module, data: ImageSet, count: int, size: int, seed: int) -> Tensor:
        return datasets.calibration(network, data, count, size, seed)

    def find_unlabelled(self, options: Unlabelled, data: ImageSet | None, progress: ProgressCallback | None) -> Any:
        raise DistillError("unlabelled: images without classes beside others are for detectors: leave it out")

    def decode_videos(self, data: ImageSet, folder: Path, most: int, progress: ProgressCallback | None) -> ImageSet:
        return data

    def sensitivity(self, model: nn.Module) -> Callable[[Any], Tensor]:
        return sensitivity

    def gives(self, model: nn.Module) -> frozenset[str]:
        return GIVES

    def pair(self, student: Opened, teacher: Opened) -> Pairing:
        return teaching.pair(student, teacher)

    def task(
        self, student: nn.Module, teachers: Sequence[Taught], plan: prune.PrunePlan | None, **options: Any
    ) -> DistillationTask:
        return teaching.make_task(student, teachers, plan, **options)

    def trial_batch(
        self, data: ImageSet | None, network: nn.Module, *, count: int, size: int, known: int
    ) -> dict[str, Any]:
        noise = torch.rand(count, 3, size, size)
        found = noise if data is None else datasets.calibration(network, data, count, size)
        if not known:
            return {"img": found}
        known = min(known, len(found))
        return {"img": found, "cls": torch.zeros(known, dtype=torch.long), LABELLED: known}

    def ready(self, student: nn.Module) -> None:
        """Nothing is missing."""

    def neck(self, model: nn.Module, size: int) -> list[tuple[int, ...]]:
        return teaching.neck(model, size)

    def neck_keep(self, model: nn.Module, plan: prune.PrunePlan) -> list[tuple[int, ...]]:
        return teaching.neck_keep(model, plan)

    def check_options(self, teacher_runtime: str, loggers: Iterable[str], device: torch.device) -> None:
        if teacher_runtime not in _IN_PYTORCH:
            raise DistillError(
                "distill.teacher_runtime: the teacher of a classifier runs in PyTorch: give auto or torch"
            )
        if names := ", ".join(loggers):
            raise DistillError(f"loggers: {names} follow ultralytics' trainer alone: leave loggers out")
        if parallel.world() > 1:
            raise DistillError("a classifier is trained in one process: start it without torchrun")

    def schedule(self, schedule: Schedule) -> Schedule:
        return replace(schedule, mosaic=None, close_mosaic=0)

    def trials(
        self, data: ImageSet, schedule: Schedule, *, network: nn.Module, imgsz: int, device: torch.device, seed: int
    ) -> Trials:
        return Trials(Bench(data, upstream.input_of(network, imgsz)), schedule, imgsz, device, seed)

    def choose_forwards(
        self, task: DistillationTask, images: Tensor, wanted: str, steps: int
    ) -> dict[str, TeacherForward]:
        return {teacher.name: TeacherForward() for teacher in task.teachers}

    def use_forwards(self, task: DistillationTask, chosen: Mapping[str, TeacherForward], imgsz: int) -> None:
        """They run as they are."""

    def train(
        self,
        model: Any,
        data: ImageSet,
        schedule: Schedule,
        *,
        console: Console,
        loggers: tuple[Sequence[str], str, str] | None = None,
        **options: Any,
    ) -> Trained:
        return train(model, data, schedule, console=console, **options)

    def judge(
        self,
        teacher: Callable[[], nn.Module],
        data: ImageSet,
        console: Console,
        *,
        imgsz: int,
        batch: int,
        device: torch.device,
    ) -> Judge:
        return Judge(teacher, data, console, imgsz=imgsz, batch=batch, device=device)

    def pictures(self, data: ImageSet, panels: Mapping[str, Seen], write: Write, **options: Any) -> Pictures:
        raise DistillError("pictures= draws boxes, and a classifier has none: leave it out")

    def swapped(self, student: nn.Module, teacher: nn.Module, data: ImageSet, **options: Any) -> dict[str, float]:
        return {}

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
        return export.export(path, format, out_dir, imgsz)

    def input_side(self, model: nn.Module, imgsz: int) -> int:
        return imgsz

    def runtimes(self, formats: Sequence[str]) -> list[Runtime]:
        return runtimes_for(formats)


CLASSIFIERS: Kind = Classifiers()
