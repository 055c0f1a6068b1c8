"""A `data.yaml` read as ultralytics reads it, but checked, and without what its own reader does on the way.

`ultralytics.data.utils.check_det_dataset` runs the file's `download:` script when images are missing, fetches a font,
and follows symbolic links before it looks for labels, so that it finds none where `images/` is a link. None of it here.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError
from distill.yolo.upstream import DATASETS_DIR, IMG_FORMATS, img2label_paths


@dataclass(frozen=True)
class DataFile:
    """What a data.yaml says, with its paths resolved: `root` is its data folder, `train` and `val` are image files."""

    path: Path
    root: Path
    names: dict[int, str]
    train: tuple[Path, ...]
    val: tuple[Path, ...]


def read(path: Path) -> DataFile:
    """Read a data.yaml. Raises `DistillError` for all that is wrong with it: the first thing, in one line."""
    content = _parse(path)
    channels = content.get("channels", 3)
    if channels != 3:
        raise DistillError(f"{path}: 'channels: {channels}': only images of 3 channels are supported")
    if "val" not in content and "validation" in content:
        content["val"] = content["validation"]
    root = _root(path, content.get("path"))
    train, val = (_split(path, root, key, content.get(key)) for key in ("train", "val"))
    return DataFile(path, root, _class_names(path, content), train, val)


def find_images(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it, sorted."""
    found = glob.glob(os.path.join(glob.escape(str(folder)), "**", "*.*"), recursive=True)
    return sorted(Path(file) for file in found if _is_image(file))


def label_files(images: list[Path] | tuple[Path, ...]) -> list[Path]:
    """Where the label of each image is looked for: `.../images/x.jpg` has it in `.../labels/x.txt`."""
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
        named = {int(key): str(value) for key, value in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise DistillError(f"{path}: 'names' must be a list of class names, or a mapping from id to name") from None
    if sorted(named) != list(range(len(named))) or not named:
        raise DistillError(f"{path}: the ids in 'names' must be 0, 1, 2, ... without a gap")
    if count not in (None, len(named)):
        raise DistillError(f"{path}: 'nc: {count}', but 'names' has {len(named)}: {', '.join(named.values())}")
    return dict(sorted(named.items()))


def _root(path: Path, stated: Any) -> Path:
    """The data folder. Beside the file first: where a command is run from must not decide what data it reads."""
    beside = path.absolute().parent
    if stated is None:
        return beside
    if not isinstance(stated, str):
        raise DistillError(f"{path}: 'path: {stated}' must be a folder")
    places = [place / Path(stated).expanduser() for place in (beside, Path.cwd(), DATASETS_DIR)]
    for place in places:
        if place.is_dir():
            return _tidy(place)
    raise DistillError(
        f"{path}: 'path: {stated}' is not there (looked for {', '.join(str(p) for p in dict.fromkeys(places))})"
    )


def _split(path: Path, root: Path, key: str, stated: Any) -> tuple[Path, ...]:
    if not stated:
        what = "the images that results are measured on" if key == "val" else "the images to learn from"
        raise DistillError(f"{path}: has no '{key}': give the folder of {what}")
    entries = stated if isinstance(stated, list) else [stated]
    images: list[Path] = []
    for entry in entries:
        if not isinstance(entry, str):
            raise DistillError(
                f"{path}: '{key}: {entry}' must be a folder of images, a .txt list of them, or a list of those"
            )
        images += _expand(path, root, key, entry)
    return tuple(sorted(images))


def _expand(path: Path, root: Path, key: str, entry: str) -> list[Path]:
    """The images of one folder or one .txt list."""
    # Roboflow writes '../train/images' into a data.yaml that lies beside train/; ultralytics forgives it, so it is common.
    places = [root / entry] + ([root / entry[3:]] if entry.startswith("../") else [])
    place = next((_tidy(place) for place in places if place.exists()), None)
    if place is None:
        raise DistillError(f"{path}: '{key}: {entry}' is not there (looked for {_tidy(places[0])})")
    if place.is_dir():
        images = find_images(place)
        if not _any_labels(images) and place.resolve() != place:
            linked = find_images(place.resolve())
            images = linked if _any_labels(linked) else images
    elif _is_image(place.name):
        images = [place]
    elif place.suffix.lower() == ".txt":
        images = _listed(path, place, root)
    else:
        raise DistillError(f"{path}: '{key}: {entry}' is neither a folder of images nor a .txt list of them")
    if not images:
        raise DistillError(
            f"{path}: '{key}: {entry}' holds no images (looked for {', '.join(sorted(IMG_FORMATS))} in {place})"
        )
    return images


def _listed(path: Path, listing: Path, root: Path) -> list[Path]:
    """The images that a .txt names, one a line, each relative to the list, to the data folder, or absolute."""
    images, missing = [], []
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DistillError(f"{path}: {listing} is not in UTF-8: save it so") from error
    for line in filter(None, map(str.strip, lines)):
        found = next((place for place in (listing.parent / line, root / line) if place.is_file()), None)
        if found is None:
            missing.append(line)
        elif _is_image(line):
            images.append(_tidy(found))
    if missing:
        total = len(images) + len(missing)
        raise DistillError(
            f"{path}: {len(missing)} of the {total} images that {listing} lists are not there, first {missing[0]}"
        )
    return images


def _tidy(place: Path) -> Path:
    """`place`, absolute and without '..', where that is the same place; symbolic links are kept."""
    plain = Path(os.path.abspath(place))
    return plain if not place.exists() or (plain.exists() and plain.samefile(place)) else place.absolute()


def _is_image(name: str) -> bool:
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def _any_labels(images: list[Path]) -> bool:
    return any(file.is_file() for file in label_files(images))
