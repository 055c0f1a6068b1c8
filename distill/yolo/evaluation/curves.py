"""Precision over recall and the confusion matrix of an evaluation, small enough to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.results.quality import Curves

STEPS = 101  # of recall, from 0 to 1
MOST_CLASSES = 12  # with more, only the mean over the classes is kept


def compact(names: Sequence[str], precision: NDArray, confusion: NDArray, classes: Mapping[int, str]) -> Curves:
    """Thin out what the validator has measured.

    Args:
        names: of the classes that occur.
        precision: (classes that occur, any number of steps from recall 0 to 1), at an IoU of 0.5.
        confusion: (predicted, labelled), boxes; the last row and column are the background.
        classes: names of all classes by number.
    """
    if not names:  # the validator gives one row of zeros
        precision = precision[:0]
    chosen = np.linspace(0, precision.shape[1] - 1, STEPS).round().astype(int)
    mean = precision.mean(0)[chosen] if len(precision) else ()
    few = len(names) == len(precision) <= MOST_CLASSES  # fewer names than curves: two classes have the same
    of_class = dict(zip(names, precision, strict=True)) if few else {}
    pairs = zip(*np.nonzero(confusion), strict=True)
    return Curves(
        precision=_rounded(mean),
        precision_of={name: _rounded(curve[chosen]) for name, curve in of_class.items()},
        confusion=tuple((classes.get(row), classes.get(column), int(confusion[row, column])) for row, column in pairs),
    )


def _rounded(values: Sequence[float] | NDArray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
