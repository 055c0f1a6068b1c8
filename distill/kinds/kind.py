"""The seam between the stages of a run and a kind of network: everything in which one kind differs from another.

`distill.engine.kinds` chooses the kind by what `model` is. `distill.yolo.kind` and `distill.classifiers.kind` declare one each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import prune
from distill.kinds.opened import Exported, Images, Opened, Pairing, Taught, Trained
from distill.losses.spec import LossSpec
from distill.machine.console import Console
from distill.machine.progress import EpochCallback, ProgressCallback
from distill.recipe.schema import Shapes, Unlabelled
from distill.results.figures import Evaluation
from distill.results.quality import Pictures
from distill.results.steps import Native, TeacherForward
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.training.tuning import Trials

Seen = dict[str, Any]  # what a network sees on each val image, by its file
Write = Callable[[str, bytes], Any]  # (file in a folder, content)


class Runtime(Protocol):
    """A program that runs exported networks on the device that they are deployed on."""

    @property
    def title(self) -> str:
        """In tables and sentences."""

    @property
    def format(self) -> str:
        """Of the exports that it runs."""

    @property
    def open(self) -> Callable[[Path | bytes, int], Callable[[Tensor], list[Tensor]]]:
        """(exported file, threads) -> (images (B, 3, H, W) -> the outputs)."""


class Judge(Protocol):
    """Measures networks on the val images, each as the others."""

    def evaluate(self, network: nn.Module, seen: Seen | None = None) -> Evaluation:
        """How good a network is; without labels how far it agrees with the teacher. `seen` gets what it sees on each image."""

    def look(self, network: nn.Module, title: str) -> Seen:
        """What a network sees on each image; nothing is measured. `title`: of the bar."""


class Kind(Protocol):
    """A kind of networks. Everything that it is not asked is the same for all of them."""

    @property
    def default_size(self) -> int:
        """Image size in pixels for a checkpoint that does not say what it was trained at."""

    @property
    def default_losses(self) -> tuple[LossSpec, ...] | None:
        """In place of a recipe's losses, if those are the schema's own defaults; None leaves these."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """What no network of this kind has of what a loss may read, and why."""

    @property
    def shapes(self) -> tuple[str, ...]:
        """The classes of the generated demo set, in the order of their numbers."""

    @property
    def draws(self) -> bool:
        """Whether there are pictures of what networks see."""

    @property
    def adapter(self) -> prune.Adapter:
        """What `prune` has to know of such networks."""

    # A network

    def open(
        self, model: str | Path, *, trust: bool = False, code: Sequence[str | Path] = (), weights: str | None = None
    ) -> Opened:
        """Open what a recipe names.

        Args:
            model: a file, or a name.
            trust: unpickle the file as Python would.
            code: folders whose classes the file holds.
            weights: a file, if the model is a name.

        Raises:
            DistillError: it cannot be opened, or is none that can be pruned.
        """

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
        """A new network to train, of `len(names)` classes.

        `key` is of the recipe, for messages; `data` what it is for, if that says more of its outputs than the classes.
        """

    def save(
        self, model: nn.Module, path: Path, *, names: Mapping[int, str], imgsz: int, plan: dict[str, Any] | None = None
    ) -> None:
        """Write a network into a run folder, in the form that `open` reads."""

    def fused(self, model: nn.Module) -> nn.Module:
        """A copy for inference: eval mode, BatchNorm folded into convolutions if it can be."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """A copy as it is deployed, for its costs: `fused`, without what inference does not use."""

    def family(self, network: Opened) -> str:
        """What the network is, in a few words."""

    def title(self, network: Opened) -> str:
        """What messages call such networks."""

    def stride(self, model: nn.Module) -> int:
        """Both sides of the network's input are multiples of it, in pixels."""

    def native(self, network: Opened, folder: Path, imgsz: int) -> Native | None:
        """Write the student in the form of the project that it came from; None if that is the checkpoint itself."""

    # Its data

    def load_data(self, path: str | Path, model: Opened | None, progress: ProgressCallback | None) -> Images:
        """Open a data set for a network, trained or still to be trained."""

    def generate(self, folder: Path, options: Shapes, progress: ProgressCallback | None) -> Path:
        """Draw the demo set into a folder; what `load_data` opens."""

    def names_in(self, path: str | Path) -> Mapping[int, str] | None:
        """The classes of a data set by id; None without labels."""

    def fingerprint(self, data: Any) -> str:
        """Images and labels in a word, which is another one if any was added, removed or changed."""

    def calibration(self, network: nn.Module, data: Any, count: int, size: int, seed: int) -> Tensor:
        """Training images as the network sees them in validation, (count, 3, side, side); the same ones at every call."""

    def find_unlabelled(self, options: Unlabelled, data: Any, progress: ProgressCallback | None) -> Any:
        """The data set with the images that a recipe names beside it. `data`: None if it is still to be generated."""

    def decode_videos(self, data: Any, folder: Path, most: int, progress: ProgressCallback | None) -> Any:
        """The data set with frames of its videos, which are written into a folder."""

    # Cutting and teaching

    def sensitivity(self, model: nn.Module) -> Callable[[Any], Tensor]:
        """Raw outputs -> the scalar that `prune` back-propagates. It needs no labels."""

    def gives(self, model: nn.Module) -> frozenset[str]:
        """What a network has of what a loss may need."""

    def pair(self, student: Opened, teacher: Opened) -> Pairing:
        """How a student compares with a teacher that it was not cut from. Raises `DistillError`: it cannot."""

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
        """Student, teachers and losses of a training. `plan`: what the student was cut by; `size`: of images, in pixels."""

    def trial_batch(self, data: Any, network: nn.Module, *, count: int, size: int, known: int) -> dict[str, Any]:
        """A few training images as a network takes them, the first `known` with made-up labels. `data`: None gives noise."""

    def ready(self, student: nn.Module) -> None:
        """Give a student what its own loss on labels reads, for a trial without a trainer."""

    def neck(self, model: nn.Module, size: int) -> list[tuple[int, ...]]:
        """Shapes (B, C, H, W) of the features that enter the head, for an image of `size` pixels."""

    def neck_keep(self, model: nn.Module, plan: prune.PrunePlan) -> list[tuple[int, ...]]:
        """Of each of those the channels that a plan keeps."""

    # Training

    def check_options(self, teacher_runtime: str, loggers: Iterable[str], device: torch.device) -> None:
        """Refuse what a training of this kind cannot use here. Raises `DistillError`."""

    def schedule(self, schedule: Schedule) -> Schedule:
        """A schedule without what this kind does not do."""

    def trials(
        self, data: Any, schedule: Schedule, *, network: nn.Module, imgsz: int, device: torch.device, seed: int
    ) -> Trials:
        """What chooses the settings of a training."""

    def choose_forwards(
        self, task: DistillationTask, images: Tensor, wanted: str, steps: int
    ) -> dict[str, TeacherForward]:
        """Choose what each teacher runs in, and have the task run it so."""

    def use_forwards(self, task: DistillationTask, chosen: Mapping[str, TeacherForward], imgsz: int) -> None:
        """Have a task run its teachers in what was chosen for them before."""

    def train(
        self,
        model: Any,
        data: Any,
        schedule: Schedule,
        *,
        folder: Path,
        console: Console,
        imgsz: int,
        device: str,
        seed: int,
        workers: int | None,
        resume: bool,
        val_batch: int,
        task: DistillationTask | None = None,
        penalty: Callable[[nn.Module, float], Tensor] | None = None,
        patience: int | None = None,
        on_epoch: EpochCallback | None = None,
        loggers: tuple[Sequence[str], str, str] | None = None,
    ) -> Trained:
        """Train a network. `loggers`: their names, the project and the run that they show."""

    # Measuring and exporting

    def judge(
        self,
        teacher: Callable[[], nn.Module],
        data: Any,
        console: Console,
        *,
        imgsz: int,
        batch: int,
        device: torch.device,
    ) -> Judge:
        """Measures networks on the val images. `teacher` gives the network to agree with, if there are no labels."""

    def pictures(
        self,
        data: Any,
        panels: Mapping[str, Seen],
        write: Write,
        *,
        count: int,
        figures: tuple[Mapping[str, float], Mapping[str, float]],
        small: bool,
        warn: Callable[[str], None],
    ) -> Pictures:
        """Draw val images on which networks differ, if this kind `draws`.

        `figures` of the first and of the last panel's network, by class, say which class has lost most.
        """

    def swapped(
        self, student: nn.Module, teacher: nn.Module, data: Any, *, imgsz: int, batch: int, device: torch.device
    ) -> dict[str, float]:
        """What a student would reach with a part of the teacher's outputs in place of its own, by part."""

    def check_exports(self, formats: Iterable[str]) -> None:
        """Refuse an unknown format, or one whose packages are missing. Raises `DistillError`."""

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
        """Export a checkpoint and compare the result with it."""

    def input_side(self, model: nn.Module, imgsz: int) -> int:
        """Side in pixels of the input of an export for `imgsz`."""

    def runtimes(self, formats: Sequence[str]) -> Sequence[Runtime]:
        """The installed runtimes that run a format of `formats`."""
