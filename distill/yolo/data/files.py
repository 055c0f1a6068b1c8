"""Where the files of a data set lie: image files, each once; their label files; and paths as people write them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from distill.yolo.upstream import IMG_FORMATS, img2label_paths

FORMATS = ", ".join(sorted(IMG_FORMATS))


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def find_images(folder: Path) -> list[Path]:
    """Every image file in `folder` and below it, sorted. Links are followed, but no folder is entered twice."""
    entered, found, waiting = set(), [], [str(folder)]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(place)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            found += [Path(place, name) for name in names if is_image(name)]
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
