"""How far two networks are apart on an image, box by box, and which images are worth a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from distill.yolo.evaluation.evaluate import SURE, Boxes

VISIBLE = 0.0005  # a loss of less is written as 0.000
IOU = 0.5  # two boxes of a class that overlap by more are of the same object


@dataclass(frozen=True)
class Difference:
    """What two networks see otherwise on one image."""

    by_class: dict[int, float]  # class -> the scores by which they differ, summed over objects
    first_alone: NDArray[np.bool_]  # (n,) of the first network's boxes, those that the second does not have
    second_alone: NDArray[np.bool_]  # (m,) the other way round

    @property
    def total(self) -> float:
        """Over all classes: 0 if they see the same with the same scores."""
        return sum(self.by_class.values())


def compare(first: NDArray, second: NDArray) -> Difference:
    """Pair the boxes of two networks on an image: of one class, overlapping by IOU, the closest first.

    An object counts if one of the two is sure of it: with the difference of its scores, or with the whole score if only
    one has it. So an object that one network sees with 0.26 and the other with 0.24 hardly counts.

    Args:
        first: (n, 6), a row of `Boxes`, with boxes that are not sure.
        second: (m, 6), likewise.
    """
    partner = np.full(len(first), -1)
    overlap = _overlap(first, second) * (first[:, None, 5] == second[None, :, 5])
    rows, columns = np.nonzero(overlap > IOU)
    for place in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = rows[place], columns[place]
        if partner[row] < 0 and column not in partner:
            partner[row] = column
    first_alone, second_alone = partner < 0, ~np.isin(np.arange(len(second)), partner)
    by_class: dict[int, float] = {}

    def count(kind: float, score: float, amount: float) -> None:
        if score >= SURE:
            by_class[int(kind)] = by_class.get(int(kind), 0.0) + float(amount)

    for row, column in enumerate(partner):
        if column >= 0:
            scores = first[row, 4], second[column, 4]
            count(first[row, 5], max(scores), abs(scores[0] - scores[1]))
    for box in (*first[first_alone], *second[second_alone]):
        count(box[5], box[4], box[4])
    return Difference(by_class, first_alone, second_alone)


@dataclass(frozen=True)
class Choice:
    """Images that were chosen for one reason: `differ`, `typical`, or `class`."""

    kind: str
    files: tuple[str, ...]


def choose(teacher: Boxes, student: Boxes, count: int, worst: int | None = None) -> list[Choice]:
    """Choose images to look at: no image twice, and no reason without an image.

    Args:
        teacher: its boxes on every image.
        student: its boxes on the same images.
        count: images for each reason, at most.
        worst: the class that lost most, if any did.

    Returns:
        The images on which they differ most; typical ones, with objects and a difference near the median; and those on
        which they differ most in the class `worst`.
    """
    differences = {file: compare(teacher[file], student[file]) for file in sorted(teacher)}
    taken: set[str] = set()
    choices = []

    def take(kind: str, files: list[str], rank: Callable[[str], float]) -> None:
        chosen = tuple(sorted((file for file in files if file not in taken), key=rank)[:count])
        taken.update(chosen)
        if chosen:
            choices.append(Choice(kind, chosen))

    total = {file: difference.total for file, difference in differences.items()}
    of_worst = {
        file: difference.by_class.get(-1 if worst is None else worst, 0.0) for file, difference in differences.items()
    }
    seen = [file for file in total if (teacher[file][:, 4] >= SURE).any() or (student[file][:, 4] >= SURE).any()]
    middle = median([total[file] for file in seen]) if seen else 0.0
    take("differ", [file for file in total if total[file] > 0], lambda file: -total[file])
    take("class", [file for file in total if of_worst[file] > 0], lambda file: -of_worst[file])
    take("typical", seen, lambda file: abs(total[file] - middle))
    return choices


def worst_class(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """The name of the class whose figure fell most; None if there is one class, or none fell."""
    losses = {name: figure - after.get(name, 0.0) for name, figure in before.items()}
    worst = max(losses, key=losses.__getitem__, default=None)
    return worst if worst is not None and len(losses) > 1 and losses[worst] >= VISIBLE else None


def _overlap(first: NDArray, second: NDArray) -> NDArray:
    """(n, m): intersection over union of boxes given by centre and size."""
    (low, high), (other_low, other_high) = (
        (each[:, :2] - each[:, 2:4] / 2, each[:, :2] + each[:, 2:4] / 2) for each in (first, second)
    )
    sides = np.minimum(high[:, None], other_high) - np.maximum(low[:, None], other_low)
    shared = sides.clip(0).prod(-1)
    union = first[:, 2:4].prod(1)[:, None] + second[:, 2:4].prod(1) - shared
    return shared / np.maximum(union, 1e-12)
