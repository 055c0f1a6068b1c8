"""Images and their label files, read and checked once, and never written.

ultralytics checks them too. But it rewrites a JPEG without an end mark, leaves a `labels.cache` beside the data, and drops
an image without an error if its label names an unknown class.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import DistillError, first_line
from distill.machine.progress import ProgressCallback
from distill.yolo.data.datafile import label_files
from distill.yolo.upstream import IMG_FORMATS, exif_size, imread, segments2boxes

# One dict an image, as ultralytics' YOLODataset keeps them: `im_file`, `shape` (h, w), `cls` (n, 1), `bboxes` (n, 4) as
# xywh in shares of the image, `segments`, ...
Records = tuple[dict[str, Any], ...]

MIN_TO_SPLIT = 10  # images; fewer are not split

_LISTED = 5  # damaged images or rare classes named in a warning
_VERIFIED = {"jpeg", "mpo", "png", "webp"}  # formats of which Pillow's verify() reads more than the header
_VAL_SHARE, _MAX_VAL = 0.2, 200  # of the images are held back, at most so many
_TOLERANCE = 0.01  # of a side: annotation tools round, and ultralytics accepts as much
_MIN_SIDE = 10  # pixels
_RECORD = {"keypoints": None, "normalized": True, "bbox_format": "xywh"}  # the same in all records


def read(
    path: Path, key: str, images: Sequence[Path], names: Mapping[int, str] | None, progress: ProgressCallback | None
) -> tuple[Records, list[str]]:
    """Read and check the images of one split and their labels.

    Args:
        path: the data set, as messages name it.
        key: the split, as messages name it.
        images: image files.
        names: the data set's classes; None if there are no labels to read.
        progress: shows a bar over the images.

    Returns:
        Records, and warnings of images that were left out and of missing label files.

    Raises:
        DistillError: a class id that is not in `names`, no label file, or no usable image.
    """
    files = label_files(images) if names is not None else [None] * len(images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[Any] = pool.map(lambda image, file: _read_one(image, file, names), images, files)
        results = list(progress(results, f"checking {key}", len(images)) if progress else results)
    unknown = [result for result in results if isinstance(result, DistillError)]
    problems = [result for result in results if isinstance(result, str)]
    records = tuple(result for result in results if isinstance(result, dict))
    if unknown:
        rest = f" (and {len(unknown) - 1} more files)" if len(unknown) > 1 else ""
        raise DistillError(f"{path}: '{key}': {unknown[0]}{rest}")
    if not records:
        raise DistillError(f"{path}: '{key}': none of the {len(images)} images can be used, first {problems[0]}")
    total = f"{len(images)} images of '{key}'"
    warnings = []
    unlabelled = sum(file is not None and not file.is_file() for file in files)
    if unlabelled == len(images):
        raise DistillError(
            f"{path}: no label file for any of the {total} (looked for {files[0]} and so on): "
            "to work without labels give the folder of images as 'data'"
        )
    if 2 * unlabelled > len(images):
        warnings.append(f"{unlabelled} of the {total} have no label file: counted as empty")
    if problems:
        warnings.append(f"{len(problems)} of the {total} left out: {abridge(problems, '; ')}")
    return records, warnings


def abridge(items: Sequence[str], separator: str) -> str:
    """As many items as a message has room for."""
    return separator.join((*items[:_LISTED], *(["..."] if len(items) > _LISTED else [])))


def hold_back(records: Records) -> tuple[Records, Records]:
    """(images to learn from, images to measure on); all of them in both if there are fewer than `MIN_TO_SPLIT`.

    The draw is random, because neighbours are often much alike, but the same for the same files: it does not depend on a
    recipe's seed, so that runs can be compared. The records are sorted by file.
    """
    if len(records) < MIN_TO_SPLIT:
        return records, records
    order = np.random.default_rng(0).permutation(len(records))
    val = set(order[: min(_MAX_VAL, round(_VAL_SHARE * len(records)))].tolist())
    train = tuple(record for index, record in enumerate(records) if index not in val)
    return train, tuple(records[index] for index in sorted(val))


def _read_one(image: Path, file: Path | None, names: Mapping[int, str] | None) -> dict[str, Any] | str | DistillError:
    """A record, or what is wrong with the image or its labels."""
    try:
        shape = _check_image(image)
    except Exception as error:  # noqa: BLE001  Pillow raises many kinds, SyntaxError among them: a damaged file
        return f"{image}: {_reason(error)}"
    try:
        cls, boxes, segments = _read_labels(file, names or {})
    except DistillError as error:  # a class that the data set does not have: a mistake in the data, not a damaged file
        return error
    except (ValueError, OSError) as error:
        return f"{file}: {_reason(error)}"
    return {"im_file": str(image), "shape": shape, "cls": cls, "bboxes": boxes, "segments": segments, **_RECORD}


def _check_image(path: Path) -> tuple[int, int]:
    """(height, width) as it will be decoded. Raises if the file is damaged."""
    with Image.open(path) as image:
        kind = (image.format or "").lower()
        image.verify()
        width, height = exif_size(image)
    if kind not in IMG_FORMATS | {"jpeg2000"}:
        raise ValueError(f"is a {kind.upper()} file, whatever its name says")
    if min(height, width) < _MIN_SIDE:
        raise ValueError(f"is only {width}x{height} pixels")
    if kind in ("jpeg", "mpo") and not _ends_well(path):
        with Image.open(path) as image:
            image.load()  # verify() does not decode a JPEG; one that does not end with its end mark may be cut short
    if kind not in _VERIFIED and imread(str(path)) is None:
        raise ValueError("cannot be decoded")
    return height, width


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _read_labels(path: Path | None, names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Classes (n, 1), boxes (n, 4) and polygons of one label file; n is 0 if there is no file.

    A row is `class x y w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, which is replaced by its box.
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
            classes = f"{len(names)} classes (0-{len(names) - 1})"
            raise DistillError(f"{path}:{number}: class {int(values[-1][0])}, but the data set has {classes}")
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
    # Merged data sets often have rows twice, and each would count as an object of its own.
    keep = sorted({row.tobytes(): i for i, row in enumerate(values)}.values())
    return cls[keep], boxes[keep], [segments[i] for i in keep] if segments else []


def _reason(error: Exception) -> str:
    """An exception as half a sentence. Pillow's own repeats the path."""
    if isinstance(error, (Image.UnidentifiedImageError, ModuleNotFoundError)):  # ultralytics then tries HEIF's package
        return "is no image that can be read"
    return first_line(error)
