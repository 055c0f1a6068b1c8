"""Which sizes of a view a forward computes from shapes: they follow a cut, and those that are written down do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune.program.raw import unchanged

Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # before and after a view


class _Read(int):
    """A size that was read off a tensor, and what whole-number arithmetic makes of it."""


def _keeping(name: str) -> Callable[[Any, Any], Any]:
    plain = getattr(int, name)

    def operation(self: Any, other: Any) -> Any:
        result = plain(self, other)
        return _Read(result) if type(result) is int else result

    return operation


for _name in ("add", "sub", "mul", "floordiv", "radd", "rsub", "rmul", "rfloordiv"):
    setattr(_Read, f"__{_name}__", _keeping(f"__{_name}__"))

_VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)


class _Watch(TorchFunctionMode):
    """Notes for every view which of its sizes were read, or left open as -1."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[Shapes, set[int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.shape.__get__, Tensor.size):  # type: ignore[attr-defined]
            return tuple(map(_Read, result)) if isinstance(result, tuple) else _Read(result)
        if func in _VIEWS and not kwargs:
            sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
            with torch._C.DisableTorchFunction():
                shapes = tuple(args[0].shape), tuple(result.shape)
            open_ = {dim for dim, size in enumerate(sizes) if isinstance(size, _Read) or size == -1}
            self.read[shapes] = self.read.get(shapes, open_) & open_
        return result


def sizes_read(model: nn.Module, x: Tensor) -> dict[Shapes, set[int]]:
    """Per pair of shapes before and after a view: the dimensions whose size no such view has written down.

    Empty if the model does not run on sizes that are watched.
    """
    with torch.no_grad(), unchanged(model), _Watch() as watch:
        try:
            model(x.clone())
        except (TypeError, ValueError, AttributeError, RuntimeError):  # the forward wants a torch.Size, say
            return {}
    return watch.read
