"""What a data.yaml says of keypoints: how many an object has, how they change places in a mirror, how far they may spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.words import brief

KEYS = ("kpt_shape", "flip_idx", "kpt_oks_sigmas", "kpt_names")
_MOST = 1000  # points of an object


def keys_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a data.yaml on keypoints, as they are written."""
    return {key: content[key] for key in KEYS if content.get(key) is not None}


def shape_of(keys: Mapping[str, Any]) -> tuple[int, int] | None:
    """Points of an object and numbers of each, of `kpt_shape: [17, 3]`; None if it is no such pair."""
    shape = keys.get("kpt_shape")
    if not isinstance(shape, (list, tuple)) or len(shape) != 2:
        return None
    if not all(type(number) is int and 0 < number < _MOST for number in shape):
        return None
    return shape[0], shape[1]


def check(path: Path, keys: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse keys from which a pose model cannot learn.

    Args:
        path: the data.yaml, for messages.
        keys: those that it has.
        wanted: the `kpt_shape` of the model; empty if nobody knows.

    Raises:
        DistillError: one is missing, wrong, or not the model's.
    """
    if "kpt_shape" not in keys:
        raise DistillError(
            f"{path}: has no 'kpt_shape', and this model finds keypoints: give data for poses, or add kpt_shape: [17, 3] "
            "(points of an object; 3 numbers of each, or 2 without visibility)"
        )
    shape = shape_of(keys)
    if shape is None or shape[1] not in (2, 3):
        raise DistillError(
            f"{path}: 'kpt_shape: {brief(keys['kpt_shape'])}' must be points of an object and 2 or 3 numbers of each, as in [17, 3]"
        )
    if wanted.get("kpt_shape", list(shape)) != list(shape):
        raise DistillError(
            f"{path}: 'kpt_shape: {list(shape)}', and the model has {wanted['kpt_shape']}: give the data that it was trained on"
        )
    points, flip, spreads = shape[0], keys.get("flip_idx"), keys.get("kpt_oks_sigmas")
    if flip is not None and not (isinstance(flip, list) and _ids(flip) == list(range(points))):
        raise DistillError(
            f"{path}: 'flip_idx: {brief(flip)}' must have each of the {points} points once, in the order of a mirror image"
        )
    if spreads is not None and not (
        isinstance(spreads, list) and len(spreads) == points and all(map(_is_spread, spreads))
    ):
        raise DistillError(f"{path}: 'kpt_oks_sigmas: {brief(spreads)}' must be {points} numbers above 0, one a point")


def _ids(values: list[Any]) -> list[int]:
    return sorted(value for value in values if type(value) is int)


def _is_spread(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
