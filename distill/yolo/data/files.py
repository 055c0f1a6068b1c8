"""Where the files of a data set lie: image files, each once; their label files; and paths as people write them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from distill.yolo.upstream import IMG_FORMATS, VID_FORMATS, img2label_paths

FORMATS = ", ".join(sorted(IMG_FORMATS))


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def is_video(name: str) -> bool:
    """Whether a file is named like a video."""
    return name.rpartition(".")[-1].lower() in VID_FORMATS


def find_images(folder: Path, wanted: Callable[[str], bool] = is_image) -> list[Path]:
    """Every file in `folder` and below it that is named like an image, sorted.

    Links are followed, but no folder is entered twice.

    Args:
        folder: where to look.
        wanted: whether a name is one of those that are looked for.
    """
    entered, found, waiting = set(), [], [str(folder)]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(place)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            found += [Path(place, name) for name in names if wanted(name)]
            # After all others: an image is then named by the folder that it lies in, not by a link to that.
            waiting += [link for name in sorted(folders) if os.path.islink(link := os.path.join(place, name))]
    return sorted(found)


def label_files(images: Iterable[Path]) -> list[Path]:
    """The label file of each image, whether it exists or not: `.../images/x.jpg` has `.../labels/x.txt`."""
    return [Path(file) for file in img2label_paths([str(image) for image in images])]


def any_labels(images: Sequence[Path]) -> bool:
    """Whether there is a label file for any of the images."""
    return any(file.is_file() for file in label_files(images))


def identities(images: Iterable[str | Path]) -> list[str]:
    """For each image a text that is the same for all ways to it through linked folders."""
    pairs = [os.path.split(image) for image in images]
    real = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in pairs}}
    return [os.path.join(real[folder], name) for folder, name in pairs]


def once(images: Sequence[Path]) -> list[Path]:
    """The images without those that are there already by another way."""
    return list(dict(zip(reversed(identities(images)), reversed(images), strict=True)).values())


def shared(images: Sequence[Path], others: Sequence[Path]) -> set[Path]:
    """Those of the images that are among the others: the same file, or another one with the same content."""
    known = set(identities(others))
    found = {image for image, name in zip(images, identities(images), strict=True) if name in known}
    rest = [image for image in images if image not in found]
    by_size: dict[int, list[Path]] = defaultdict(list)
    for other in others if rest else ():
        by_size[other.stat().st_size].append(other)
    digest = cache(lambda file: hashlib.sha256(file.read_bytes()).digest())
    for image in rest:
        alike = by_size.get(image.stat().st_size, ())
        if alike and digest(image) in map(digest, alike):
            found.add(image)
    return found


def locate(written: str, folders: Iterable[Path], exists: Callable[[str], bool] = os.path.exists) -> Path | None:
    r"""Where a path leads that somebody wrote, or None.

    Args:
        written: relative or absolute, perhaps with `~`, or with the `\` of Windows.
        folders: what it may be relative to; the first one counts where it is there.
        exists: what must hold of the place.
    """
    folders = list(folders)
    for text in dict.fromkeys((written, written.replace("\\", "/"))):
        for folder in folders:
            place = os.path.join(folder, os.path.expanduser(text))
            if exists(place):
                return normalize(Path(place))
    return None


def normalize(place: Path) -> Path:
    """`place`, absolute; without '..' if that is the same place. Symbolic links are kept."""
    plain = os.path.abspath(place)
    same = not os.path.exists(place) or os.path.exists(plain) and os.path.samefile(plain, place)
    return Path(plain) if same else place.absolute()
