"""The text of a label file as classes, boxes, polygons and keypoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.machine.words import brief
from distill.yolo.upstream import segments2boxes

_TOLERANCE = 0.01  # of a side: annotation tools round, and ultralytics accepts as much


class RowError(ValueError):
    """A row says what the data set or its task does not have: a mistake in the data, not a damaged file."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True)
class Format:
    """What a line of a label file holds, in data of one task."""

    line: str  # such a line in words
    fits: Callable[[int, int], bool]  # (its numbers, those of the keypoints of an object) -> whether it is one
    keypoints: bool = False  # whether they are read; otherwise they are left out
    # Whether a line of other data is a mistake that ends the reading; otherwise its image is left out.
    strict: bool = True


BOXES = Format(
    "'class x y width height', or a polygon",
    lambda numbers, keypoints: numbers == 5 or _is_polygon(numbers),
    strict=False,
)
POLYGONS = Format("a mask, as a polygon 'class x1 y1 x2 y2 x3 y3 ...'", lambda numbers, keypoints: _is_polygon(numbers))
CORNERS = Format(
    "an oriented box, as its corners 'class x1 y1 x2 y2 x3 y3 x4 y4'", lambda numbers, keypoints: numbers == 9
)
KEYPOINTS = Format(
    "a box and its keypoints, 'class x y width height x1 y1 ...', as many as kpt_shape says",
    lambda numbers, keypoints: numbers == 5 + keypoints,
    keypoints=True,
)


def _is_polygon(numbers: int) -> bool:
    return numbers > 6 and numbers % 2 == 1


@dataclass(frozen=True)
class Content:
    """What the label files of a data set may hold."""

    names: Mapping[int, str]
    kpt_shape: tuple[int, int] | None = None  # keypoints of an object, and numbers of each
    format: Format = BOXES

    @property
    def keypoint_numbers(self) -> int:
        """Of an object; 0 if there are none."""
        return 0 if self.kpt_shape is None else math.prod(self.kpt_shape)


@dataclass(frozen=True)
class Rows:
    """The objects of one image."""

    cls: np.ndarray  # (n, 1) float32
    boxes: np.ndarray  # (n, 4) float32, xywh in shares of the image
    polygons: tuple[np.ndarray | None, ...]  # of each row that was a polygon, (points, 2) float32
    keypoints: np.ndarray | None = (
        None  # (n, points, 3) float32: x and y in shares of the image, and 0 if it is not seen
    )


def parse(text: str, content: Content) -> Rows:
    """Read a label file, each row once: merged data sets often have rows twice, and each would count as an object of its own.

    For boxes a polygon is replaced by its box, and keypoints behind a box are left out.

    Args:
        text: the content of the file.
        content: what the data set has, and what its task needs.

    Raises:
        RowError: a class id that is too large, or a line of data for another task.
        ValueError: anything else that is no label.
    """
    rows: dict[bytes, np.ndarray] = {}
    for number, words in enumerate((line.split() for line in text.splitlines()), 1):
        if words:
            row = _numbers(number, words, content)
            rows.setdefault(row.tobytes(), row)
    return _objects(list(rows.values()), content)


def _objects(rows: Sequence[np.ndarray], content: Content) -> Rows:
    points = None
    if content.format.keypoints and content.kpt_shape is not None:
        given = np.array([row[5:] for row in rows], np.float32).reshape(len(rows), *content.kpt_shape)
        points, rows = _with_visibility(given), [row[:5] for row in rows]
    cls, boxes = np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32)
    if rows:
        cls, boxes = np.stack([row[:1] for row in rows]), np.stack([_box(row) for row in rows])
    polygons = tuple(None if len(row) == 5 else row[1:].reshape(-1, 2) for row in rows)
    return Rows(cls, boxes, polygons, points)


def _with_visibility(points: np.ndarray) -> np.ndarray:
    """Keypoints of two numbers are seen unless one is below 0, as ultralytics reads them."""
    if points.shape[-1] == 3:
        return points
    return np.concatenate([points, (points >= 0).all(-1, keepdims=True)], -1, dtype=np.float32)


def _numbers(number: int, words: Sequence[str], content: Content) -> np.ndarray:
    """One row as float32: class, then box or polygon, then keypoints."""
    classes, keypoints, wanted = len(content.names), content.keypoint_numbers, content.format
    try:
        values = [float(word) for word in words]
    except ValueError:
        text = brief(" ".join(words), 30)
        comma = ": numbers are set apart by blanks, and their decimals by a point" if "," in text else ""
        raise ValueError(f"line {number}: '{text}' is not all numbers{comma}") from None
    if not (values[0] >= 0 and values[0] % 1 == 0):
        raise ValueError(f"line {number}: '{brief(words[0])}' is no class id")
    if values[0] >= classes:
        which = f"class {brief(int(values[0]))}, but the data set has {classes} classes (0-{classes - 1})"
        raise RowError(number, which)
    if keypoints and len(values) == 5 + keypoints and not wanted.keypoints:
        values = values[:5]
    if not wanted.fits(len(values), keypoints):
        raise _misfit(number, len(values), wanted)
    places = _places(values, content)
    flat = (len(values) == 5 or wanted.keypoints) and min(values[3:5]) < 0
    if (
        not all(-_TOLERANCE <= place <= 1 + _TOLERANCE for place in places)
        or flat
        or not all(map(math.isfinite, values))
    ):
        raise ValueError("coordinates must be shares of the image's width and height, between 0 and 1")
    return np.array(values, np.float32)


def _places(values: Sequence[float], content: Content) -> Sequence[float]:
    """The coordinates in a row."""
    if not content.format.keypoints or content.kpt_shape is None:
        return values[1:]
    of_point = content.kpt_shape[1]
    return [*values[1:5], *(value for index, value in enumerate(values[5:]) if index % of_point < 2)]


def _misfit(number: int, count: int, wanted: Format) -> ValueError:
    if wanted.strict:
        return RowError(number, f"{count} numbers, and this model learns from {wanted.line}: give data of its task")
    score = ": the last may be a score, which a label has not" if count == 6 else ""
    return ValueError(f"each line must be {wanted.line}; line {number} has {count} numbers{score}")


def _box(row: np.ndarray) -> np.ndarray:
    return row[1:] if len(row) == 5 else segments2boxes([row[1:].reshape(-1, 2)])[0].astype(np.float32)
