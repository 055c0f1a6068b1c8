"""How far the objects of a checkpoint may be nested and shared: a file of a kilobyte can hold a tree without end."""

from __future__ import annotations

from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any

from distill.yolo.checkpoint.stand_ins import StandIn

_MOST_LEVELS = 100
_MOST_VALUES = 2**22  # values and characters; what is shared counts each time that it appears


def check_bounds(content: Any) -> None:
    """Refuse content whose walk would not end, or not soon: what holds itself, deep nesting, shared parts of shared parts.

    Args:
        content: lists, tuples, sets, dicts and stand-ins in each other; everything else counts as one value.

    Raises:
        UnpicklingError: it is such.
    """
    extents: dict[int, tuple[int, int]] = {}  # id -> (values, levels) in it
    open_ids: set[int] = set()  # of those around the one that is walked
    todo = [(content, False)]
    while todo:
        value, walked = todo.pop()
        if walked:
            parts = [extents.get(id(part)) or (1 + _length(part), 0) for part in _parts(value)]
            values, levels = 1 + sum(each for each, _ in parts), 1 + max((each for _, each in parts), default=0)
            if values > _MOST_VALUES or levels > _MOST_LEVELS:
                raise UnpicklingError("values are nested or shared further than in any network")
            extents[id(value)] = values, levels
            open_ids.remove(id(value))
        elif id(value) in open_ids:
            raise UnpicklingError("a value holds itself")
        elif id(value) not in extents and _is_container(value):
            open_ids.add(id(value))
            todo.append((value, True))
            todo.extend((part, False) for part in _parts(value) if _is_container(part))


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, set, StandIn))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, StandIn):
        yield value.state
        return
    yield from value
    if isinstance(value, dict):
        yield from value.values()


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0
