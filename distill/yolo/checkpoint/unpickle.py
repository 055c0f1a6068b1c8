"""A PyTorch checkpoint opened without running anything that is in it.

A checkpoint is a pickle, and unpickling calls whatever the file names, with the arguments that the file gives. An
allow-list of classes alone does not make that safe: an allowed class can be called as well as restored, and
`DetectionModel(cfg)`, say, evaluates strings of its `cfg`. So, in this order:

1. The file must be a zip as torch.save writes it, and not unpack to more than it could (`archive.py`).
2. The pickle is disassembled, not run: only the instructions that torch.save uses, only names on the list (there too).
3. It is unpickled into plain data. Each module is a stand-in that remembers its state, each tensor is made here.
4. Only then does each stand-in become the module it stands for, by taking its class and state. No constructor runs.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MOST_EXPANDED = 2**21  # values of all tensors that repeat their storage
_MOST_SHARED = 4  # tensors to a storage, by the values of all of them

_CHILDREN: dict[str, type] = {"modules": nn.Module, "parameters": nn.Parameter, "buffers": Tensor}  # of a module
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
GRAPH = "torch.fx.graph_module.reduce_graph_module"  # a module as its parts, and code that is not run here

# Safe to call with any arguments.
_CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "torch.Size": torch.Size,
}
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

#: Names that every checkpoint may use.
PLAIN = frozenset((_TENSOR, _PARAMETER, *_CONTAINERS, *_STORAGES, *_DTYPES))


class Ignored:
    """Stands for an object that a network does not need: a loss, a path, a number of numpy's."""


class GraphParts(nn.Module):
    """Stands for a module that torch.fx wrote: its parts, without its code."""


class Reader(pickle.Unpickler):
    """Builds plain data, tensors and stand-ins; `read` then turns the stand-ins into modules."""

    def __init__(
        self, data: bytes, read_storage: Any, modules: Mapping[str, type[nn.Module]], ignored: Collection[str]
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._read_storage = read_storage
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}
        self._left = _MOST_EXPANDED  # values that tensors may still take
        self._stand_ins: list[Any] = []
        self._becomes: dict[type, type] = {}
        self._allowed: dict[str, Any] = {**_CONTAINERS, **_STORAGES, **_DTYPES}
        self._allowed |= {_TENSOR: self._tensor, _PARAMETER: self._parameter}
        self._allowed |= {name: self._stand_in(Ignored) for name in ignored}
        self._allowed |= {name: self._stand_in(module) for name, module in modules.items()}
        self._graph = self._stand_in(GraphParts)
        self._allowed[GRAPH] = self._without_code

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; nothing is imported."""
        full = full_name(module, name)
        if full not in self._allowed:
            raise pickle.UnpicklingError(f"'{full}' is not allowed")
        return self._allowed[full]

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, read from the file."""
        kind, dtype, key, _, count = pid  # the fourth is the device it was on
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if (key, dtype) not in self._storages:
            self._storages[key, dtype] = self._read_storage(key, dtype, count)
            self._left += _MOST_SHARED * count
        return self._storages[key, dtype]

    def read(self) -> Any:
        """Load the pickle, then give every stand-in its class and state."""
        content = self.load()
        modules = []
        for item in self._stand_ins:
            state = vars(item).pop("state", None)
            item.__class__ = self._becomes[type(item)]
            if isinstance(item, nn.Module):
                item.__setstate__(_checked(state))
                modules.append(item)
        for module in modules:
            for key, value in list(vars(module).items()):
                if isinstance(value, Ignored):
                    del vars(module)[key]
            for kind, expected in _CHILDREN.items():
                if not all(child is None or isinstance(child, expected) for child in vars(module)[f"_{kind}"].values()):
                    raise pickle.UnpicklingError(f"something else among the {kind} of a module")
        return content

    def _stand_in(self, becomes: type) -> type:
        """A class of its own for each name and each file, so that a hostile pickle has nothing lasting to change."""
        stand_ins = self._stand_ins

        class StandIn:
            def __new__(cls, *args: Any) -> Any:
                item = super().__new__(cls)
                stand_ins.append(item)
                return item

            def __init__(self, *args: Any) -> None: ...

            def __setstate__(self, state: Any) -> None:
                vars(self)["state"] = state

        self._becomes[StandIn] = becomes
        return StandIn

    def _without_code(self, parts: Any, *_: Any) -> Any:
        """torch.fx.graph_module.reduce_graph_module, which would execute the code that follows the parts."""
        item = self._graph()
        item.__setstate__(parts)
        return item

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        """torch._utils._rebuild_tensor_v2; what follows the stride (gradient, hooks) is left behind."""
        # A stride of 0 could make a terabyte of a byte. The original YOLOv5 keeps its anchors so, over the whole grid.
        self._left -= math.prod(size)
        if self._left < 0:
            raise pickle.UnpicklingError("tensors larger than their storages")
        return storage.as_strided(size, stride, offset).clone()

    def _parameter(self, data: Tensor, requires_grad: bool, *_: Any) -> nn.Parameter:
        return nn.Parameter(data, requires_grad=bool(requires_grad))


def full_name(module: str, name: str) -> str:
    """A dotted name; Python 2's `__builtin__` is `builtins`."""
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _checked(state: Any) -> dict[str, Any]:
    """A module's state, without hooks: those could only be other objects of the file."""
    if not isinstance(state, dict) or not all(isinstance(state.get(f"_{k}"), dict) for k in _CHILDREN):
        raise pickle.UnpicklingError("a module without its parts")
    return {key: OrderedDict() if "_hooks" in key else value for key, value in state.items()}
