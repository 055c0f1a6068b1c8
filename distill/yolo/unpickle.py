"""A PyTorch checkpoint opened without running anything that is in it.

A checkpoint is a pickle, and unpickling calls whatever the file names, with the arguments that the file gives. An
allow-list of classes alone does not make that safe: an allowed class can be called as well as restored, and
`DetectionModel(cfg)`, say, evaluates strings of its `cfg`. So, in this order:

1. The file must be a zip as torch.save writes it, and not unpack to more than it could.
2. The pickle is disassembled, not run: only the instructions that torch.save uses, only names on the list.
3. It is unpickled into plain data. Each module is a stand-in that remembers its state, each tensor is made here.
4. Only then does each stand-in become the module it stands for, by taking its class and state. No constructor runs.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError

_MOST_EXPANDED = 2**21  # values of all tensors that repeat their storage
_MOST_SHARED = 4  # tensors to a storage, by the values of all of them
_MOST_TUPLES = 2**16  # nested in each other and hashed, more than these would overflow the stack
_MOST_UNPACKED = 4  # times the file's size; torch.save does not compress, so an honest file has 1

# The instructions of pickle protocol 2 that pickling data, tensors and modules leads to.
_INSTRUCTIONS = frozenset(
    {
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS"),
    }
)

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
    """Stands for an object that is not needed and therefore not made: a loss, a path, a number of numpy's."""


class Archive:
    """A checkpoint file, opened and looked through; nothing in it is unpickled before `load`.

    Attributes:
        path: the file.
        names: every dotted name that its pickle uses, in order of appearance. Python 2's `__builtin__` is `builtins`.

    Raises:
        DistillError: no file, or not a checkpoint as torch.save writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_kind(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DistillError(f"{path} is damaged or cut short: copy or download it again") from error
        records = self._zip.namelist()
        if any(name.endswith("/constants.pkl") for name in records):
            raise DistillError(f"{path} is a TorchScript export: give the .pt that training saved")
        pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise DistillError(f"{path} is a zip file, but not a PyTorch checkpoint: give the .pt that training saved")
        unpacked, packed = sum(info.file_size for info in self._zip.infolist()), path.stat().st_size
        if unpacked > _MOST_UNPACKED * packed:
            raise DistillError(
                f"{path} would unpack from {packed:,} to {unpacked:,} bytes, as no checkpoint does: refused"
            )
        self._folder = pickles[0].removesuffix("data.pkl")
        try:
            self._pickle = self._zip.read(pickles[0])
            self.names = _names(self._pickle)
            order = self._zip.read(f"{self._folder}byteorder") if f"{self._folder}byteorder" in records else b"little"
        except Exception as error:  # zlib, zipfile and pickletools have many for a damaged file
            raise DistillError(f"{path} is damaged ({_reason(error)}): copy or download it again") from error
        if order != b"little":
            raise DistillError(f"{path} was written on a big-endian machine: save it again on another")

    def load(
        self,
        modules: Mapping[str, type[nn.Module]],
        ignored: Collection[str] = (),
        graph: type[nn.Module] | None = None,
    ) -> Any:
        """Unpickle the file.

        Args:
            modules: which class each name stands for; the names may be another project's.
            ignored: names whose objects become `Ignored`.
            graph: what a module that torch.fx wrote becomes, with the parts of that and without its code.

        Raises:
            DistillError: the pickle uses a name that is in neither and not in `PLAIN`, or does not hold together.
        """
        reader = _Reader(self._pickle, self._read_storage, modules, ignored, graph)
        try:
            content = reader.load()
            reader.finish()
        except Exception as error:  # a malformed pickle can end in any exception at all
            raise DistillError(f"{self.path} is damaged ({_reason(error)}): copy or download it again") from error
        return content

    def _read_storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = self._zip.getinfo(f"{self._folder}data/{key}")
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes, not {count} of {dtype}")
        return torch.frombuffer(bytearray(self._zip.read(info)), dtype=dtype) if count else torch.empty(0, dtype=dtype)


class _Reader(pickle.Unpickler):
    """Builds plain data, tensors and stand-ins; `finish` then turns the stand-ins into modules."""

    def __init__(
        self,
        data: bytes,
        read_storage: Any,
        modules: Mapping[str, type[nn.Module]],
        ignored: Collection[str],
        graph: type[nn.Module] | None,
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._read_storage = read_storage
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}
        self._left = _MOST_EXPANDED  # values that tensors may still take
        self._made: list[Any] = []
        self._becomes: dict[type, type] = {}
        self._known: dict[str, Any] = {**_CONTAINERS, **_STORAGES, **_DTYPES}
        self._known |= {_TENSOR: self._tensor, _PARAMETER: self._parameter}
        self._known |= {name: self._stand_in(Ignored) for name in ignored}
        self._known |= {name: self._stand_in(module) for name, module in modules.items()}
        if graph is not None:
            self._graph = self._stand_in(graph)
            self._known[GRAPH] = self._without_code

    def find_class(self, module: str, name: str) -> Any:
        full = _full_name(module, name)
        if full not in self._known:
            raise pickle.UnpicklingError(f"'{full}' is not allowed")
        return self._known[full]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid  # the fourth is the device it was on
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if (key, dtype) not in self._storages:
            self._storages[key, dtype] = self._read_storage(key, dtype, count)
            self._left += _MOST_SHARED * count
        return self._storages[key, dtype]

    def finish(self) -> None:
        """Give every stand-in its class and state."""
        modules = []
        for item in self._made:
            state = vars(item).pop("state", None)
            item.__class__ = self._becomes[type(item)]
            if isinstance(item, nn.Module):
                item.__setstate__(_checked(state))
                modules.append(item)
        for module in modules:
            for key, value in list(vars(module).items()):
                if isinstance(value, Ignored):
                    del vars(module)[key]
            _check_children(module)

    def _stand_in(self, becomes: type) -> type:
        """A class of its own for each name and each file, so that a hostile pickle has nothing lasting to change."""
        made = self._made

        class StandIn:
            def __new__(cls, *args: Any) -> Any:
                item = super().__new__(cls)
                made.append(item)
                return item

            def __init__(self, *args: Any) -> None: ...

            def __setstate__(self, state: Any) -> None:
                vars(self)["state"] = state

        self._becomes[StandIn] = becomes
        return StandIn

    def _without_code(self, parts: Any, *_: Any) -> Any:
        """torch.fx.graph_module.reduce_graph_module, which would execute the code that follows the parts."""
        made = self._graph()
        made.__setstate__(parts)
        return made

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        """torch._utils._rebuild_tensor_v2; what follows the stride (gradient, hooks) is left behind."""
        # A stride of 0 could make a terabyte of a byte. The original YOLOv5 keeps its anchors so, over the whole grid.
        self._left -= math.prod(size)
        if self._left < 0:
            raise pickle.UnpicklingError("tensors larger than their storages")
        return storage.as_strided(size, stride, offset).clone()

    def _parameter(self, data: Tensor, requires_grad: bool, *_: Any) -> nn.Parameter:
        return nn.Parameter(data, requires_grad=bool(requires_grad))


def _check_kind(path: Path) -> None:
    """Say what a file is that is no zip."""
    if path.is_dir():
        raise DistillError(f"{path} is a folder: give the .pt file in it")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise DistillError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise DistillError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start:
        raise DistillError(f"{path} is empty (0 bytes): copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise DistillError(f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull'")
    if start.startswith(b"\x80"):
        raise DistillError(
            f"{path} is in PyTorch's format from before version 1.6: load it with torch.load where you trust it, "
            "and torch.save it again"
        )
    if not start.startswith(b"PK"):
        raise DistillError(f"{path} is not a PyTorch checkpoint: give the .pt that training saved")


def _names(data: bytes) -> tuple[str, ...]:
    """Disassemble a pickle: the names it uses. Raises ValueError for what torch.save does not write."""
    if data[:1] == b"\x80" and data[1:2] > b"\x02":
        raise ValueError(f"pickle protocol {data[1]} where torch.save uses 2")
    names: dict[str, None] = {}
    tuples = 0
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"pickle instruction {instruction.name}")
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(data):  # an array of that size would be made
            raise ValueError("pickle memo out of range")
        tuples += instruction.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if tuples > _MOST_TUPLES:
            raise ValueError("more tuples than any network has")
        if instruction.name == "GLOBAL":
            names[_full_name(*str(argument).split(" ", 1))] = None
    return tuple(names)


def _full_name(module: str, name: str) -> str:
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _checked(state: Any) -> dict[str, Any]:
    """A module's state, without hooks: those could only be other objects of the file."""
    if not isinstance(state, dict) or not all(isinstance(state.get(f"_{k}"), dict) for k in _CHILDREN):
        raise pickle.UnpicklingError("a module without its parts")
    return {key: OrderedDict() if "_hooks" in key else value for key, value in state.items()}


_CHILDREN: dict[str, type] = {"modules": nn.Module, "parameters": nn.Parameter, "buffers": Tensor}


def _check_children(module: nn.Module) -> None:
    for kind, wanted in _CHILDREN.items():
        if not all(child is None or isinstance(child, wanted) for child in vars(module)[f"_{kind}"].values()):
            raise pickle.UnpicklingError(f"something else among the {kind} of a module")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
