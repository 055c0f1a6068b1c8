"""A teacher of a task: a frozen network, the losses that pull the student to it, and how the two compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from distill.losses.base import WeightedLoss
from distill.losses.context import Outputs
from distill.losses.spec import ORIGINAL

# (network, images (B, 3, H, W) in [0, 1], module paths to capture) -> raw outputs.
Runner = Callable[[nn.Module, Tensor, Sequence[str]], Outputs]
# (student's outputs, teacher's) -> both in common terms.
View = Callable[[Outputs, Outputs], tuple[Outputs, Outputs]]


def as_they_are(student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
    """The view of a teacher whose outputs are in the student's terms already."""
    return student, teacher


@dataclass(frozen=True, eq=False)
class Teacher:
    """One teacher.

    Args:
        network: best with BatchNorm folded in. A task copies and freezes it.
        losses: what pulls the student to it.
        run: runs it on images and gives its raw outputs.
        name: in the names of losses, if there are several teachers.
        keep: per point of features, and per level there, the teacher's channels that the student still has. At a
            point that is missing the student has them all.
        projects: whether the student's features go through learned 1x1 convolutions to this teacher's channels,
            because the student was not cut from it.
        view: brings the outputs of both networks into common terms: order of classes, boxes to a cell.
    """

    network: nn.Module = field(repr=False)
    losses: Sequence[WeightedLoss]
    run: Runner
    name: str = ORIGINAL
    keep: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    projects: bool = False
    view: View = as_they_are
