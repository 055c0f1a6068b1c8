"""A `data.yaml` read as ultralytics reads it, but checked, and without the side effects of its reader.

`ultralytics.data.utils.check_det_dataset` runs the file's `download:` script if images are missing, fetches a font, and
follows symbolic links before it looks for labels, so that it finds none if `images/` is a link.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError
from distill.yolo.upstream import DATASETS_DIR, IMG_FORMATS, img2label_paths

FORMATS = ", ".join(sorted(IMG_FORMATS))


@dataclass(frozen=True)
class DataFile:
    """The content of a data.yaml with its paths resolved."""

    root: Path  # the data folder
    names: dict[int, str]
    train: tuple[Path, ...]  # image files
    val: tuple[Path, ...]


def read(path: Path) -> DataFile:
    """Read a data.yaml. Raises `DistillError` for the first mistake in it, in one line."""
    content = _parse(path)
    channels = content.get("channels", 3)
    if channels != 3:
        raise DistillError(f"{path}: 'channels: {channels}': only images of 3 channels are supported")
    if "val" not in content and "validation" in content:
        content["val"] = content["validation"]
    root = _root(path, content.get("path"))
    train, val = (_split(path, root, key, content.get(key)) for key in ("train", "val"))
    return DataFile(root, _class_names(path, content), train, val)


def find_images(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it, sorted."""
    files = glob.glob(os.path.join(glob.escape(str(folder)), "**", "*.*"), recursive=True)
    return sorted(Path(file) for file in files if _is_image(file))


def label_files(images: Sequence[Path]) -> list[Path]:
    """The label file of each image, whether it exists or not: `.../images/x.jpg` has `.../labels/x.txt`."""
    return [Path(file) for file in img2label_paths([str(image) for image in images])]


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DistillError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DistillError(f"{path}: is no text: a data.yaml is expected here") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise DistillError(f"{place}: {getattr(error, 'problem', None) or 'is no valid YAML'}") from error
    except ValueError as error:  # 2024-13-45, which looks like a date
        raise DistillError(f"{path}: is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DistillError(f"{path}: must hold 'train', 'val' and 'names' keys, as a YOLO data.yaml does")
    return content


def _class_names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise DistillError(f"{path}: 'nc: {count}' must be the number of classes")
    if names is None:
        if count is None:
            raise DistillError(f"{path}: has no 'names': list the class names, in the order of their ids")
        return {i: f"class_{i}" for i in range(count)}
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        by_id = {int(key): str(value) for key, value in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise DistillError(f"{path}: 'names' must be a list of class names, or a mapping from id to name") from None
    if sorted(by_id) != list(range(len(by_id))) or not by_id:
        raise DistillError(f"{path}: the ids in 'names' must be 0, 1, 2, ... without a gap")
    if count not in (None, len(by_id)):
        raise DistillError(f"{path}: 'nc: {count}', but 'names' has {len(by_id)}: {', '.join(by_id.values())}")
    return dict(sorted(by_id.items()))


def _root(path: Path, value: Any) -> Path:
    """The data folder. Beside the file first: the current folder must not decide which data a command reads."""
    beside = path.absolute().parent
    if value is None:
        return beside
    if not isinstance(value, str):
        raise DistillError(f"{path}: 'path: {value}' must be a folder")
    folders = [folder / Path(value).expanduser() for folder in (beside, Path.cwd(), DATASETS_DIR)]
    for folder in folders:
        if folder.is_dir():
            return _normalize(folder)
    tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DistillError(f"{path}: 'path: {value}' is not there (looked for {tried})")


def _split(path: Path, root: Path, key: str, value: Any) -> tuple[Path, ...]:
    if not value:
        purpose = "the images that results are measured on" if key == "val" else "the images to learn from"
        raise DistillError(f"{path}: has no '{key}': give the folder of {purpose}")
    images: list[Path] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            kinds = "a folder of images, a .txt list of them, or a list of those"
            raise DistillError(f"{path}: '{key}: {entry}' must be {kinds}")
        images += _expand(path, root, key, entry)
    return tuple(sorted(images))


def _expand(path: Path, root: Path, key: str, entry: str) -> list[Path]:
    """The images of one folder or one .txt list."""
    # Roboflow writes '../train/images' into a data.yaml beside train/. ultralytics accepts it, so it is common.
    places = [root / entry] + ([root / entry[3:]] if entry.startswith("../") else [])
    place = next((_normalize(place) for place in places if place.exists()), None)
    if place is None:
        raise DistillError(f"{path}: '{key}: {entry}' is not there (looked for {_normalize(places[0])})")
    if place.is_dir():
        images = find_images(place)
        if not _any_labels(images) and place.resolve() != place:
            linked = find_images(place.resolve())
            images = linked if _any_labels(linked) else images
    elif _is_image(place.name):
        images = [place]
    elif place.suffix.lower() == ".txt":
        images = _read_list(path, place, root)
    else:
        raise DistillError(f"{path}: '{key}: {entry}' is neither a folder of images nor a .txt list of them")
    if not images:
        raise DistillError(f"{path}: '{key}: {entry}' holds no images (looked for {FORMATS} in {place})")
    return images


def _read_list(path: Path, listing: Path, root: Path) -> list[Path]:
    """The images that a .txt names, one a line: relative to the list or to the data folder, or absolute."""
    images, missing = [], []
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DistillError(f"{path}: {listing} is not in UTF-8: save it so") from error
    for line in filter(None, map(str.strip, lines)):
        file = next((place for place in (listing.parent / line, root / line) if place.is_file()), None)
        if file is None:
            missing.append(line)
        elif _is_image(line):
            images.append(_normalize(file))
    if missing:
        of_all = f"{len(missing)} of the {len(images) + len(missing)} images that {listing} lists"
        raise DistillError(f"{path}: {of_all} are not there, first {missing[0]}")
    return images


def _normalize(place: Path) -> Path:
    """`place`, absolute; without '..' if that is the same place. Symbolic links are kept."""
    plain = Path(os.path.abspath(place))
    return plain if not place.exists() or (plain.exists() and plain.samefile(place)) else place.absolute()


def _is_image(name: str) -> bool:
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def _any_labels(images: list[Path]) -> bool:
    return any(file.is_file() for file in label_files(images))
