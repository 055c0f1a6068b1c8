"""Images and their label files, read and checked once, and never written to.

ultralytics checks them too, but rewrites a JPEG whose end is missing in place, leaves a `labels.cache` beside the data,
and drops an image whose label names an unknown class without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import DistillError, first_line
from distill.machine.progress import ProgressCallback
from distill.yolo.data.datafile import label_files
from distill.yolo.upstream import IMG_FORMATS, exif_size, imread, segments2boxes

Records = tuple[dict[str, Any], ...]

ENOUGH = 10  # images, of which some can be held back

_VERIFIED = {"jpeg", "mpo", "png", "webp"}
_SHARE, _MOST = 0.2, 200  # of the images are held back, and no more than so many
_TOLERANCE = 0.01  # of a side: annotation tools round, and ultralytics accepts as much
_SMALLEST_PX = 10


@dataclass(frozen=True)
class Labels:
    """The usable images of one split.

    Attributes:
        records: one dict an image, as ultralytics' YOLODataset keeps them: `im_file`, `shape` (h, w), `cls` (n, 1),
            `bboxes` (n, 4) as xywh in shares of the image, `segments`, ...
        unlabelled: how many of them have no label file.
        problems: one line for each image that was left out: which, and why.
    """

    records: tuple[dict[str, Any], ...]
    unlabelled: int
    problems: tuple[str, ...]


class _UnknownClass(Exception):
    """A label file names a class that the data set does not have; unlike a damaged file, that is never an accident."""


def read(
    images: tuple[Path, ...], names: Mapping[int, str] | None, *, label: str, progress: ProgressCallback | None
) -> Labels:
    """Read and check images and, where there are class names, their labels.

    Args:
        images: image files.
        names: the data set's classes; None where there are no labels to read.
        label: what the progress bar says.
        progress: see `distill.machine.console.Console.track`.

    Raises:
        DistillError: a class id that is not in `names`, or not one usable image.
    """
    files = label_files(images) if names is not None else [None] * len(images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[Any] = pool.map(lambda image, file: _read_one(image, file, names), images, files)
        results = list(progress(results, label, len(images)) if progress else results)
    records = tuple(result for result in results if isinstance(result, dict))
    unknown = [str(result) for result in results if isinstance(result, _UnknownClass)]
    problems = tuple(str(result) for result in results if isinstance(result, str))
    if unknown:
        rest = f" (and {len(unknown) - 1} more files)" if len(unknown) > 1 else ""
        raise DistillError(unknown[0] + rest)
    if not records:
        raise DistillError(f"none of the {len(images)} images can be used, first {problems[0]}")
    return Labels(records, sum(not file or not file.is_file() for file in files), problems)


def hold_back(records: Records) -> tuple[Records, Records]:
    """Images to learn from and others to measure on; all of them twice where there are not `ENOUGH`.

    Drawn at random, since neighbours are often much alike, but always the same of the same files: a recipe's seed has no
    say in it, so that runs compare.

    Args:
        records: sorted by file.
    """
    if len(records) < ENOUGH:
        return records, records
    drawn = np.random.default_rng(0).permutation(len(records))
    held = set(drawn[: min(_MOST, round(_SHARE * len(records)))].tolist())
    split: tuple[list[Any], list[Any]] = [], []
    for index, record in enumerate(records):
        split[index in held].append(record)
    return tuple(split[False]), tuple(split[True])


def _read_one(image: Path, file: Path | None, names: Mapping[int, str] | None) -> dict[str, Any] | str | _UnknownClass:
    """A record; or what is wrong."""
    try:
        shape = _check_image(image)
    except Exception as error:  # noqa: BLE001  Pillow raises many kinds, SyntaxError among them: a damaged file
        return f"{image}: {_reason(error)}"
    try:
        cls, boxes, segments = _read_labels(file, names or {})
    except _UnknownClass as error:
        return error
    except (ValueError, OSError) as error:
        return f"{file}: {_reason(error)}"
    return {
        "im_file": str(image),
        "shape": shape,
        "cls": cls,
        "bboxes": boxes,
        "segments": segments,
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


def _check_image(path: Path) -> tuple[int, int]:
    """(height, width) as it will be decoded. Raises where the file is damaged."""
    with Image.open(path) as image:
        kind = (image.format or "").lower()
        image.verify()
        width, height = exif_size(image)
    if kind not in IMG_FORMATS | {"jpeg2000"}:
        raise ValueError(f"is a {kind.upper()} file, whatever its name says")
    if min(height, width) < _SMALLEST_PX:
        raise ValueError(f"is only {width}x{height} pixels")
    if kind in ("jpeg", "mpo") and not _ends_well(path):
        with Image.open(path) as image:
            image.load()  # verify() does not decode a JPEG; one that does not end with its end mark may be cut short
    if kind not in _VERIFIED and imread(str(path)) is None:  # of these, verify() reads no more than the header
        raise ValueError("cannot be decoded")
    return height, width


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _read_labels(path: Path | None, names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Classes (n, 1), boxes (n, 4) and polygons of one label file; nothing where there is no file.

    A row is `class x y w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon, of which the box is taken.
    """
    text = path.read_text(encoding="utf-8-sig") if path is not None and path.is_file() else ""
    lines = [line.split() for line in text.splitlines()]
    rows = [(number, row) for number, row in enumerate(lines, 1) if row]
    if not rows:
        return np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), []
    values = []
    for number, row in rows:
        values.append(np.array(row, np.float32))
        if not (values[-1][0] >= 0 and values[-1][0] % 1 == 0):
            raise ValueError(f"line {number}: '{row[0]}' is no class id")
        if values[-1][0] >= len(names):
            known = f"{len(names)} classes (0-{len(names) - 1})"
            raise _UnknownClass(f"{path}:{number}: class {int(values[-1][0])}, but the data set has {known}")
    cls = np.stack([row[:1] for row in values])
    segments: list[np.ndarray] = []
    if all(len(row) == 5 for row in values):
        boxes = np.stack([row[1:] for row in values])
    elif all(len(row) > 6 and len(row) % 2 for row in values):
        segments = [row[1:].reshape(-1, 2) for row in values]
        boxes = segments2boxes(segments).astype(np.float32)
    else:
        raise ValueError("each line must be 'class x y width height', or each a polygon")
    points = np.concatenate([row[1:] for row in values])
    if not (points.min() >= -_TOLERANCE and points.max() <= 1 + _TOLERANCE and boxes[:, 2:].min() >= 0):
        raise ValueError("coordinates must be shares of the image's width and height, between 0 and 1")
    # Doubled rows are common in merged data sets, and each would count as one more object to be found.
    keep = sorted({row.tobytes(): i for i, row in enumerate(values)}.values())
    return cls[keep], boxes[keep], [segments[i] for i in keep] if segments else []


def _reason(error: Exception) -> str:
    """An exception as half a sentence; Pillow repeats the path, in its own way."""
    if isinstance(error, (Image.UnidentifiedImageError, ModuleNotFoundError)):  # ultralytics then tries HEIF's package
        return "is no image that can be read"
    return first_line(error)
