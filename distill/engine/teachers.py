"""The teachers of a run: opened, checked against the network that they teach, each with the losses that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

import prune
from distill import losses
from distill.demo.drawing import CLASSES
from distill.errors import DistillError
from distill.losses.base import WeightedLoss, points_of
from distill.losses.context import NECK
from distill.losses.spec import ORIGINAL, LossSpec, TeacherSpec
from distill.machine.measure import count_params
from distill.machine.words import printable
from distill.recipe.schema import SHAPES, Recipe
from distill.recipe.teachers import names_of
from distill.results.networks import NETWORKS, START
from distill.training.task import DistillationTask, check_support
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets
from distill.yolo.families.match import UNLIKE, match
from distill.yolo.families.outputs import distillation, foreign_teacher, teacher_of
from distill.yolo.families.points import keep_at
from distill.yolo.families.table import family_of, gives_of

_TAKEN = (*(network.name for network in NETWORKS), START)  # what columns call the networks of a run


@dataclass(frozen=True)
class Teaching:
    """A teacher as it was opened, and what it teaches.

    Attributes:
        name: `original`, or the stem of its file.
        network: its classes in the order of the student's; None if it is the network of `model`.
        losses: those that the heads of both can serve, with the teacher's weight in them.
        specs: of each loss, as the recipe has it.
        notes: a line for each loss that is left out.
        by_cell: whether boxes are compared cell by cell, for the heads are of different kinds.
    """

    name: str
    network: Detector | None
    losses: tuple[WeightedLoss, ...]
    specs: tuple[LossSpec, ...]
    notes: tuple[str, ...]
    by_cell: bool = False

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What it is and what it teaches, in words; of the original the losses alone."""
        parts = [loss.name for loss in self.losses]
        if self.network is None:
            return [("losses", ", ".join(parts))] if parts else []
        params = f"{count_params(self.network.model) / 1e6:.2f} M parameters"
        rows = [(f"teacher {self.name}", f"{self.network.source}, {params}, {_family(self.network)}")]
        how = ["; by the best box of each cell"] if self.by_cell else []
        how += ["; features through 1x1 projectors"] if any(loss.points((NECK,)) for loss in self.losses) else []
        return [*rows, ("losses", ", ".join(parts) + "".join(how))] if parts else rows


def open_model(recipe: Recipe) -> Detector | None:
    """The network of `model`: opened, or built if it is an architecture; None if the recipe trains one.

    Raises:
        DistillError: it cannot be opened or built.
    """
    if recipe.model is None:
        return None
    if not recipe.fresh:
        return checkpoint.load(recipe.model, trust=recipe.trust)
    names = names_in(recipe)
    if names is None and not recipe.foreign:
        raise DistillError(f"{recipe.data}: no labels, and a network with random weights needs them: give a data.yaml")
    if names is None:  # a folder of images, which the teacher's classes are looked for in
        names = checkpoint.load(recipe.foreign[0], trust=recipe.trust).names
    network = build(recipe.model, names, seed=recipe.seed, key="model")
    return Detector(network, dict(names), None, Path(recipe.model), None)


def names_in(recipe: Recipe) -> Mapping[int, str] | None:
    """The classes of the data by id; None of a folder of images. Raises `DistillError`: they cannot be read."""
    return dict(enumerate(CLASSES)) if recipe.data == SHAPES else datasets.names_in(recipe.data)


def open_teachers(recipe: Recipe, model: Detector | None) -> tuple[Teaching, ...]:
    """Open and check every teacher of a recipe. `model`: the network that they teach; None if it is trained first.

    Raises:
        DistillError: a teacher that cannot be opened, or with other classes or strides; a loss that is not there or takes
            other options.
    """
    names = names_of(recipe.taught_by, _TAKEN)
    return tuple(_open(recipe, spec, name, model) for spec, name in zip(recipe.taught_by, names, strict=True))


def make_task(
    recipe: Recipe,
    teachers: Sequence[Teaching],
    student: nn.Module,
    network_of: Callable[[Teaching], nn.Module],
    plan: prune.PrunePlan | None,
    labels: float,
) -> DistillationTask:
    """Student, teachers and losses of a training.

    Args:
        recipe: what is to be done.
        teachers: those with losses teach.
        student: the network to train.
        network_of: gives a teacher's network, whose BatchNorm is folded in here.
        plan: what the student was cut by; None if nothing was cut.
        labels: weight of the labels' own loss.

    Raises:
        DistillError: a loss that reads features where there are none to compare.
    """
    features, taught = recipe.distill.features, []
    for each in teachers:
        if not each.losses:
            continue
        network, points = network_of(each), points_of(each.losses, features)
        folded = checkpoint.fused(network)
        if each.network is not None:
            taught.append(foreign_teacher(folded, each.losses, student, each.name))
        else:
            taught.append(teacher_of(folded, each.losses, None if plan is None else keep_at(network, plan, points)))
    unlabelled = recipe.unlabelled.weight if recipe.unlabelled else 1.0
    return distillation(student, taught, labels=labels, unlabelled=unlabelled, features=features)


def trains_towards(recipe: Recipe) -> bool:
    """Whether anything of a run is trained with the losses against teachers."""
    return bool(recipe.distill.epochs or (recipe.sparsify and recipe.sparsify.distill))


def _open(recipe: Recipe, spec: TeacherSpec, name: str, model: Detector | None) -> Teaching:
    specs = recipe.losses_of(spec) if trains_towards(recipe) else ()
    if name == ORIGINAL:
        fit, notes = losses.fitting(specs, gives_of(untrained(recipe) if model is None else model.model))
        return Teaching(name, None, _weighted(losses.build(fit), spec, model), tuple(fit), tuple(notes))
    assert model is not None  # a recipe that trains its network first has no other teachers
    network = fitted(checkpoint.load(spec.network, trust=recipe.trust), model)
    common = match(model.model, network.model)
    fit, notes = losses.fitting(specs, common.gives, UNLIKE)
    if common.alone and fit:
        notes.append("it has no branch that works without NMS, so the student's learns from labels alone")
    lines = tuple(f"teacher {name}: {note}" for note in notes)
    return Teaching(name, network, _weighted(losses.build(fit), spec, network), tuple(fit), lines, common.by_cell)


def untrained(recipe: Recipe) -> nn.Module:
    """The network that a recipe trains first, with random weights. Raises `DistillError`: it cannot be built."""
    options = recipe.teacher.train
    assert options is not None  # a recipe without a model has it
    return build(options.model, names_in(recipe) or {0: "object"}, width=options.width)


def _weighted(built: list[WeightedLoss], spec: TeacherSpec, network: Detector | None) -> tuple[WeightedLoss, ...]:
    if network is not None:
        check_support(built, network.model)
    return tuple(replace(loss, weight=loss.weight * spec.weight) for loss in built)


def fitted(teacher: Detector, student: Detector) -> Detector:
    """A teacher with its classes in the order of the student's, matched by name.

    Args:
        teacher: as it was opened; its head is changed.
        student: the network that it is to teach.

    Raises:
        DistillError: a class that only one of them has, or other strides.
    """
    ours, theirs = ([int(each) for each in network.model.stride] for network in (student, teacher))  # type: ignore[union-attr]
    if ours != theirs:
        raise DistillError(
            f"teacher {teacher.source} has cells of {_list(theirs)} pixels and {student.source} of {_list(ours)}: their "
            "outputs have no cells in common: give a teacher of the same strides"
        )
    wanted, known = list(student.names.values()), list(teacher.names.values())
    if wanted == known:
        return teacher
    if sorted(wanted) != sorted(known) or len(set(wanted)) < len(wanted):
        raise DistillError(
            f"teacher {teacher.source} has other classes than {student.source} ({'; '.join(_differing(wanted, known))}): "
            "give a teacher of the same classes, in any order"
        )
    network = teacher.model
    family_of(network).reorder(network.model[-1], [known.index(name) for name in wanted])  # type: ignore[index]
    network.names = dict(student.names)  # type: ignore[assignment]
    return replace(teacher, names=dict(student.names))


def _differing(wanted: list[str], known: list[str]) -> Iterator[str]:
    """What is wrong with the classes, the first few of them."""
    for what, names, others in (("it lacks", wanted, known), ("it has besides", known, wanted)):
        only = [f"'{printable(name, 60)}'" for name in names if name not in others]
        if only:
            yield f"{what} {', '.join(only[:3])}{f' and {len(only) - 3} more' if len(only) > 3 else ''}"
    if set(wanted) == set(known):
        yield "a name stands for several of them"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _family(network: Detector) -> str:
    return f"of {family_of(network.model).title}"
