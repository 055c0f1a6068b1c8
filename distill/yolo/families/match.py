"""How the outputs of two detectors compare: as they are if the heads are alike, else as one box to a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from distill.losses.context import Outputs
from distill.training.teacher import View, as_they_are
from distill.yolo.families.table import family_of

# What a loss may need -> why two heads cannot both give it.
UNLIKE: Mapping[str, str] = {
    "dist": "the heads of both do not predict distributions over box sides of as many bins",
    "objectness": "the heads of both do not have objectness at the same anchors",
    "softmax": "class scores are independent sigmoids",
    "masks": "the heads of both do not predict masks",
    "keypoints": "the heads of both do not predict the same keypoints",
    "angles": "the heads of both do not predict oriented boxes",
}


@dataclass(frozen=True)
class Match:
    """How the outputs of a student and of a teacher that it was not cut from compare."""

    view: View
    gives: frozenset[str]  # what both have of what a loss may need, as `Family.gives`
    by_cell: bool  # whether the boxes of each cell are compared, and not those of each anchor
    alone: bool = False  # whether the student's head has a second branch, and the teacher's has none to teach it


def match(student: nn.Module, teacher: nn.Module) -> Match:
    """How two detectors of the same strides and classes compare.

    Heads of one family compare as they are if they predict in the same terms: box sides in as many bins, or boxes of the
    same anchors. Of other heads each has one box to a cell, with class scores and nothing beside.
    """
    family, other = family_of(student), family_of(teacher)
    ours, theirs = (cast(Any, network).model[-1] for network in (student, teacher))
    if family is other and family.alike(ours, theirs):
        return Match(as_they_are, family.gives(ours), by_cell=False)
    alone = bool(family.second and not other.second)
    return Match(_view(family.by_cell, other.by_cell), frozenset(), by_cell=True, alone=alone)


def _view(ours: Callable[[Outputs], Outputs], theirs: Callable[[Outputs], Outputs]) -> View:
    return lambda student, teacher: (ours(student), theirs(teacher))
