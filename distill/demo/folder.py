"""A generated data set in a folder: drawn once, and used again if it is the one that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from distill.errors import DistillError
from distill.machine.files import write_atomically

SPLITS = ("train", "val")
RECORD = "shapes.json"  # what a set was drawn with
_LEAST = {"train": 1, "val": 1, "imgsz": 32, "seed": 0}


def draw_once(
    folder: Path, settings: Mapping[str, int], write: Callable[[Path], object], files: Mapping[str, int]
) -> None:
    """Write a data set, or check that an existing one was made with the same values and is complete.

    Args:
        folder: where it goes; it appears complete or not at all.
        settings: what it is drawn with, `train`, `val`, `imgsz` and `seed` among them.
        write: draws it into a folder.
        files: how many files there are afterwards, by pattern.

    Raises:
        DistillError: a value out of range, or a folder that holds something else.
        RunError: the folder could not be written.
    """
    for name, least in _LEAST.items():
        if settings[name] < least:
            raise DistillError(f"shapes.{name} is {settings[name]}: it must be at least {least}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        _check(folder, settings, files)
        return

    def write_all(draft: Path) -> None:
        write(draft)
        (draft / RECORD).write_text(json.dumps(settings) + "\n", encoding="utf-8")

    write_atomically(folder, write_all)


def _check(folder: Path, settings: Mapping[str, int], files: Mapping[str, int]) -> None:
    """Refuse a folder that does not hold the complete data set of these settings."""
    try:
        saved = dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DistillError(f"{folder} exists and is no data set of shapes: choose another folder") from None
    if different := [name for name in settings if saved.get(name) != settings[name]]:
        text = ", ".join(f"{name} {saved.get(name)} (wanted {settings[name]})" for name in different)
        raise DistillError(f"{folder} holds another set of shapes: {text}; delete it or choose another")
    for pattern, count in files.items():
        if len(list(folder.glob(pattern))) != count:
            text = f"{folder}/{Path(pattern).parent} no longer has its {count} files"
            raise DistillError(f"{text}: delete {folder}, and it is drawn again")
