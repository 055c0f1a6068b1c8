"""Files of weights: read without executing what is pickled in them, and told from those of other networks."""

from __future__ import annotations

import argparse
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("timm", "torchvision")
UNREADABLE = (Exception,)  # a file that is damaged or holds something else may raise anything


def read(path: Path) -> Any:
    """What a file holds: tensors, plain data and the namespace of a command line.

    Raises:
        UNREADABLE: it is none, or holds something else.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # of timm

        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def architecture_in(content: Any) -> tuple[str, str] | None:
    """Library and name of the architecture that a file's content says; None if it says none."""
    if not isinstance(content, dict):
        return None
    ours, args = content.get("distill"), content.get("args")
    if isinstance(ours, dict) and "library" in ours and "arch" in ours:
        return str(ours["library"]), str(ours["arch"])
    if isinstance(content.get("arch"), str) and "state_dict" in content:  # timm's trainer
        return "timm", content["arch"]
    name = getattr(args, "model", None)
    if isinstance(name, str) and "model" in content:  # the reference scripts of torchvision
        return "torchvision", name
    return None


def is_classifier(model: str | Path) -> bool:
    """Whether `model` of a recipe is a classifier: a name of a library's, or a file that says one. timm is not imported."""
    text = str(model)
    try:
        file = Path(text).expanduser()
        status = file.stat() if file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no path at all
        status = None
    if status is None:
        return text.startswith(tuple(f"{library}/" for library in LIBRARIES))
    return _says_one(file, status.st_mtime_ns, status.st_size)


@lru_cache
def _says_one(file: Path, changed: int, size: int) -> bool:
    """`changed` and `size`: a file that was written again is read again."""
    try:
        return architecture_in(read(file)) is not None
    except UNREADABLE:
        return False
