"""Checkpoints that attack who opens them, each made by code: they call, they hang, they fill the memory, they lie.

`hostile_files` gives them by name. A call that would be made touches the file `MARKER` beside the checkpoint.
"""

from __future__ import annotations

import copy
import os
import socket
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.distill.yolo.originals import tiny

MARKER = "executed"
Make = Callable[[Path], object]

# What attackers call, as module and name, with arguments for which it touches the marker, or would do other harm.
_CALLS: dict[str, tuple[Any, ...]] = {
    "posix system": ("touch {marker}",),
    "os popen": ("touch {marker}",),
    "subprocess Popen": (("touch", "{marker}"),),
    "subprocess check_output": (("touch", "{marker}"),),
    "builtins eval": ("open('{marker}', 'w')",),
    "builtins exec": ("open('{marker}', 'w')",),
    "__builtin__ eval": ("open('{marker}', 'w')",),
    "builtins open": ("{marker}", "w"),
    "io open": ("{marker}", "w"),
    "builtins getattr": ("x", "upper"),
    "builtins __import__": ("antigravity",),
    "importlib import_module": ("antigravity",),
    "pathlib Path.touch": ("{marker}",),
    "pathlib PosixPath": ("{marker}",),
    "shutil rmtree": ("{marker}",),
    "os remove": ("{marker}",),
    "runpy run_path": ("{marker}",),
    "pickle loads": (b"cos\nsystem\n(S'touch {marker}'\ntR.",),
    "_pickle loads": (b"",),
    "marshal loads": (b"",),
    "types FunctionType": (),
    "types CodeType": (),
    "functools partial": (),
    "operator attrgetter": ("system",),
    "operator methodcaller": ("system", "touch {marker}"),
    "ctypes CDLL": ("libc.so.6",),
    "code interact": (),
    "pdb set_trace": (),
    "timeit timeit": ("open('{marker}', 'w')",),
    "cProfile run": ("open('{marker}', 'w')",),
    "urllib.request urlopen": ("http://127.0.0.1:9/",),
    "socket create_connection": (("127.0.0.1", 9),),
    "webbrowser open": ("http://127.0.0.1:9/",),
    "multiprocessing.util spawnv_passfds": (),
    "numpy load": ("{marker}",),
    "numpy.testing._private.utils runstring": ("open('{marker}', 'w')", {}),
    "numpy.core.multiarray scalar": (),
    "_codecs encode": ("x", "latin1"),
    "torch load": ("{marker}",),
    "torch.hub load": ("a/b", "c"),
    "torch.jit load": ("{marker}",),
    "torch.storage _load_from_bytes": (b"",),
    "torch.utils.cpp_extension load_inline": ("x", "y"),
    "torch._utils _rebuild_device_tensor_from_numpy": (),
    "torch.fx.graph_module _exec_with_source": ("open('{marker}', 'w')", {}),
    "torch.fx._symbolic_trace Tracer": (),
    "torch.nn.modules.module Module.load_state_dict": (),
    "torch.nn.modules.container os.system": ("touch {marker}",),
    "ultralytics.nn.tasks torch_safe_load": ("{marker}",),
    "ultralytics.nn.tasks DetectionModel": ("{config}",),
    "ultralytics.nn.tasks parse_model": ("{config}", 3),
    "ultralytics.nn.modules.block sys.exit": (),
    "ultralytics.utils.downloads download": ("http://127.0.0.1:9/",),
    "ultralytics.utils.checks check_requirements": ("antigravity",),
    "ultralytics.utils.files increment_path": ("{marker}",),
    "ultralytics.utils.patches torch_load": ("{marker}",),
    "distill.yolo.checkpoint.unpickle Reader": (),
    "models.yolo Model": ("{marker}",),
    "models.common os.system": ("touch {marker}",),
}


class Named:
    """A callable that pickles under a name of the attacker's, and is called with arguments of his."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...]) -> None:
        self.module, self.name, self.arguments = module, name, arguments


def pickled(value: Any) -> bytes:
    """A small pickler: data, `Named` calls, `Raw` instructions."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Named):
        return b"c" + f"{value.module}\n{value.name}\n".encode() + pickled(value.arguments) + b"R"
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, bytes):
        return b"c_codecs\nencode\n" + pickled((value.decode("latin1"), "latin1")) + b"R"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    return b"N"


class Raw(bytes):
    """Instructions as they are."""


def zipped(path: Path, data: bytes, records: Mapping[str, bytes] | None = None, **options: Any) -> None:
    """A zip file as torch.save makes it, with a pickle of one's own. `options` are those of `writestr`."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("best/data.pkl", b"\x80\x02" + data + b".", **options)
        for name, content in (records or {}).items():
            file.writestr(f"best/{name}", content, **options)


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> Raw:
    """A storage of the file."""
    return Raw(b"(" + pickled("storage") + f"ctorch\n{kind}\n".encode() + pickled((key, "cpu", count))[1:] + b"Q")


def tensor(size: Any, stride: Any, count: int = 4, offset: Any = 0, kind: str = "FloatStorage") -> Raw:
    """A tensor on a storage of `count` values."""
    arguments = (storage(count, kind), offset, size, stride, False, Named("collections", "OrderedDict", ()))
    return Raw(pickled(Named("torch._utils", "_rebuild_tensor_v2", arguments)))


def _doubled(start: bytes, twice: bytes, levels: int = 64) -> Raw:
    """Something that holds the last something twice, and so on: 2 ** levels values."""
    parts = [b"(" + start + b"q\x00"]
    for _ in range(levels):
        parts.append(twice + b"q\x00")
    return Raw(b"".join(parts) + b"t")


TUPLES = _doubled(b")", b"h\x00\x86")
LISTS = _doubled(b"]", b"](h\x00h\x00e")
DICTS = _doubled(b"}", b"}(K\x01h\x00K\x02h\x00u")
ITSELF = Raw(b"]q\x00h\x00a")
DEEP = Raw(b"]" * 200_000 + b"a" * 199_999)
FOUR = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}


def _pickles() -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """Pickles by name, with the records beside them."""
    one = tensor((4,), (1,))
    states = {
        "a tensor, its values and hooks": one + pickled((True, {"hook": 1}, {"grad": 1})),
        "a tensor, as its __setstate__ reads it": one + pickled((storage(4), 0, (2**40,), (0,))),
        "a parameter": pickled(Named("torch._utils", "_rebuild_parameter", (one, True, None))) + pickled({"grad": 3}),
        "a class": b"cultralytics.nn.modules.conv\nConv\n" + pickled({"forward": 1}),
        "a function": b"ctorch._utils\n_rebuild_tensor_v2\n" + pickled(({"__code__": 1}, {"__code__": 1})),
        "a type of numbers": b"ctorch\nfloat32\n" + pickled({"x": 1}),
        "a list": b"]" + pickled({"x": 1}),
        "a dict": b"}" + pickled({"x": 1}),
        "text": pickled("x") + pickled({"x": 1}),
    }
    keys = {
        "a tuple that holds itself twice, 64 times": TUPLES,
        "a tuple of tuples, deep": Raw(b")" + b"\x85" * 1_000_000),
        "a tensor": one,
        "a list": Raw(b"]"),
        "a module": Raw(b"ctorch.nn.modules.container\nSequential\n)\x81"),
        "a class": Raw(b"ctorch.nn.modules.container\nSequential\n"),
    }
    instructions = {
        "INST": b"(X\x01\x00\x00\x00xios\nsystem\n", "OBJ": b"(cos\nsystem\no", "POP": b"K\x010", "DUP": b"K\x012",
        "PERSID": b"Pevil\n", "EXT1": b"\x82\x01", "STACK_GLOBAL": b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",
        "NEWOBJ_EX": b"cos\nsystem\n)}\x92", "BYTEARRAY8": b"\x96" + b"\xff" * 7 + b"\x00", "FROZENSET": b"(\x91",
        "BINBYTES": b"B\x04\x00\x00\x00abcd", "STRING": b"S'x'\n", "LONG": b"L1L\n", "GET": b"K\x01p0\ng0\n",
        "LONG4": b"\x8b\xff\xff\xff\x7f", "LONG_BINPUT": b"K\x01r\xff\xff\xff\x7f", "NEXT_BUFFER": b"\x97",
    }  # fmt: skip
    tensors = {
        "of a terabyte by stride 0": tensor((2**38,), (0,)),
        "of a terabyte in two dimensions": tensor((2**19, 2**19), (0, 0)),
        "with a negative size": tensor((-4,), (1,)),
        "whose negative size would pay for another": Raw(b"(" + tensor((-(2**40), 1), (0, 0)) + tensor((2**38,), (0,)) + b"t"),
        "before its storage": tensor((4,), (1,), offset=-4),
        "beyond its storage": tensor((4,), (1,), offset=2**40),
        "larger than its record": tensor((4,), (1,), count=5),
        "of a negative storage": tensor((4,), (1,), count=-4),
        "of 100,000 dimensions": tensor((1,) * 100_000, (0,) * 100_000),
        "with a size that is a tensor": tensor((one,), (1,)),
        "with a size that is text": tensor("4", "1"),
        "of 2,000,000 values, a thousand times": Raw(b"(" + tensor((2_000_000,), (0,)) * 1000 + b"t"),
        "of one storage as many types": Raw(b"(" + b"".join(tensor((1,), (1,), c, kind=k) for k, c in (("FloatStorage", 4), ("IntStorage", 4), ("HalfStorage", 8))) + b"t"),
        "of nothing, 200,000 times": Raw(b"(" + tensor((0,), (1,))[:-1] + b"\x85" * 0 + b"R" + b")" * 3 + b"t"),
        "as a set": Raw(b"c__builtin__\nset\n" + tensor((2_000_000,), (0,)) + b"\x85R"),
        "as an ordered dict": Raw(b"ccollections\nOrderedDict\n" + tensor((1_000_000, 2), (0, 0)) + b"\x85R"),
        "as a size": Raw(b"ctorch\nSize\n" + tensor((1_000_000,), (0,)) + b"\x85R"),
    }  # fmt: skip
    many = {
        "a million empty dicts": b"(" + b"}" * 3_000_000 + b"t",
        "a million stand-ins": b"ctorch.nn.modules.container\nSequential\nq\x00)q\x01(" + b"h\x00h\x01\x81" * 400_000 + b"t",
        "a million tensors": b"(ctorch._utils\n_rebuild_tensor_v2\nq\x00" + pickled((storage(4), 0, (0,), (1,))) + b"q\x01" + b"h\x00h\x01R" * 400_000 + b"t",
        "a million sets": b"c__builtin__\nset\nq\x00)q\x01(" + b"h\x00h\x01R" * 400_000 + b"t",
        "names without end": b"(" + b"".join(f"cultralytics.utils.x\nname{i}\n".encode() for i in range(20_000)) + b"t",
    }  # fmt: skip
    control = {
        "in a name": pickled(Named("os\x1b]0;owned\x07", "sys\x1b[31mtem", ())),
        "in the name of a quantized layer": pickled(Named("torch.ao.\x1b[31m", "x", ())),
        "in the name of a layer of the original": pickled(Named("models.yolo", "Model", (Named("models.\x1b[31m", "x", ()),))),
        "in an ignored name": pickled(Named("ultralytics.utils.\x1b[31m", "x", ())),
        "in the key of a storage": pickled(tensor((4,), (1,), kind="FloatStorage").replace(b"\x01\x00\x00\x000", b"\x05\x00\x00\x00\x1b[31m", 1)),
        "in a name of 100,000 characters": pickled(Named("o\x1b" * 50_000, "system", ())),
    }  # fmt: skip
    files: dict[str, tuple[bytes, dict[str, bytes]]] = {}
    files |= {f"state for {name}": (data + b"b", FOUR) for name, data in states.items()}
    files |= {f"key that is {name}": (b"}(" + data + b"K\x01u", FOUR) for name, data in keys.items()}
    files |= {
        f"member of a set that is {name}": (b"c__builtin__\nset\n](" + data + b"e\x85R", FOUR)
        for name, data in keys.items()
    }
    files |= {f"instruction {name}": (data, {}) for name, data in instructions.items()}
    files |= {f"tensor {name}": (data, FOUR) for name, data in tensors.items()}
    files |= {name: (data, FOUR) for name, data in many.items()}
    files |= {f"control characters {name}": (data, FOUR) for name, data in control.items()}
    for name, data in {"lists": LISTS, "dicts": DICTS, "tuples": TUPLES, "itself": ITSELF, "deep": DEEP}.items():
        for key in ("model", "names", "train_args", "distill", "ema"):
            files[f"{name} without end as {key}"] = pickled({key: data, "x": 1}), {}
    return files


def _called(module: str, name: str, arguments: tuple[Any, ...], place: str, path: Path) -> None:
    marker = str(path.parent / MARKER)
    config = {"nc": 1, "activation": f"open({marker!r}, 'w')", "backbone": [], "head": []}

    def filled(value: Any) -> Any:
        if value == "{config}":
            return config
        if isinstance(value, bytes):
            return value.replace(b"{marker}", marker.encode())
        return tuple(map(filled, value)) if isinstance(value, tuple) else str(value).replace("{marker}", marker)

    call = Named(module, name, filled(arguments))
    contents = {
        "model": {"model": call},
        "value": {"model": 1, "optimizer": [call]},
        "state": Raw(b"}" + pickled({"x": call})),
    }
    zipped(path, pickled(contents[place]))


_network = cache(tiny)


def _changed(change: Callable[[Any], object], path: Path) -> None:
    """A network after a change, as torch.save writes it."""
    content: dict[str, Any] = {"model": copy.deepcopy(_network()), "train_args": {"imgsz": 64}}
    change(content)
    torch.save(content, path)


def _attribute(where: str, name: str, value: Any) -> Callable[[Any], object]:
    """Sets an attribute of a part of the network past torch's checks."""

    def change(content: Any) -> None:
        vars(content["model"].get_submodule(where))[name] = value() if callable(value) else value

    return change


def _first(module: nn.Module) -> Callable[[Any], object]:
    """Puts a module in front of the network's second layer."""

    def change(content: Any) -> None:
        model = content["model"]
        model.model[1] = nn.Sequential(module, model.model[1])
        model.model[1].f, model.model[1].i = -1, 1

    return change


def _shared(levels: int) -> nn.Module:
    module: nn.Module = nn.Sequential(nn.Identity())
    for _ in range(levels):
        module = nn.Sequential(module, module)
    return module


def _nested(levels: int) -> nn.Module:
    module: nn.Module = nn.Identity()
    for _ in range(levels):
        module = nn.Sequential(module)
    return module


def _deep_names(content: Any) -> None:
    names: Any = []
    for _ in range(64):
        names = [names, names]
    content["model"].names = {0: names, 1: "b", 2: "c"}


def _wide(content: Any) -> None:
    content["model"].yaml = {**content["model"].yaml, "backbone": [[-1, 10**9, "Conv", [64, 3, 2]]]}


NETWORKS: dict[str, Callable[[Any], object]] = {
    "forward is a number": _attribute("model.2", "forward", 3),
    "forward is a module": _attribute("model.0", "forward", nn.Identity),
    "forward of the whole is a module": _attribute("", "forward", nn.Identity),
    "fuse is a number": _attribute("", "fuse", 3),
    "named_parameters is a number": _attribute("model.0.conv", "named_parameters", 3),
    "state_dict is text": _attribute("", "state_dict", "x"),
    "eval is a module": _attribute("", "eval", nn.Identity),
    "stride is NaN": _attribute("", "stride", torch.tensor([8.0, 16.0, float("nan")])),
    "stride of the head is NaN": _attribute("model.22", "stride", torch.full((3,), float("nan"))),
    "stride is zero": _attribute("", "stride", torch.zeros(3)),
    "stride is negative": _attribute("", "stride", torch.tensor([-8.0, -16.0, -32.0])),
    "stride is huge": _attribute("", "stride", torch.full((3,), 1e9)),
    "stride is text": _attribute("", "stride", "8"),
    "stride is another's": _attribute("model.22", "stride", torch.tensor([4.0, 8.0, 16.0])),
    "stride has no level": _attribute("model.22", "stride", torch.zeros(0)),
    "classes without number": _attribute("model.22", "nc", 10**12),
    "classes are text": _attribute("model.22", "nc", "3"),
    "padding of a gigabyte": _attribute("model.1.conv", "padding", (10**4, 10**4)),
    "padding of a petabyte": _attribute("model.1.conv", "padding", (10**7, 10**7)),
    "upsampling by a million": _attribute("model.10", "scale_factor", 1e6),
    "upsampling to a petabyte": _first(nn.Upsample(size=(10**7, 10**7))),
    "pooling to a petabyte": _first(nn.AdaptiveAvgPool2d(10**7)),
    "padding layer": _first(nn.ZeroPad2d(10**6)),
    "reflection": _first(nn.ReplicationPad2d(10**6)),
    "pixel shuffle": _first(nn.PixelShuffle(10**6)),
    "unfolding": _first(nn.Unfold(1, padding=10**6)),
    "pools without end": _attribute("model.9", "n", 10**9),
    "modules shared 2 ** 64 times": _first(_shared(64)),
    "modules shared 2 ** 14 times": _first(_shared(14)),
    "modules 60 deep": _first(_nested(60)),
    "a sequence that holds itself": lambda content: (
        content["model"].model[1].add_module("self", content["model"].model)
    ),
    "layers in an endless row": _first(nn.Sequential(*[nn.ReLU()] * 50_000)),
    "names shared without end": _deep_names,
    "a name of a million characters": _attribute("", "names", {0: "x" * 1_000_000, 1: "b", 2: "c"}),
    "names that are modules": _attribute("", "names", lambda: {0: nn.Identity(), 1: "b", 2: "c"}),
    "description without end": _wide,
    "weights that are NaN": lambda content: content["model"].model[4].cv1.conv.weight.data.fill_(float("nan")),
    "weights that overflow": lambda content: content["model"].model[0].conv.weight.data.fill_(3e38),
    "variance that is negative": lambda content: content["model"].model[0].bn.running_var.fill_(-1),
}


def _lying(path: Path, size: int, where: str) -> None:
    """A zip directory that gives other sizes than the records have."""
    zipped(path, pickled({"model": tensor((4,), (1,))}), FOUR)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)  # the second record, in the directory
    for offset in {"packed": (20,), "unpacked": (24,), "both": (20, 24), "place": (42,)}[where]:
        data[entry + offset : entry + offset + 4] = struct.pack("<I", size)
    path.write_bytes(data)


def _flagged(path: Path) -> None:
    zipped(path, pickled({}), FOUR)
    data = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    path.write_bytes(data)


def _sparse(path: Path, start: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def _appended(path: Path) -> None:
    """A valid zip file at the end of six gigabytes of nothing."""
    zipped(path, pickled({}), FOUR)
    data = path.read_bytes()
    _sparse(path, b"PK", 6 * 2**30)
    with path.open("ab") as file:
        file.write(data)


def _socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(path.parent)  # such a path may have 100 characters
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


FILES: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a link to a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a device of random numbers": lambda path: path.symlink_to("/dev/urandom"),
    "a link to the terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to the kernel's messages": lambda path: path.symlink_to("/proc/kmsg"),
    "a socket": _socket,
    "a folder": Path.mkdir,
    "nothing but a start, of 6 GB": lambda path: _sparse(path, b"PK\x03\x04", 6 * 2**30),
    "a start of 3 GB": lambda path: _sparse(path, b"PK\x03\x04", 3 * 2**30),
    "a zip file behind 6 GB of nothing": _appended,
    "a directory that gives 4 GB": lambda path: _lying(path, 2**32 - 2, "both"),
    "a directory that gives 4 GB unpacked": lambda path: _lying(path, 2**32 - 2, "unpacked"),
    "a directory that gives 4 GB packed": lambda path: _lying(path, 2**32 - 2, "packed"),
    "a directory that points beyond the end": lambda path: _lying(path, 2**31, "place"),
    "a directory that points to another record": lambda path: _lying(path, 0, "place"),
    "a record without its last bytes": lambda path: _lying(path, 15, "both"),
    "an encrypted record": _flagged,
    "a bomb": lambda path: zipped(path, pickled({}), {"data/0": bytes(50_000_000)}, compress_type=zipfile.ZIP_DEFLATED),
    "a bomb as pickle": lambda path: zipped(path, b"}" * 50_000_000, compress_type=zipfile.ZIP_DEFLATED),
    "a bomb by bzip2": lambda path: zipped(path, b"}" * 50_000_000, compress_type=zipfile.ZIP_BZIP2),
    "a pickle of 20 MB": lambda path: zipped(path, b"X" + struct.pack("<I", 20_000_000) + bytes(20_000_000)),
    "100,000 records": lambda path: zipped(path, pickled({}), {f"data/{i}": b"" for i in range(100_000)}),
    "names that leave the folder": lambda path: zipped(path, pickled({}), {"../../../evil": b"", "/evil": b""}),
}  # fmt: skip


def hostile_files() -> dict[str, Make]:
    """Every hostile checkpoint: name -> (path) -> None, which writes it."""
    files: dict[str, Make] = {f"file: {name}": make for name, make in FILES.items()}
    for name, (data, records) in _pickles().items():
        files[f"pickle: {name}"] = lambda path, data=data, records=records: zipped(path, data, records)
    for full, arguments in _CALLS.items():
        module, name = full.split(" ")
        for place in ("model", "value", "state"):
            files[f"call: {module}.{name} as {place}"] = lambda path, call=(module, name, arguments, place): _called(
                *call, path
            )
    for name, change in NETWORKS.items():
        files[f"network: {name}"] = lambda path, change=change: _changed(change, path)
    return files
