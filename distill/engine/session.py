"""State shared by the stages of a run, and the few things that several of them do with it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import prune
from distill.engine.folder import PLAN, TRAINING, RunFolder
from distill.engine.kinds import kind_of
from distill.engine.planning import calibration_images
from distill.engine.preflight import preflight
from distill.engine.teachers import Teaching, make_task
from distill.errors import DistillError
from distill.kinds.kind import Judge, Seen
from distill.kinds.opened import Opened, Trained
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.progress import EpochCallback
from distill.recipe.load import to_yaml
from distill.recipe.schema import Recipe
from distill.results.figures import Evaluation
from distill.results.networks import PRUNED, REPAIRED, SPARSE, TEACHER, Network, foreign
from distill.training import schedule as schedules
from distill.training.mixture import Mixture
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask

METRICS = "metrics.csv"


class Session:
    """State shared by the stages of a run. The constructor validates all inputs and writes nothing until they pass.

    Args:
        recipe: what to do.
        folder: where everything goes.
        console: what the user watches.
        on_epoch: called after each epoch of a training.

    Raises:
        DistillError: an error in the recipe's model, data, losses, exports or device.
        PruneError: a budget that cannot be met.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, console: Console, on_epoch: EpochCallback | None = None
    ) -> None:
        self.recipe, self.folder, self.console, self.on_epoch = (
            recipe,
            folder,
            console,
            on_epoch,
        )  # the recipe that `_generate` reads
        checked = preflight(recipe, generate=self._generate, frames=self._frames, progress=console.track)
        assert checked.data is not None  # generated data are there too
        self.recipe = checked.recipe
        self.kind = kind_of(self.recipe)
        folder.resolve(to_yaml(self.recipe))
        self.device, self.teacher = checked.device, checked.teacher
        self.teachers, self.data = checked.teachers, checked.data
        self.warnings = checked.warnings  # those of stages are in their records
        self._seen: dict[str, Seen] = {}  # by network, of the evaluations that this process has made
        folder.open()
        checked.introduce(console, folder.path)
        checked.show(console)

    def _generate(self) -> Path:
        """Draw the demo set into the run folder."""
        self.folder.open()
        kind, place = kind_of(self.recipe), self.folder.path / "data"
        if parallel.is_leader():
            kind.generate(place, self.recipe.shapes, self.console.track)
        parallel.broadcast()
        return kind.generate(place, self.recipe.shapes, None)  # which is there

    def _frames(self) -> Path:
        """The folder that frames of videos are written into."""
        self.folder.open()
        return self.folder.path / "data" / "frames"

    @property
    def base(self) -> Network:
        """The network that is cut."""
        return SPARSE if self.recipe.sparsify is not None else TEACHER

    @property
    def start(self) -> Network:
        """The network that training starts from."""
        return REPAIRED if self.recipe.repair is not None else PRUNED

    @cached_property
    def plan(self) -> prune.PrunePlan:
        """What the cut has kept."""
        file = self.folder.path / PLAN
        try:
            return prune.PrunePlan.from_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, prune.PruneError) as error:
            raise DistillError(
                f"{file} is damaged ({error}): remove it, then resume, and the cut is made again"
            ) from None

    @property
    def opening(self) -> dict[str, Any]:
        """How checkpoints are opened: options of `Kind.open`."""
        return {"trust": self.recipe.trust, "code": self.recipe.code}

    def load(self, network: Network) -> Opened:
        """A network of the run folder."""
        try:
            return self.kind.open(self.folder.path / network.file, **self.opening)
        except DistillError as error:
            mend = "as it is a file of this run, remove it and resume: it is made again"
            raise DistillError(f"{error}; {mend}") from None

    def save(self, opened: Opened, network: Network, plan: prune.PrunePlan | None = None) -> None:
        """Write a network into the run folder, as stock code of its kind reads it.

        Args:
            opened: what is written.
            network: which network of the run it is.
            plan: that cut it, kept in the file as plain data.
        """
        if parallel.is_leader():
            self.folder.check()
            file = self.folder.path / network.file
            file.parent.mkdir(exist_ok=True)
            self.kind.save(
                opened.model,
                file,
                names=opened.names,
                imgsz=self.recipe.size,
                plan=plan.to_dict() if plan else None,
            )

    def images(self, network: Opened, count: int) -> Tensor:
        """Training images as `network` sees them in validation: see `calibration_images`."""
        return calibration_images(self.recipe, network, self.data, count)

    def evaluate(self, network: Network) -> Evaluation:
        """How good a network of the run folder is."""
        return self._judge.evaluate(self.load(network).model, self._seen.setdefault(network.name, {}))

    def boxes(self, network: Network) -> Seen:
        """What a network of the run folder sees on the val images; nothing is computed if this process has evaluated it."""
        if not self._seen.get(network.name):
            title = f"boxes of {network.title}"
            self._seen[network.name] = self._judge.look(self.load(network).model, title)
        return self._seen[network.name]

    @property
    def reference(self) -> Network:
        """The network that others are compared with: the original, or a teacher if that neither is cut nor teaches."""
        others = [teacher.name for teacher in self.teachers if teacher.network is not None and teacher.losses]
        own = self.recipe.prune is not None or len(others) < len(self.teachers) or not others
        return TEACHER if own else foreign(others[0])

    @cached_property
    def _judge(self) -> Judge:
        """The same for every network of this run."""
        settings: dict[str, Any] = {"imgsz": self.recipe.size, "batch": self.recipe.batch, "device": self.device}
        return self.kind.judge(self._reference, self.data, self.console, **settings)

    def _reference(self) -> Any:
        """The network of `reference`, whose copy in the run folder may still be to come."""
        if self.reference == TEACHER:
            return self.load(TEACHER).model
        return next(each.network.model for each in self.teachers if each.network is not None and each.losses)

    def task(self, student: Opened, plan: prune.PrunePlan | None = None) -> DistillationTask:
        """Teachers, student and losses; the labels take part if there are any. `plan`: what the student was cut by."""
        labels = self.recipe.distill.labels if self.data.labelled else 0.0
        return make_task(self.recipe, self.teachers, student.model, self._network_of, plan, labels)

    def _network_of(self, teaching: Teaching) -> nn.Module:
        """The network of a teacher, as it lies in the run folder."""
        return self.load(TEACHER if teaching.network is None else foreign(teaching.name)).model

    @property
    def _mixture(self) -> Mixture | None:
        """Images of both kinds, if there are any without labels beside labelled ones."""
        beside, options = self.data.unlabelled, self.recipe.unlabelled
        if options is None or not beside:
            return None
        taught = any(each.losses for each in self.teachers)
        return Mixture(len(self.data.train), len(beside), options.ratio if taught else 0.0)

    @property
    def epoch_images(self) -> int:
        """How many images an epoch of training shows, about."""
        batch, mixture = self.recipe.distill.batch or self.recipe.batch, self._mixture
        return batch * mixture.steps(batch) if mixture else len(self.data.train)

    def training_start(self, lr: float | None = None, freeze_bn: bool = False) -> tuple[Opened, Schedule]:
        """The network that training starts from, with BatchNorm statistics of augmented images, and the schedule.

        `lr` is None while it is not chosen; with `freeze_bn` BatchNorm keeps its statistics.
        """
        options, student = self.recipe.distill, self.load(self.start)
        length = (len(self.data.train), options.batch or self.recipe.batch, options.epochs)
        shared: dict[str, Any] = {"lr": lr, "processes": parallel.world(), "mixture": self._mixture}
        if self.recipe.fresh:  # it has nothing to lose, and BatchNorm no statistics
            return student, self.kind.schedule(schedules.teacher(*length, **shared))
        schedule = schedules.recovery(*length, **shared, freeze_bn=freeze_bn, keep_batch=options.batch is not None)
        schedule = self.kind.schedule(schedule)
        place: dict[str, Any] = {
            "network": student.model,
            "imgsz": self.recipe.size,
            "device": self.device,
            "seed": self.recipe.seed,
        }
        self.kind.trials(self.data, schedule, **place).recentre(student.model, self.kind.adapter)
        return student, schedule

    def train(self, model: Any, schedule: Schedule, name: str, **options: Any) -> Trained:
        """Train in the loop of this kind; everything that it writes goes into the run folder.

        Args:
            model: the network.
            schedule: how long and how fast.
            name: of the stage, and of its folder.
            **options: `task`, `penalty` and `patience` of `distill.kinds.kind.Kind.train`.
        """
        schedule = self.kind.schedule(schedule)
        self.console.line(schedule.describe())
        return self.kind.train(
            model,
            self.data,
            schedule,
            folder=self.folder.path / TRAINING / name,
            console=self.console,
            imgsz=self.recipe.size,
            device=self.recipe.device,
            seed=self.recipe.seed,
            workers=self.recipe.workers,
            resume=self.folder.resumed,
            val_batch=self.recipe.batch,
            on_epoch=lambda row: self.on_epoch({"stage": name, **row}) if self.on_epoch else None,
            loggers=(self.recipe.loggers, self.recipe.name, self.folder.path.name) if name == "train" else None,
            **options,
        )
