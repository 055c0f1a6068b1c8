"""Looks through a checkpoint's file without running it: whether it is one, and which names its pickle uses."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.yolo.checkpoint.unpickle import Reader, full_name

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
            sizes = f"{packed:,} to {unpacked:,} bytes"
            raise DistillError(f"{path} would unpack from {sizes}, as no checkpoint does: refused")
        self._folder = pickles[0].removesuffix("data.pkl")
        try:
            self._pickle = self._zip.read(pickles[0])
            self.names = _names(self._pickle)
            order = self._zip.read(f"{self._folder}byteorder") if f"{self._folder}byteorder" in records else b"little"
        except Exception as error:  # zlib, zipfile and pickletools have many for a damaged file
            raise DistillError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error
        if order != b"little":
            raise DistillError(f"{path} was written on a big-endian machine: save it again on another")

    def load(self, modules: Mapping[str, type[nn.Module]], ignored: Collection[str] = ()) -> Any:
        """Unpickle the file: names become the classes in `modules`, objects of those in `ignored` become `Ignored`.

        Raises:
            DistillError: the pickle uses a name that is in neither and not in `PLAIN`, or does not hold together.
        """
        try:
            return Reader(self._pickle, self._read_storage, modules, ignored).read()
        except Exception as error:  # a malformed pickle can end in any exception at all
            raise DistillError(f"{self.path} is damaged ({first_line(error)}): copy or download it again") from error

    def _read_storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = self._zip.getinfo(f"{self._folder}data/{key}")
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes, not {count} of {dtype}")
        return torch.frombuffer(bytearray(self._zip.read(info)), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _check_kind(path: Path) -> None:
    """Refuse a file that is no zip, and say what it is."""
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
            f"{path} is in PyTorch's format from before version 1.6: load it with torch.load if you trust it, "
            "and torch.save it again"
        )
    if not start.startswith(b"PK"):
        raise DistillError(f"{path} is not a PyTorch checkpoint: give the .pt that training saved")


def _names(data: bytes) -> tuple[str, ...]:
    """Disassemble a pickle: the names it uses. Raises ValueError for what torch.save does not write."""
    if data[:1] == b"\x80" and data[1:2] > b"\x02":
        raise ValueError(f"pickle protocol {data[1]}, and torch.save uses 2")
    names: dict[str, None] = {}
    tuples = 0
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"pickle instruction {instruction.name}")
        # The unpickler would allocate an array of that size.
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise ValueError("pickle memo out of range")
        tuples += instruction.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if tuples > _MOST_TUPLES:
            raise ValueError("more tuples than any network has")
        if instruction.name == "GLOBAL":
            names[full_name(*str(argument).split(" ", 1))] = None
    return tuple(names)
