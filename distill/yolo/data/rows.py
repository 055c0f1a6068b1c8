"""The text of a label file as classes, boxes and polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.machine.words import brief
from distill.yolo.upstream import segments2boxes

_TOLERANCE = 0.01  # of a side: annotation tools round, and ultralytics accepts as much


class UnknownClassError(ValueError):
    """A row has a class that the data set does not have: a mistake in the data, not a damaged file."""

    def __init__(self, line: int, cls: float, classes: int) -> None:
        super().__init__(f"class {brief(int(cls))}, but the data set has {classes} classes (0-{classes - 1})")
        self.line = line


@dataclass(frozen=True)
class Rows:
    """The objects of one image."""

    cls: np.ndarray  # (n, 1) float32
    boxes: np.ndarray  # (n, 4) float32, xywh in shares of the image
    polygons: tuple[np.ndarray | None, ...]  # of each row that was a polygon, (points, 2) float32


NONE = Rows(np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), ())


def parse(text: str, classes: int, keypoint_numbers: int = 0) -> Rows:
    """Read a label file, each row once: merged data sets often have rows twice, and each would count as an object of its own.

    A row is `class x y w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, which is replaced by its box.

    Args:
        text: the content of the file.
        classes: how many the data set has.
        keypoint_numbers: that a row may have behind its box, which are left out; 0 if there are none.

    Raises:
        UnknownClassError: a class id that is too large.
        ValueError: anything else that is no label.
    """
    rows: dict[bytes, np.ndarray] = {}
    for number, words in enumerate((line.split() for line in text.splitlines()), 1):
        if words:
            row = _numbers(number, words, classes, keypoint_numbers)
            rows.setdefault(row.tobytes(), row)
    if not rows:
        return NONE
    polygons = tuple(None if len(row) == 5 else row[1:].reshape(-1, 2) for row in rows.values())
    boxes = np.stack([_box(row) for row in rows.values()])
    return Rows(np.stack([row[:1] for row in rows.values()]), boxes, polygons)


def _numbers(number: int, words: Sequence[str], classes: int, keypoint_numbers: int) -> np.ndarray:
    """One row as float32: class and box, or class and polygon."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        text = brief(" ".join(words), 30)
        comma = ": numbers are set apart by blanks, and their decimals by a point" if "," in text else ""
        raise ValueError(f"line {number}: '{text}' is not all numbers{comma}") from None
    if not (values[0] >= 0 and values[0] % 1 == 0):
        raise ValueError(f"line {number}: '{brief(words[0])}' is no class id")
    if values[0] >= classes:
        raise UnknownClassError(number, values[0], classes)
    if keypoint_numbers and len(values) == 5 + keypoint_numbers:
        values = values[:5]
    if len(values) != 5 and not (len(values) > 6 and len(values) % 2):
        kinds = "each line must be 'class x y width height', or a polygon"
        score = ": the last may be a score, which a label has not" if len(values) == 6 else ""
        raise ValueError(f"{kinds}; line {number} has {len(values)} numbers{score}")
    places = values[1:]
    flat = len(values) == 5 and min(places[2:]) < 0
    if (
        not all(-_TOLERANCE <= place <= 1 + _TOLERANCE for place in places)
        or flat
        or not all(map(math.isfinite, places))
    ):
        raise ValueError("coordinates must be shares of the image's width and height, between 0 and 1")
    return np.array(values, np.float32)


def _box(row: np.ndarray) -> np.ndarray:
    return row[1:] if len(row) == 5 else segments2boxes([row[1:].reshape(-1, 2)])[0].astype(np.float32)
