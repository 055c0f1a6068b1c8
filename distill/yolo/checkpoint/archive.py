"""Looks through a checkpoint's file without running it: whether it is one, and which names its pickle uses."""

from __future__ import annotations

import pickletools
import shlex
import stat
import zipfile
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.machine.words import printable
from distill.yolo.checkpoint.unpickle import INSTRUCTIONS, Reader, full_name

_MOST_BYTES = 2**32  # of a file; the largest YOLO takes a third, its optimizer included
_MOST_PICKLED = 2**24  # bytes of the pickle, and below its instructions: 30 and 10 times those of the largest YOLO
_MOST_INSTRUCTIONS = 2**21


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
        # Some programs on Windows write backslashes.
        self._records = {info.filename.replace("\\", "/"): info for info in self._zip.infolist()}
        if any(name.endswith("/constants.pkl") for name in self._records):
            raise DistillError(f"{path} is a TorchScript export: give the .pt that training saved")
        pickles = [name for name in self._records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise DistillError(f"{path} is a zip file, but not a PyTorch checkpoint: give the .pt that training saved")
        _check_sizes(path, self._zip.infolist(), self._records[pickles[0]])
        self._folder = pickles[0].removesuffix("data.pkl")
        try:
            self._pickle = self._zip.read(self._records[pickles[0]])
            order = self._records.get(f"{self._folder}byteorder")
            big_endian = order is not None and self._zip.read(order) != b"little"
        except Exception as error:  # zipfile has many for a damaged file
            raise damaged(path, error) from error
        if big_endian:
            raise DistillError(f"{path} was written on a big-endian machine: save it again on another")
        try:
            self.names = _names(path, self._pickle)
        except DistillError:
            raise
        except Exception as error:  # pickletools has many for a damaged file
            raise damaged(path, error) from error

    def load(
        self,
        modules: Mapping[str, type[nn.Module]],
        ignored: Collection[str] = (),
        methods: Collection[tuple[type, str]] = (),
    ) -> Any:
        """Unpickle the file: names become the classes in `modules`, objects of those in `ignored` become `Ignored`.

        `methods`: see `Reader`.

        Raises:
            DistillError: the pickle uses a name that is in neither and not in `PLAIN`, or does not hold together.
        """
        try:
            return Reader(self._pickle, self._read_storage, modules, ignored, methods).read()
        except Exception as error:  # a malformed pickle can end in any exception at all
            raise damaged(self.path, error) from error

    def _read_storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = self._records[f"{self._folder}data/{key}"]
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {info.file_size} bytes, not {count} of {dtype}")
        return torch.frombuffer(bytearray(self._zip.read(info)), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def damaged(path: Path, error: BaseException) -> DistillError:
    """The error for a file that does not hold together."""
    return DistillError(f"{path} is damaged ({printable(first_line(error), 200)}): copy or download it again")


def again(path: Path, *changes: str) -> str:
    """The line of Python that loads a checkpoint as `c`, changes it, and saves it beside itself.

    Args:
        path: the checkpoint.
        changes: statements in between.
    """
    load = f"c = torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    save = f"torch.save(c, {str(path.with_name(f'{path.stem}-again.pt'))!r})"
    return f"save it again in Python: {'; '.join(['import torch', load, *changes, save])}"


def _check_sizes(path: Path, records: list[zipfile.ZipInfo], pickled: zipfile.ZipInfo) -> None:
    """Refuse a zip that torch.save has not written: its parts are as long as they are in the file."""
    unpacked, packed = sum(info.file_size for info in records), path.stat().st_size
    if unpacked > packed or any(info.compress_type or info.file_size != info.compress_size for info in records):
        sizes = f"{packed:,} to {unpacked:,} bytes"
        raise DistillError(
            f"{path} is compressed inside, as torch.save never does (it would unpack from {sizes}): refused; if you trust "
            f"the file, {again(path)}"
        )
    if pickled.file_size > _MOST_PICKLED:
        raise DistillError(f"{path} has a pickle of {pickled.file_size:,} bytes, as no YOLO has: refused")


def _check_kind(path: Path) -> None:
    """Refuse what is no zip file, and say what it is. Nothing is read but the start of an ordinary file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path, status.st_mode)
        start = b""
        if status.st_size:  # a file of the kernel has none, and can wait for ever
            with path.open("rb") as file:
                start = file.read(64)
    except FileNotFoundError as error:
        other = Path(str(path).replace("\\", "/"))
        hint = f", did you mean '{other}'?" if other != path and other.exists() else ""
        raise DistillError(f"{path}: no such checkpoint{hint}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DistillError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not start:
        raise DistillError(f"{path} is empty (0 bytes): copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise DistillError(f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull'")
    if start.startswith(b"\x80"):
        raise DistillError(
            f"{path} is in PyTorch's format from before version 1.6: if you trust the file, " + again(path)
        )
    if not start.startswith(b"PK"):
        raise DistillError(f"{path} is not a PyTorch checkpoint{_what(start)}: give the .pt that training saved")
    if status.st_size > _MOST_BYTES:
        raise DistillError(f"{path} has {status.st_size:,} bytes, as no YOLO has: refused")


def _no_file(path: Path, mode: int) -> DistillError:
    if not stat.S_ISDIR(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
        return DistillError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'something')}, not a file: give the .pt file")
    if inner := next((each for each in (path, *sorted(path.glob("*"))) if (each / "data.pkl").is_file()), None):
        parent, name = shlex.quote(str(inner.parent)), shlex.quote(inner.name)
        return DistillError(
            f"{path} is a checkpoint that was unpacked like a zip file: pack it again, uncompressed: "
            f"(cd {parent} && zip -0 -r again.pt {name})"
        )
    return DistillError(f"{path} is a folder: give the .pt file in it")


def _what(start: bytes) -> str:
    """What a file of another kind is, by its first bytes."""
    kinds = {
        b"<": "a web page or XML",
        b"\x08": "an ONNX file",
        b"\x1f\x8b": "packed with gzip",
        b"\x89HDF": "a Keras file",
    }
    kinds |= {b"Rar!": "packed with RAR", b"7z": "packed with 7-Zip"}
    return next((f", but {kind}" for magic, kind in kinds.items() if start.lstrip().startswith(magic)), "")


def _names(path: Path, data: bytes) -> tuple[str, ...]:
    """Disassemble a pickle: the names it uses. Raises ValueError for what torch.save does not write."""
    if data[:1] == b"\x80" and data[1:2] > b"\x02":
        deque(pickletools.genops(data), maxlen=0)  # whether it is whole
        raise DistillError(
            f"{path} was saved with pickle protocol {data[1]}, and only torch.save's own, 2, is read: if you trust the "
            f"file, {again(path)}"
        )
    names: dict[str, None] = {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name not in INSTRUCTIONS:
            raise ValueError(f"pickle instruction {instruction.name}")
        if count > _MOST_INSTRUCTIONS:
            raise ValueError("more pickle instructions than any network has")
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise ValueError("pickle memo out of range")
        if instruction.name == "GLOBAL":
            names[full_name(*str(argument).split(" ", 1))] = None
    return tuple(names)
