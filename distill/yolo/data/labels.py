"""Images and their label files, read and checked once, and never written.

ultralytics checks them too. But it rewrites a JPEG without an end mark, leaves a `labels.cache` beside the data, and drops
an image without an error if its label names an unknown class.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.errors import DistillError, first_line
from distill.machine.progress import ProgressCallback
from distill.machine.words import abridge
from distill.yolo.data import rows, strays
from distill.yolo.data.document import read_text
from distill.yolo.data.files import label_files
from distill.yolo.data.rows import Content, RowError, Rows
from distill.yolo.upstream import IMG_FORMATS, exif_size, imread

# One dict an image, as ultralytics' YOLODataset keeps them: `im_file`, `shape` (h, w), `cls` (n, 1), `bboxes` (n, 4) as
# xywh in shares of the image, `segments`, ...; and `bytes`, the size of the file.
Records = tuple[dict[str, Any], ...]

MAX_LABEL_BYTES = 16 * 2**20  # a quarter of a million boxes
MIN_TO_SPLIT = 10  # images; fewer are not split

_VERIFIED = {"jpeg", "mpo", "png", "webp"}  # formats of which Pillow's verify() reads more than the header
_VAL_SHARE, _MAX_VAL = 0.2, 200  # of the images are held back, at most so many
_MIN_SIDE = 10  # pixels
_RECORD = {"normalized": True, "bbox_format": "xywh"}  # the same in all records


@dataclass(frozen=True)
class Split:
    """The usable images of one split, and what is to be said about the others."""

    records: Records
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read(
    path: Path, key: str, images: Sequence[Path], content: Content | None, progress: ProgressCallback | None
) -> Split:
    """Read and check the images of one split and their labels.

    Args:
        path: the data set, as messages name it.
        key: the split, as messages name it.
        images: image files.
        content: what the label files may hold; None if there are no labels to read.
        progress: shows a bar over the images.

    Raises:
        DistillError: a class id that is not in `content`, a line for another task, no label file, or no usable image.
    """
    files = label_files(images) if content is not None else [None] * len(images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can read nevertheless
        results: Iterable[Any] = pool.map(lambda image, file: _read_one(image, file, content), images, files)
        results = list(progress(results, f"checking {key}", len(images), "images") if progress else results)
    unknown = [result for result in results if isinstance(result, DistillError)]
    problems = [result for result in results if isinstance(result, str)]
    usable = [result for result in results if isinstance(result, tuple)]
    if unknown:
        rest = f" (and {len(unknown) - 1} more files)" if len(unknown) > 1 else ""
        raise DistillError(f"{path}: '{key}': {unknown[0]}{rest}")
    if not usable:
        raise DistillError(f"{path}: '{key}': none of the {len(images)} images can be used, first {problems[0]}")
    notes, told = _unlabelled(path, key, images, files) if content is not None else ([], [])
    if problems:
        told.append(f"{len(problems)} of the {len(images)} images of '{key}' left out: {abridge(problems, '; ')}")
    records, mixed = _records(usable, key, content is not None and content.format.strict)
    return Split(records, (*notes, *mixed), tuple(told))


def _unlabelled(path: Path, key: str, images: Sequence[Path], files: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Notes and warnings about images without a label file, and about two images that share one."""
    notes: list[str] = []
    told: list[str] = []
    missing = [image for image, file in zip(images, files, strict=True) if not os.path.lexists(file)]
    unused = strays.find(missing)
    lies = f"what looks like their labels lies unused: {unused}" if unused else ""
    if len(missing) == len(images):
        raise DistillError(
            f"{path}: no label file for any of the {len(images)} images of '{key}' (looked for {files[0]} and so on); "
            f"{lies or 'to work without labels give the folder of images as data'}"
        )
    if missing:
        line = f"{len(missing)} of the {len(images)} images of '{key}' have no label file: counted as empty"
        (told if unused or 2 * len(missing) > len(images) else notes).append(line + (f"; {lies}" if lies else ""))
    shared = [file for file, count in Counter(files).items() if count > 1 and file.is_file()]
    if shared:
        first = ", ".join(image.name for image, file in zip(images, files, strict=True) if file == shared[0])
        told.append(f"images of '{key}' share a label file in {len(shared)} places, first {first}: {shared[0]}")
    return notes, told


def _records(usable: Sequence[tuple[dict[str, Any], Rows]], key: str, alike: bool) -> tuple[Records, list[str]]:
    """Records, and a note if polygons were left out: ultralytics cannot join images of which only some have them.

    `alike`: all rows are of one format.
    """
    if alike:
        return tuple(
            {**record, "segments": [p for p in found.polygons if p is not None]} for record, found in usable
        ), []
    polygons = sum(any(polygon is not None for polygon in found.polygons) for _, found in usable)
    boxes = sum(any(polygon is None for polygon in found.polygons) for _, found in usable)
    records = tuple({**record, "segments": [] if boxes else list(found.polygons)} for record, found in usable)
    if not polygons or not boxes:
        return records, []
    files = f"label files with polygons ({polygons}) beside files with boxes ({boxes})"
    return records, [f"'{key}' has {files}: a polygon is replaced by its box"]


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


def _read_one(
    image: Path, file: Path | None, content: Content | None
) -> tuple[dict[str, Any], Rows] | str | DistillError:
    """A record and its labels, or what is wrong with either."""
    try:
        shape = _check_image(image)
    except Exception as error:  # noqa: BLE001  Pillow raises many kinds, SyntaxError among them: a damaged file
        return f"{image}: {_reason(error)}"
    try:
        found = _read_labels(file, content)
    except RowError as error:
        return DistillError(f"{file}:{error.line}: {error}")
    except (ValueError, OSError) as error:
        return f"{file}: {_reason(error)}"
    size = image.stat().st_size
    return {
        "im_file": str(image),
        "bytes": size,
        "shape": shape,
        "cls": found.cls,
        "bboxes": found.boxes,
        "keypoints": found.keypoints,
        **_RECORD,
    }, found


def _check_image(path: Path) -> tuple[int, int]:
    """(height, width) as it will be decoded. Raises if the file is damaged."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
        raise ValueError("is no file")
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


def _read_labels(path: Path | None, content: Content | None) -> Rows:
    """The labels of an image; none if there is no file."""
    if path is None or content is None or not os.path.lexists(path):
        return rows.parse("", content or Content({}))
    if not path.is_file():
        raise ValueError("is a folder, not a label file" if path.is_dir() else "is no file, or a link to none")
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise ValueError(f"is larger than {MAX_LABEL_BYTES >> 20} MiB, which no label file is")
    return rows.parse(read_text(path), content)


def _reason(error: Exception) -> str:
    """An exception as half a sentence. Pillow's own repeats the path."""
    if isinstance(error, (Image.UnidentifiedImageError, ModuleNotFoundError)):  # ultralytics then tries HEIF's package
        return "is no image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels: at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} are opened"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return first_line(error)
