"""Where the sizes in the shape of a view come from: they follow a cut, or a module must be told of it, or neither.

While a network is traced, numbers remember where they are from. A size has an *origin*: a plain number that is written
down, `OPEN` for -1, a leaf (a size that was read off a tensor, or a number that a module stores), or whole-number
arithmetic on them. The nodes of the trace carry the origins (`origins_of`) and say which tensor was read (`reads_of`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Origin = Any  # a number, OPEN, Read, Attribute or Arithmetic
OPEN = "open"
_READ, _ORIGINS = "prune.read", "prune.origins"  # in what a trace keeps of its user's for each node


class Read(NamedTuple):
    """The size of dimension `dim` of tensor number `tensor` of those that were read."""

    tensor: int
    dim: int
    value: int


class Attribute(NamedTuple):
    """A whole number that the module at `path` stores."""

    path: str
    name: str
    value: int


class Arithmetic(NamedTuple):
    """What an operator makes of two origins."""

    function: Callable[[int, int], int]
    left: Origin
    right: Origin


def origins_of(node: Node) -> tuple[Origin, ...] | None:
    """Of the sizes of a view; None if they are not known, as within a function of torch."""
    return node.meta.get("custom", {}).get(_ORIGINS)


def reads_of(graph: Graph) -> dict[int, Node]:
    """Number of a tensor whose size was read -> its node."""
    return {node.meta["custom"][_READ]: node for node in graph.nodes if _READ in node.meta.get("custom", {})}


def evaluate(origin: Origin, values: Mapping[Origin, int]) -> int:
    """The size if these leaves have other values."""
    if origin in values:
        return values[origin]
    if isinstance(origin, Arithmetic):
        return origin.function(evaluate(origin.left, values), evaluate(origin.right, values))
    return origin.value if isinstance(origin, (Read, Attribute)) else origin


def leaves(origin: Origin) -> set[Read | Attribute]:
    """What a size is computed from."""
    if isinstance(origin, Arithmetic):
        return leaves(origin.left) | leaves(origin.right)
    return {origin} if isinstance(origin, (Read, Attribute)) else set()


class _Size(int):
    """A whole number with an origin."""

    origin: Origin
    watch: SizeWatch

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.watch.elsewhere |= leaves(self.origin)
        return int.__pow__(self, other)

    def __truediv__(self, other: Any) -> Any:
        self.watch.elsewhere |= leaves(self.origin)
        return int.__truediv__(self, other)


def _size(value: int, origin: Origin, watch: SizeWatch) -> _Size:
    made = _Size(value)
    made.origin, made.watch = origin, watch
    return made


def _origin(value: Any) -> Origin:
    return OPEN if value == -1 else _number(value)


def _keeping(name: str, reverse: bool) -> Callable[[Any, Any], Any]:
    function = getattr(operator, name)

    def operation(self: Any, other: Any) -> Any:
        left, right = (other, self) if reverse else (self, other)
        plain = getattr(int, f"__r{name}__" if reverse else f"__{name}__")(self, other)
        if type(plain) is not int:
            return plain
        return _size(plain, Arithmetic(function, _number(left), _number(right)), self.watch)

    return operation


def _number(value: Any) -> Origin:
    return value.origin if isinstance(value, _Size) else int(value)


for _name in ("add", "sub", "mul", "floordiv"):
    setattr(_Size, f"__{_name}__", _keeping(_name, False))
    setattr(_Size, f"__r{_name}__", _keeping(_name, True))

_VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)
_UNFLATTEN = (Tensor.unflatten, torch.unflatten)


class SizeWatch(TorchFunctionMode):
    """While it is entered, a trace of a network notes the origin of every size of a view.

    Attributes:
        elsewhere: Leaves that are used for more than the shapes of views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: set[Origin] = set()
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.shape.__get__, Tensor.size):  # type: ignore[attr-defined]
            return self._read(args[0], [*args[1:], *(kwargs or {}).values()], result)
        if func in (*_VIEWS, *_UNFLATTEN) and not kwargs:
            self._note(func, args, result)
        else:
            numbers = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Size)]
            self.elsewhere |= {leaf for number in numbers for leaf in leaves(number.origin)}
        return result

    def _read(self, tensor: Tensor, asked: list[Any], result: Any) -> Any:
        kept = _kept(tensor)
        if kept is None:
            return result
        if _READ not in kept:
            kept[_READ], self._count = self._count, self._count + 1
        if isinstance(result, tuple):
            return torch.Size([_size(size, Read(kept[_READ], dim, size), self) for dim, size in enumerate(result)])
        with torch._C.DisableTorchFunction():
            dim = int(asked[0]) % tensor.dim()
        return _size(result, Read(kept[_READ], dim, result), self)

    def _note(self, func: Any, args: Any, result: Tensor) -> None:
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if func in _UNFLATTEN:  # the other dimensions stay as they are
            with torch._C.DisableTorchFunction():
                dim, rank = args[1] % args[0].dim(), args[0].dim()
            sizes = [*[-1] * dim, *args[2], *[-1] * (rank - dim - 1)]
        kept = _kept(result)
        if kept is not None and all(isinstance(size, int) for size in sizes):
            kept[_ORIGINS] = tuple(map(_origin, sizes))

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """For a while, the numbers that modules store have an origin too."""
        stored = {}
        for path, module in model.named_modules():
            if not type(module).__module__.startswith("torch."):
                numbers = {name: value for name, value in vars(module).items() if type(value) is int}
                stored[module] = numbers
                vars(module).update({n: _size(v, Attribute(path, n, v), self) for n, v in numbers.items()})
        try:
            with self:
                yield
        finally:
            for module, numbers in stored.items():
                vars(module).update(numbers)


def _kept(tensor: Tensor) -> dict[str, Any] | None:
    """What the trace that is going on keeps for the node of a tensor."""
    mode = get_innermost_proxy_mode()
    slot = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node.meta.setdefault("custom", {})
