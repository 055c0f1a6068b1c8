"""The teachers of a run: opened, checked against the network that they teach, each with the losses that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import prune
from distill import losses
from distill.engine.kinds import kind_of
from distill.errors import DistillError
from distill.kinds.kind import Kind
from distill.kinds.opened import Opened, Taught
from distill.losses.base import WeightedLoss
from distill.losses.context import NECK
from distill.losses.spec import ORIGINAL, LossSpec, TeacherSpec
from distill.machine.measure import count_params
from distill.recipe.schema import DEFAULT_LOSSES, SHAPES, Recipe
from distill.recipe.teachers import names_of
from distill.results.networks import NETWORKS, START
from distill.training.task import DistillationTask, check_support

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
        family: what messages call its kind of network.
        by_cell: whether boxes are compared cell by cell, for the heads are of different kinds.
        untaught: a part of the student that this teacher lacks, and so cannot teach; empty if there is none.
    """

    name: str
    network: Opened | None
    losses: tuple[WeightedLoss, ...]
    specs: tuple[LossSpec, ...]
    notes: tuple[str, ...]
    family: str = ""
    by_cell: bool = False
    untaught: str = ""

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What it is and what it teaches, in words; of the original the losses alone."""
        parts = [loss.name for loss in self.losses]
        if self.network is None:
            return [("losses", ", ".join(parts))] if parts else []
        params = f"{count_params(self.network.model) / 1e6:.2f} M parameters"
        rows = [(f"teacher {self.name}", f"{self.network.source}, {params}, of {self.family}")]
        how = ["; by the best box of each cell"] if self.by_cell else []
        how += ["; features through 1x1 projectors"] if any(loss.points((NECK,)) for loss in self.losses) else []
        return [*rows, ("losses", ", ".join(parts) + "".join(how))] if parts else rows


def open_model(recipe: Recipe) -> Opened | None:
    """The network of `model`: opened, or built if it is an architecture; None if the recipe trains one.

    Raises:
        DistillError: it cannot be opened or built.
    """
    if recipe.model is None:
        return None
    if not recipe.fresh:
        options: dict[str, Any] = {"trust": recipe.trust, "code": recipe.code, "weights": recipe.weights}
        return kind_of(recipe).open(recipe.model, **options)
    names = names_in(recipe)
    if names is None and not recipe.foreign:
        raise DistillError(f"{recipe.data}: no labels, and a network with random weights needs them: give a data.yaml")
    if names is None:  # a folder of images, which the teacher's classes are looked for in
        names = kind_of(recipe).open(recipe.foreign[0], trust=recipe.trust, code=recipe.code).names
    network = kind_of(recipe).build(recipe.model, names, seed=recipe.seed, key="model", data=_file(recipe))
    return Opened(network, dict(names), None, Path(recipe.model), None)


def names_in(recipe: Recipe) -> Mapping[int, str] | None:
    """The classes of the data by id; None of a folder of images. Raises `DistillError`: they cannot be read."""
    kind = kind_of(recipe)
    return dict(enumerate(kind.shapes)) if recipe.data == SHAPES else kind.names_in(recipe.data)


def _file(recipe: Recipe) -> str | None:
    """The data set, if it is there already."""
    return None if recipe.data == SHAPES else recipe.data


def open_teachers(recipe: Recipe, model: Opened | None) -> tuple[Teaching, ...]:
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
    taught = [
        Taught(each.name, network_of(each), each.losses, each.network is None) for each in teachers if each.losses
    ]
    options: dict[str, Any] = {"size": recipe.size, "labels": labels, "features": recipe.distill.features}
    options["unlabelled"] = recipe.unlabelled.weight if recipe.unlabelled else 1.0
    return kind_of(recipe).task(student, taught, plan, **options)


def trains_towards(recipe: Recipe) -> bool:
    """Whether anything of a run is trained with the losses against teachers."""
    return bool(recipe.distill.epochs or (recipe.sparsify and recipe.sparsify.distill))


def _open(recipe: Recipe, spec: TeacherSpec, name: str, model: Opened | None) -> Teaching:
    kind = kind_of(recipe)
    specs = _losses_of(recipe, spec, kind) if trains_towards(recipe) else ()
    unwanted = recipe.unwanted(spec)
    if name == ORIGINAL:
        gives = kind.gives(untrained(recipe).model if model is None else model.model)
        whole, joined = losses.joined(specs, gives, unwanted)
        fit, notes = losses.fitting(whole, gives, None, kind.lacks)
        notes += joined
        return Teaching(name, None, _weighted(losses.build(fit), spec, model), tuple(fit), tuple(notes))
    assert model is not None  # a recipe that trains its network first has no other teachers
    pairing = kind.pair(model, kind.open(spec.network, trust=recipe.trust, code=recipe.code))
    network = pairing.teacher
    whole, joined = losses.joined(specs, pairing.gives, unwanted)
    fit, notes = losses.fitting(whole, pairing.gives, pairing.unlike, kind.lacks)
    notes += joined
    if pairing.untaught and fit:
        notes.append(f"it has no {pairing.untaught}, so the student's learns from labels alone")
    lines = tuple(f"teacher {name}: {note}" for note in notes)
    taught = _weighted(losses.build(fit), spec, network)
    title = kind.title(network)
    return Teaching(name, network, taught, tuple(fit), lines, title, pairing.by_cell, pairing.untaught)


def _losses_of(recipe: Recipe, spec: TeacherSpec, kind: Kind) -> tuple[LossSpec, ...]:
    """The losses against a teacher: a recipe's own, or in place of the defaults, which are a detector's, those of the kind."""
    own = kind.default_losses
    given = spec.losses is not None or recipe.distill.losses != DEFAULT_LOSSES
    return recipe.losses_of(spec) if given or own is None else own


def untrained(recipe: Recipe) -> Opened:
    """The network that a recipe trains first, with random weights. Raises `DistillError`: it cannot be built."""
    options = recipe.teacher.train
    assert options is not None  # a recipe without a model has it
    names = names_in(recipe) or {0: "object"}
    network = kind_of(recipe).build(options.model, names, width=options.width, data=_file(recipe))
    return Opened(network, dict(names), None, Path(options.model), None)


def _weighted(built: list[WeightedLoss], spec: TeacherSpec, network: Opened | None) -> tuple[WeightedLoss, ...]:
    if network is not None:
        check_support(built, network.model)
    return tuple(replace(loss, weight=loss.weight * spec.weight) for loss in built)
