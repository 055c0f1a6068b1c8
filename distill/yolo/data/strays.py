"""Label files that lie where nobody reads them: beside the image, in another folder, with another name or format."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.machine.words import abridge
from distill.yolo.data.files import is_image, label_files

_KINDS = (".txt", ".xml", ".json")
_FOLDERS = 2000  # that are looked into, at most
_DEPTH = 4  # of folders below the one that holds `images`


def find(unlabelled: Sequence[Path]) -> str:
    """What looks like labels of images that have none, as half a sentence; empty if there is nothing.

    Args:
        unlabelled: images of which the label file is not there.
    """
    listed = list(_listing({_base(image) for image in unlabelled}))
    taken = set(label_files([Path(folder, name) for folder, names in listed for name in names if is_image(name)]))
    by_stem = defaultdict(list)
    for folder, names in listed:
        for name in names:
            stem, kind = os.path.splitext(name)
            if kind.lower() in _KINDS and (file := Path(folder, name)) not in taken:
                by_stem[stem.casefold()].append(file)
    groups: dict[tuple[Path, str], list[tuple[Path, Path]]] = defaultdict(list)
    for image, expected in zip(unlabelled, label_files(unlabelled), strict=True):
        for file in next(filter(None, (by_stem.get(stem) for stem in _stems(image.name))), []):
            groups[file.parent, file.suffix].append((file, expected))
    return abridge([_line(files) for files in sorted(groups.values(), key=len, reverse=True)], "; ")


def _line(files: Sequence[tuple[Path, Path]]) -> str:
    """One kind of stray with an example."""
    file, expected = files[0]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    if file.suffix.lower() != ".txt":
        return f"{file}{more} ({file.suffix[1:].lower()} is not read: convert to YOLO's .txt)"
    return f"{file}{more} (read would be {expected})"


def _stems(name: str) -> Iterator[str]:
    """How a label of the image may be called: `a.jpg.jpg` may have a.jpg.txt, a.txt or a.jpg.jpg.txt."""
    yield name.casefold()
    while is_image(name):
        name = os.path.splitext(name)[0]
        yield name.casefold()


def _base(image: Path) -> str:
    """The folder that holds `images`, or the one of the image."""
    head, images, _ = str(image).rpartition(f"{os.sep}images{os.sep}")
    return head if images and head else str(image.parent)


def _listing(bases: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders at and below the bases with the names of their files; not too many."""
    left, seen = _FOLDERS, set()
    for base in sorted(bases):
        for folder, folders, names in os.walk(base):
            if folder in seen or left == 0:
                folders.clear()
                continue
            seen.add(folder)
            left -= 1
            deep = os.path.relpath(folder, base).count(os.sep) + 1 >= _DEPTH
            folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
            yield folder, names
