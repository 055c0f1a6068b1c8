"""Stand-ins for the objects of a checkpoint, and how they become modules without a constructor being run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any

from torch import Tensor, nn

_CHILDREN: dict[str, type] = {"modules": nn.Module, "parameters": nn.Parameter, "buffers": Tensor}  # of a module


class StandIn:
    """An object of a file, with its state, before it becomes what it stands for."""

    def __init__(self, becomes: type) -> None:
        self.becomes, self.state = becomes, None


class Ignored:
    """Stands for an object that a network does not need: a loss, a path, a number of numpy's."""


class GraphParts(nn.Module):
    """Stands for a module that torch.fx wrote: its parts, without its code."""


def restore(items: Sequence[Any]) -> None:
    """Make every stand-in of a file what it stands for: its class and its state.

    Raises:
        UnpicklingError: a module that does not hold together.
    """
    for item in items:
        _restore(item)
    for item in items:
        if isinstance(item, nn.Module):
            _check_module(item)


def _restore(item: Any) -> None:
    becomes, state = item.becomes, item.state
    vars(item).clear()
    item.__class__ = becomes
    if isinstance(item, nn.Module):
        item.__setstate__(_checked(state))


def _checked(state: Any) -> dict[str, Any]:
    """A module's state, without hooks: those could only be other objects of the file."""
    if not isinstance(state, dict) or not all(isinstance(state.get(f"_{k}"), dict) for k in _CHILDREN):
        raise UnpicklingError("a module without its parts")
    if not all(isinstance(key, str) for key in state):
        raise UnpicklingError("a module with a part that has no name")
    return {key: OrderedDict() if "_hooks" in key else value for key, value in state.items()}


def _check_module(module: nn.Module) -> None:
    """Refuse parts of another kind than their place, and drop what stands for an object that is not needed."""
    for key, value in list(vars(module).items()):
        if isinstance(value, Ignored):
            del vars(module)[key]
        elif key != "type" and callable(getattr(type(module), key, None)):  # ultralytics keeps a name in `type`
            raise UnpicklingError(f"'{key}' of a {type(module).__name__} is not its own")
    for kind, expected in _CHILDREN.items():
        children = vars(module)[f"_{kind}"]
        if not all(isinstance(name, str) for name in children):
            raise UnpicklingError(f"a name that is no text among the {kind} of a module")
        if not all(child is None or isinstance(child, expected) for child in children.values()):
            raise UnpicklingError(f"something else among the {kind} of a module")
