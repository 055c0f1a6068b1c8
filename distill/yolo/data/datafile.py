"""A `data.yaml` read as ultralytics reads it, but checked, and without the side effects of its reader.

`ultralytics.data.utils.check_det_dataset` runs the file's `download:` script if images are missing, fetches a font, and
follows symbolic links before it looks for labels, so that it finds none if `images/` is a link.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.words import brief
from distill.yolo.data.classes import class_names
from distill.yolo.data.document import parse, read_text
from distill.yolo.data.files import FORMATS, any_labels, find_images, is_image, locate, normalize, once
from distill.yolo.data.keypoints import keys_of, shape_of
from distill.yolo.upstream import DATASETS_DIR

_PATH_WIDTH = 200  # of a path in a message


@dataclass(frozen=True)
class DataFile:
    """The content of a data.yaml with its paths resolved."""

    root: Path  # the data folder
    names: dict[int, str]
    train: tuple[Path, ...]  # image files
    val: tuple[Path, ...]
    keypoints: dict[str, Any]  # what it says of keypoints, by its keys; empty if it has none
    notes: tuple[str, ...]  # what was read in another way than one may think


def read(path: Path) -> DataFile:
    """Read a data.yaml. Raises `DistillError` for the first mistake in it, in one line."""
    content = parse(path)
    channels = content.get("channels", 3)
    if channels != 3:
        raise DistillError(f"{path}: 'channels: {brief(channels)}': only images of 3 channels are supported")
    if "val" not in content and "validation" in content:
        content["val"] = content["validation"]
    root = _root(path, content.get("path"))
    names, notes = class_names(path, content)
    splits: dict[str, tuple[Path, ...]] = {}
    for key in ("train", "val"):
        images = _split(path, root, key, content.get(key))
        splits[key] = tuple(sorted(once(images)))
        if again := len(images) - len(splits[key]):
            notes.append(f"'{key}' lists {again} images more than once: each counts once")
    return DataFile(root, names, splits["train"], splits["val"], keys_of(content), tuple(notes))


def names_in(path: Path) -> dict[int, str]:
    """The class names of a data.yaml by id. Raises `DistillError`."""
    return class_names(path, parse(path))[0]


def keypoints_in(path: Path) -> tuple[int, int] | None:
    """Points of an object and numbers of each in a data.yaml; None if it has no keypoints. Raises `DistillError`."""
    return shape_of(keys_of(parse(path)))


def _root(path: Path, value: Any) -> Path:
    """The data folder. Beside the file first: the current folder must not decide which data a command reads."""
    beside = path.absolute().parent
    if value is None:
        return beside
    if not isinstance(value, str):
        raise DistillError(f"{path}: 'path: {brief(value)}' must be a folder")
    if folder := locate(value, (beside, Path.cwd(), DATASETS_DIR), os.path.isdir):
        return folder
    tried = dict.fromkeys(
        os.path.join(folder, os.path.expanduser(value)) for folder in (beside, Path.cwd(), DATASETS_DIR)
    )
    places = ", ".join(brief(place, _PATH_WIDTH) for place in tried)
    raise DistillError(f"{path}: 'path: {brief(value)}' is not there (looked for {places}){_hint(value)}")


def _split(path: Path, root: Path, key: str, value: Any) -> list[Path]:
    if not value:
        purpose = "the images that results are measured on" if key == "val" else "the images to learn from"
        raise DistillError(f"{path}: has no '{key}': give the folder of {purpose}")
    images: list[Path] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            kinds = "a folder of images, a .txt list of them, or a list of those"
            raise DistillError(f"{path}: '{key}: {brief(entry)}' must be {kinds}")
        images += _expand(path, root, key, entry)
    return images


def _expand(path: Path, root: Path, key: str, entry: str) -> list[Path]:
    """The images of one folder or one .txt list."""
    # Roboflow writes '../train/images' into a data.yaml beside train/. ultralytics accepts it, so it is common.
    inside = [entry[3:]] if entry.startswith(("../", "..\\")) else []
    place = next((place for text in [entry, *inside] if (place := locate(text, [root]))), None)
    named = f"{path}: '{key}: {brief(entry)}'"
    if place is None:
        looked_for = brief(normalize(root / os.path.expanduser(entry)), _PATH_WIDTH)
        raise DistillError(f"{named} is not there (looked for {looked_for}){_hint(entry) or _near(root, entry)}")
    if place.is_dir():
        images = find_images(place)
        if not any_labels(images) and place.resolve() != place:
            linked = find_images(place.resolve())
            images = linked if any_labels(linked) else images
    elif is_image(place.name):
        images = [place]
    elif place.suffix.lower() == ".txt" and place.is_file():
        images = read_list(path, place, root)
    else:
        raise DistillError(f"{named} is neither a folder of images nor a .txt list of them")
    if not images:
        raise DistillError(f"{named} holds no images (looked for {FORMATS} in {place})")
    return images


def read_list(path: Path, listing: Path, root: Path) -> list[Path]:
    """The images that a .txt names, one a line: relative to the list or to the data folder, or absolute.

    Args:
        path: what names the list, for messages.
        listing: the .txt.
        root: the data folder.

    Raises:
        DistillError: the list cannot be read, or an image is not there.
    """
    images, missing = [], []
    try:
        lines = read_text(listing).splitlines()
    except OSError as error:
        raise DistillError(f"{path}: {listing} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DistillError(f"{path}: {listing} {error}") from error
    for line in filter(None, (line.strip().strip("\"'") for line in lines)):
        file = locate(line, (listing.parent, root), os.path.isfile)
        if file is None:
            missing.append(line)
        elif is_image(line):
            images.append(file)
    if missing:
        of_all = f"{len(missing)} of the {len(images) + len(missing)} images that {listing} lists"
        first = brief(missing[0], _PATH_WIDTH)
        raise DistillError(f"{path}: {of_all} are not there, first {first}{_hint(missing[0])}")
    return images


def _near(root: Path, written: str) -> str:
    """The folder whose name is most like a path that leads nowhere, if there is one: `Images/Train` for `images/train`."""
    place, found = root, ""
    for part in Path(written.replace("\\", "/")).parts[:20]:
        inside = sorted(Path(entry).name for entry in glob.glob(f"{glob.escape(str(place))}/*/"))
        like = {name.casefold(): name for name in inside}
        name = part if part in inside else like.get(part.casefold(), "")
        if part not in (".", "..") and not name:
            name = next(iter(difflib.get_close_matches(part, inside, n=1)), "")
            if not name:
                return ""
        place, found = place / (name or part), os.path.join(found, name or part)
    return f", did you mean '{found}'?"


def _hint(written: str) -> str:
    """What may be wrong with a path that leads nowhere."""
    if re.search(r"[\x00-\x1f]", written):
        return ": in double quotes a backslash is no part of a path: write /"
    if re.match(r"[A-Za-z]:[\\/]", written) and os.sep == "/":
        return ": it is a path of Windows: give one of this machine"
    if written.startswith(("http://", "https://")):
        return ": nothing is downloaded here: give a folder"
    if re.search(r"[*?]", written):
        return ": wildcards are not read: give the folder, or a list"
    return ""
