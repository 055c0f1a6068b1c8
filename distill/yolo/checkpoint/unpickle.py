"""A PyTorch checkpoint opened without running anything that is in it.

A checkpoint is a pickle, and unpickling calls whatever the file names, with the arguments that the file gives. An
allow-list of classes alone does not make that safe: an allowed class can be called as well as restored, and
`DetectionModel(cfg)`, say, evaluates strings of its `cfg`. So, in this order:

1. The file must be a zip as torch.save writes it, whose parts are not larger than the file (`archive.py`).
2. The pickle is disassembled: only the instructions that torch.save uses, only names on the list (there too).
3. It is read by the `Reader` below, not by Python's unpickler. A module is a stand-in that remembers its state, a tensor
   is made here, and nothing else is called or changed. Keys are text and numbers.
4. Nothing in the result may hold itself or be shared without end (`bounds.py`).
5. Only then does each stand-in become the module it stands for, by taking its class and state (`stand_ins.py`). No constructor runs.
"""

from __future__ import annotations

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.yolo.checkpoint.bounds import check_bounds
from distill.yolo.checkpoint.stand_ins import GraphParts, Ignored, StandIn, restore

_MOST_EXPANDED = 2**21  # values of all tensors that repeat their storage
_MOST_SHARED = 4  # tensors to a storage, by the values of all of them
_MOST_PLACES = 64  # of a tensor: where it starts, and size and stride of each dimension
_MOST_OBJECTS = 2**17  # tensors, modules and the like

_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
METHOD = "builtins.getattr"  # how a method that is an attribute is pickled
GRAPH = "torch.fx.graph_module.reduce_graph_module"  # a module as its parts, and code that is not run here

_STORAGES: dict[str, torch.dtype] = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
}
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()}
_PLAIN_KINDS = (str, int, float, type(None))  # bool is an int


class _Builder(NamedTuple):
    """What the pickle may call: a function of ours that checks its arguments."""

    make: Callable[..., Any]


class Reader:
    """Reads a pickle into plain data, tensors and modules.

    Args:
        data: the pickle, of whose instructions `archive.py` has seen that this class knows each.
        read_storage: (key, dtype, number of values) -> the values.
        modules: names -> the classes that they stand for.
        ignored: names whose objects become `Ignored`.
        methods: classes of `modules` with the name of a method that an attribute may be; it becomes `Ignored`.
    """

    def __init__(
        self,
        data: bytes,
        read_storage: Callable[[str, torch.dtype, int], Tensor],
        modules: Mapping[str, type[nn.Module]],
        ignored: Collection[str],
        methods: Collection[tuple[type, str]] = (),
    ) -> None:
        self._data, self._read_storage = data, read_storage
        self._storages: dict[str, tuple[torch.dtype, Tensor]] = {}
        self._left, self._objects_left = _MOST_EXPANDED, _MOST_OBJECTS  # values of tensors, objects
        self._stand_ins: list[Any] = []
        self._names: dict[str, Any] = {**_STORAGES, **_DTYPES, **dict.fromkeys(ignored, Ignored), **modules}
        self._names |= {name: _Builder(make) for name, make in _BUILDERS.items()}
        self._names |= {_TENSOR: _Builder(self._tensor), GRAPH: _Builder(self._without_code)}
        self._names |= {METHOD: _Builder(self._method)} if methods else {}
        self._methods = methods
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Read the pickle, then give every stand-in its class and state.

        Raises:
            UnpicklingError, or whatever a pickle that does not hold together leads to.
        """
        for instruction, argument, _ in pickletools.genops(self._data):
            _INSTRUCTIONS[instruction.name](self, argument)
        content = self._stack.pop()
        check_bounds(content)
        restore(self._stand_ins)
        return content

    # --- instructions ---

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _global(self, argument: str) -> None:
        name = full_name(*argument.split(" ", 1))
        if name not in self._names:
            raise UnpicklingError(f"'{name}' is not allowed")
        self._push(self._names[name])

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items))

    def _last(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise UnpicklingError("values for something that is no list")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, StandIn) and target.becomes is Ignored:
            return
        if type(target) not in (dict, OrderedDict):
            raise UnpicklingError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _call(self, new: bool) -> None:
        called, arguments = self._last(2)
        if not isinstance(arguments, tuple):
            raise UnpicklingError("a call without arguments")
        self._objects_left -= 1
        if self._objects_left < 0:
            raise UnpicklingError("more objects than any network has")
        if isinstance(called, _Builder) and not new:
            self._push(called.make(*arguments))
        elif isinstance(called, type) and issubclass(called, (nn.Module, Ignored)):
            self._push(self._stand_in(called))  # the arguments do nothing
        else:
            raise UnpicklingError("a call of something that cannot be called")

    def _build(self, _: Any) -> None:
        target, state = self._last(2)
        self._push(target)
        if isinstance(target, StandIn):
            target.state = state if target.becomes is not Ignored else None
        elif type(target) is not OrderedDict:  # those of weights have a `_metadata`, which is left behind
            raise UnpicklingError("state for something that has none")

    def _storage(self, _: Any) -> None:
        kind, dtype, key, _, count = self._stack.pop()  # the fourth is the device it was on
        known = isinstance(dtype, torch.dtype) and type(key) is str and type(count) is int
        if kind != "storage" or not known:
            raise UnpicklingError("a storage of an unknown kind")
        if key not in self._storages:
            self._storages[key] = dtype, self._read_storage(key, dtype, count)
            self._left += _MOST_SHARED * count
        if self._storages[key][0] is not dtype:
            raise UnpicklingError(f"storage {key} has two types")
        self._push(self._storages[key][1])

    # --- what it builds ---

    def _stand_in(self, becomes: type) -> StandIn:
        self._stand_ins.append(StandIn(becomes))
        return self._stand_ins[-1]

    def _method(self, owner: Any, name: Any) -> StandIn:
        """builtins.getattr, of a class: nothing is looked up."""
        if not isinstance(owner, type) or (owner, name) not in self._methods:
            raise UnpicklingError("a method that no module has for an attribute")
        return self._stand_in(Ignored)

    def _without_code(self, parts: Any, *_: Any) -> StandIn:
        """torch.fx.graph_module.reduce_graph_module, which would execute the code that follows the parts."""
        item = self._stand_in(GraphParts)
        item.state = parts
        return item

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """torch._utils._rebuild_tensor_v2; what follows the stride (gradient, hooks) is left behind."""
        places = isinstance(size, tuple) and isinstance(stride, tuple) and (offset, *size, *stride)
        numbers = places and len(places) <= _MOST_PLACES and all(type(n) is int and n >= 0 for n in places)
        if not isinstance(storage, Tensor) or not numbers:
            raise UnpicklingError("a tensor of an unknown kind")
        # A stride of 0 could make a terabyte of a byte. The original YOLOv5 keeps its anchors so, over the whole grid.
        self._left -= math.prod(size)
        if self._left < 0:
            raise UnpicklingError("tensors larger than their storages")
        return storage.as_strided(size, stride, offset).clone()


def full_name(module: str, name: str) -> str:
    """A dotted name; Python 2's `__builtin__` is `builtins`."""
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _key(key: Any) -> Any:
    """A key of a dict or set. Anything else than text and numbers could take for ever to hash."""
    if not isinstance(key, _PLAIN_KINDS):
        raise UnpicklingError("a key that is neither text nor a number")
    return key


def _parameter(data: Any, requires_grad: Any, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise UnpicklingError("a parameter without values")
    return nn.Parameter(data, requires_grad=requires_grad is True)


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if not isinstance(pairs, (list, tuple)):
        raise UnpicklingError("a dict of something that is no list")
    return OrderedDict((_key(key), value) for key, value in pairs)


def _set(values: Any = ()) -> set[Any]:
    if not isinstance(values, list):
        raise UnpicklingError("a set of something that is no list")
    return {_key(value) for value in values}


def _size(sizes: Any = ()) -> torch.Size:
    if not isinstance(sizes, tuple):
        raise UnpicklingError("a size of something that is no tuple")
    return torch.Size(sizes)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "torch.Size": _size,
    _PARAMETER: _parameter,
}

#: Names that every checkpoint may use.
PLAIN = frozenset((_TENSOR, *_BUILDERS, *_STORAGES, *_DTYPES))

# The instructions of pickle protocol 2 that pickling data, tensors and modules leads to. Each gets its argument.
_INSTRUCTIONS: dict[str, Callable[[Any, Any], None]] = {
    **dict.fromkeys(("PROTO", "STOP"), lambda reader, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), Reader._push),
    "NONE": lambda reader, _: reader._push(None),
    "NEWTRUE": lambda reader, _: reader._push(True),
    "NEWFALSE": lambda reader, _: reader._push(False),
    "EMPTY_TUPLE": lambda reader, _: reader._push(()),
    "EMPTY_LIST": lambda reader, _: reader._push([]),
    "EMPTY_DICT": lambda reader, _: reader._push({}),
    "MARK": lambda reader, _: reader._marks.append(len(reader._stack)),
    "TUPLE": lambda reader, _: reader._tuple(reader._since_mark()),
    "TUPLE1": lambda reader, _: reader._tuple(reader._last(1)),
    "TUPLE2": lambda reader, _: reader._tuple(reader._last(2)),
    "TUPLE3": lambda reader, _: reader._tuple(reader._last(3)),
    "APPEND": lambda reader, _: reader._extend(reader._last(1)),
    "APPENDS": lambda reader, _: reader._extend(reader._since_mark()),
    "SETITEM": lambda reader, _: reader._set_items(reader._last(2)),
    "SETITEMS": lambda reader, _: reader._set_items(reader._since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda reader, place: reader._memo.update({place: reader._stack[-1]})),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda reader, place: reader._push(reader._memo[place])),
    "GLOBAL": Reader._global,
    "REDUCE": lambda reader, _: reader._call(new=False),
    "NEWOBJ": lambda reader, _: reader._call(new=True),
    "BUILD": Reader._build,
    "BINPERSID": Reader._storage,
}
INSTRUCTIONS = frozenset(_INSTRUCTIONS)
