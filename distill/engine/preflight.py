"""One preflight for every command: inputs are opened and checked before anything is written. The first error ends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import prune
from distill.engine.kinds import kind_of
from distill.engine.loss_check import LossCheck
from distill.engine.planning import budget, importance_of, trace
from distill.engine.size import ImageSize, image_size, with_size
from distill.engine.teachers import Teaching, open_model, open_teachers, trains_towards, untrained
from distill.engine.unlabelled import in_words, unread, with_frames, with_unlabelled
from distill.errors import DistillError
from distill.kinds.opened import Images, Opened
from distill.losses.base import WeightedLoss, points_of
from distill.losses.context import NECK
from distill.losses.spec import ORIGINAL
from distill.machine import env, parallel
from distill.machine.console import Console
from distill.machine.device import pick_device
from distill.machine.measure import count_params
from distill.machine.progress import ProgressCallback
from distill.machine.words import abridge, html_table, text_table
from distill.recipe.schema import SHAPES, Recipe

PSEUDO = "pseudo_labels"  # a loss that trains as labels do
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preflight:
    """The checked inputs of a recipe."""

    recipe: Recipe  # with the image size in place of `auto`
    size: ImageSize
    device: torch.device
    teacher: Opened | None  # the network that the recipe names as `model`; None if it trains one
    teachers: tuple[Teaching, ...]  # who teaches it, and with which losses
    data: Images | None  # None if it is still to be generated
    notes: tuple[str, ...]  # lines about what is left out
    warnings: tuple[str, ...]  # lines that the user must know, on the screen and in the report
    loss_check: LossCheck  # between the recipe's networks, for other losses

    @property
    def losses(self) -> tuple[WeightedLoss, ...]:
        """Those of all teachers."""
        return tuple(loss for teacher in self.teachers for loss in teacher.losses)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was opened, in words."""
        teacher, data, train = self.teacher, self.data, self.recipe.teacher.train
        rows = [("model", f"{train.model}, trained first" if train else "")]
        if teacher is not None:
            random = ", with random weights" if self.recipe.fresh else ""
            rows = [("model", f"{teacher.source}, {count_params(teacher.model) / 1e6:.2f} M parameters{random}")]
            rows.append(("family", kind_of(self.recipe).family(teacher)))
        if names := teacher.names if teacher else data.names if data else None:
            rows.append(("classes", f"{len(names)}: {abridge(list(names.values()), ', ')}"))
        if data is not None:
            labels = "" if data.labelled else ", without labels"
            rows.append(("images", f"{len(data.train)} train, {len(data.val)} val{labels}: {data.path}"))
            rows += [("unlabelled", beside)] if (beside := in_words(self.recipe, data)) else []
        several = len(self.teachers) > 1
        own = [(f"teacher {ORIGINAL}", "the network of model")] if several else []
        taught = [row for each in self.teachers for row in (own if each.network is None else []) + each.facts]
        points = points_of(self.losses, self.recipe.distill.features)
        taught += [("features", ", ".join(points))] if set(points) - {NECK} else []
        return [*rows, ("size", str(self.size)), *taught, ("device", env.device_name(str(self.device)))]

    @property
    def _told(self) -> list[tuple[str, str]]:
        return [*self.facts, *(("note", note) for note in self.notes), *(("warning", text) for text in self.warnings)]

    def __str__(self) -> str:
        """A line for each fact."""
        return "\n".join(text_table(self._told))

    def _repr_html_(self) -> str:
        return html_table([("checked", ""), *self._told])

    def __repr__(self) -> str:
        source = self.teacher.source if self.teacher else None
        return f"Preflight(teacher={str(source)!r}, data={self.data!r}, device={str(self.device)!r})"

    def introduce(self, console: Console, folder: Path | None = None) -> None:
        """Show what the work begins with. `folder`: of the run; None if there is none."""
        console.facts(self.facts if folder is None else [*self.facts, ("folder", str(folder))])

    def show(self, console: Console) -> None:
        """Print notes and warnings."""
        for note in self.notes:
            console.line(note)
        for warning in self.warnings:
            console.warn(warning)


def preflight(
    recipe: Recipe,
    *,
    generate: Callable[[], Path] | None = None,
    frames: Callable[[], Path] | None = None,
    progress: ProgressCallback | None = None,
) -> Preflight:
    """Open and check all inputs of a recipe. Nothing is written, but by `generate` and into the folder of `frames`.

    Args:
        recipe: what is to be done.
        generate: draws the data of `data: shapes` and returns its data.yaml; None leaves it for later.
        frames: the folder that frames of videos are written into; None leaves them for later.
        progress: see `distill.machine.progress`.

    Raises:
        DistillError: the first error in device, exports, batches, model, losses, image size or data.
        PruneError: a budget that cannot be met, or a pattern of `prune.protect` that names nothing.
    """
    device = pick_device(recipe.device)
    kind = kind_of(recipe)
    kind.check_exports(recipe.export)
    kind.check_options(recipe.distill.teacher_runtime, recipe.loggers, device)
    batches = {"batch": recipe.batch, "distill.batch": recipe.distill.batch}
    if recipe.teacher.train:
        batches["teacher.train.batch"] = recipe.teacher.train.batch
    parallel.check_divisible(batches)
    teacher = open_model(recipe)
    teachers = open_teachers(recipe, teacher)
    recipe, size = with_size(recipe, trained_network(recipe, teacher, teachers))
    notes = check_losses(recipe, teachers)
    subject = untrained(recipe) if teacher is None else teacher
    loss_check = check_network(recipe, subject)
    warnings = size_warnings(recipe, teacher)
    for each in teachers:
        warnings += size_warnings(recipe, each.network)
    data = None
    if recipe.data != SHAPES or generate is not None:
        path = generate() if recipe.data == SHAPES and generate is not None else Path(recipe.data)
        data = kind.load_data(path, subject, progress)
    data = with_unlabelled(recipe, data, progress)
    if data is not None:
        teaching = [loss for each in teachers for loss in each.losses]
        _check_labels(recipe, data, teaching)
        data = with_frames(recipe, data, frames, progress)
        notes += unread(recipe, data, bool(teaching))
        warnings += untaught(recipe, data, teachers)
        notes += data.notes
        warnings += data.warnings
    loss_check.run(recipe, teachers, data)
    weights = {f"{each.name}/{loss.name}": loss.weight for each in teachers for loss in each.losses}
    _LOG.debug("weights of losses %s; device %s; torch uses %d threads", weights, device, torch.get_num_threads())
    return Preflight(recipe, size, device, teacher, teachers, data, notes, tuple(warnings), loss_check)


def trained_network(recipe: Recipe, model: Opened | None, teachers: Sequence[Teaching]) -> Opened | None:
    """The network whose image size the run takes: `model`, or the first teacher of one with random weights."""
    others = [each.network for each in teachers if each.network is not None]
    return others[0] if recipe.fresh and others else model


def size_warnings(recipe: Recipe, teacher: Opened | None) -> tuple[str, ...]:
    """A warning if a network will see images of another size than it was trained on."""
    if teacher is None or teacher.imgsz is None:
        return ()  # nobody knows what size that was
    if recipe.size in (teacher.imgsz, image_size(None, teacher, kind_of(recipe)).pixels):
        return ()
    sizes = f"was trained at {teacher.imgsz} pixels, and imgsz is {recipe.size}"
    return (f"{teacher.source} {sizes}: give imgsz={teacher.imgsz} unless that is meant",)


def check_losses(recipe: Recipe, teachers: Sequence[Teaching]) -> tuple[str, ...]:
    """Check that there is something to train on. Returns what is left out, in lines.

    Raises:
        DistillError: nothing left to train on.
    """
    if not trains_towards(recipe):
        return ()
    teaching = [loss for each in teachers for loss in each.losses]
    if not any(loss.ramp.lasts for loss in teaching) and not recipe.distill.labels:
        which = "none that lasts to the end" if teaching else "none of them"
        heads = "these heads" if recipe.foreign else "this head"
        raise DistillError(f"distill.losses: {which} fits {heads}, and labels is 0: nothing to train on")
    return tuple(note for each in teachers for note in each.notes)


def _check_labels(recipe: Recipe, data: Images, teaching: Sequence[WeightedLoss]) -> None:
    """Refuse a training that has nothing to learn from if the data has no labels. `teaching`: its losses."""
    if data.labelled:
        return
    if recipe.teacher.train:
        raise DistillError(f"{data.path}: no labels, and teacher.train needs them: give a data.yaml")
    if recipe.sparsify and not recipe.sparsify.distill:
        raise DistillError(f"{data.path}: no labels: give a data.yaml, or sparsify.distill=true")
    trains = recipe.distill.epochs or recipe.sparsify
    if trains and not any(loss.ramp.lasts for loss in teaching):
        which = "each ends before the training does (until)" if teaching else "there is none"
        raise DistillError(
            f"{data.path}: no labels, so the losses of distill.losses must teach, and {which}: give some, or a data.yaml"
        )


def untaught(recipe: Recipe, data: Images, teachers: Sequence[Teaching]) -> tuple[str, ...]:
    """A warning if nothing teaches a part of a student: neither labels nor a teacher that has it too."""
    taught = [each for each in teachers if each.losses]
    labels = data.labelled and recipe.distill.labels
    labels = labels or any(spec.name == PSEUDO for each in taught for spec in each.specs)
    if not recipe.distill.epochs or not taught or labels or not all(each.untaught for each in taught):
        return ()
    return (f"nothing teaches the student's {taught[0].untaught}: add {PSEUDO}: 1 to distill.losses",)


def check_network(recipe: Recipe, teacher: Opened | None) -> LossCheck:
    """Check that the network takes images of `imgsz` and can be cut as far as the recipe says. One to be trained is built.

    Returns:
        What runs losses on networks of these widths.

    Raises:
        DistillError: `teacher.train.model` is no detector that is supported, or `imgsz` is none that the network takes.
        PruneError: a budget that cannot be met, or a pattern of `prune.protect` that names nothing.
    """
    network, graph, kind = (untrained(recipe) if teacher is None else teacher).model, None, kind_of(recipe)
    stride = kind.stride(network)
    if recipe.size % stride:
        sizes = f"{recipe.size // stride * stride} or {-(-recipe.size // stride) * stride}"
        raise DistillError(f"imgsz is {recipe.size}, and this network takes multiples of {stride}: give {sizes}")
    if recipe.prune is not None:
        graph = trace(kind, network, recipe.size)
        prune.check_budget(graph, **budget(recipe.prune))
        importance_of(recipe.prune.importance)
    return LossCheck(network, graph, recipe)
