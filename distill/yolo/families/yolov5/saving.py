"""A checkpoint written as the original YOLOv5 project writes its own, so that its code can be used on the network."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError
from distill.machine.files import write_bytes
from distill.yolo.checkpoint.saving import bare_copy, half, stripped, written
from distill.yolo.checkpoint.unpickle import PLAIN
from distill.yolo.families.yolov5.checkpoint import MODULES, OriginalHead
from distill.yolo.families.yolov5.head import AnchorDetect, placed_as
from distill.yolo.upstream import block

# The original's name of each class. If a class stands for several of the original's, the first is the plain one.
_NAMES = {kind: name for name, kind in reversed(MODULES.items()) if not kind.__module__.startswith("torch.")}

# What the original's DetectionModel has beside its layers; hyp only once it was trained.
_ATTRIBUTES = ("yaml", "save", "names", "inplace", "stride", "nc", "hyp")


def save_original(model: nn.Module, path: str | Path, *, names: Mapping[int, str], imgsz: int) -> None:
    """Write a checkpoint that the original YOLOv5 (v6.2 and v7.0) opens: float16, as its training leaves it.

    Its detect.py, val.py, export.py and torch.hub use the network as it is saved. Its train.py does not: it builds a
    network from `yaml`, which does not tell of pruned channels. `model` is not changed. A network of a fork gets the fork's
    own classes and attributes.

    Args:
        model: ultralytics' DetectionModel with an `AnchorDetect` as its last layer.
        path: the file to write; its folder must be there.
        names: class names by id.
        imgsz: the image size in pixels that it was trained at.

    Raises:
        DistillError: the original has no such head, or lacks a module of the network.
        RunError: the disk is full or not writable.
    """
    network: Any = bare_copy(model).cpu().eval().requires_grad_(False)
    head = network.model[-1]
    if not isinstance(head, AnchorDetect):
        raise DistillError(
            f"the network ends in a {type(head).__name__}, not in the original YOLOv5's head with anchors: it can only be "
            "saved in ultralytics' format"
        )
    own = vars(network).pop("own_project", None)
    network.model[-1] = placed_as(head, _original_head(head) if own is None else own["head"])
    network.model[-1].m = head.m
    network.names, network.nc, network.inplace = dict(names), head.nc, True
    network.stride = head.get_buffer("stride").clone()
    for name in vars(network).keys() - vars(nn.Module()).keys() - set(own["attributes"] if own else _ATTRIBUTES):
        delattr(network, name)
    for layer in () if own else network.model:
        layer.type = _type(layer)
    original = half(network).model[-1]
    original.stride = network.stride.to(original.anchors.dtype)  # not a buffer there, so half() passes it over
    content = {**stripped(network), "opt": {"imgsz": imgsz}, "git": None}
    buffer = io.BytesIO()
    if own is None:
        torch.save(content, buffer, pickle_module=SimpleNamespace(__name__=__name__, Pickler=_Pickler))
    else:
        network.__class__ = own["class"]
        with written(network):
            torch.save(content, buffer)
    write_bytes(Path(path), buffer.getbuffer())


_PythonPickler: Any = pickle._Pickler  # not the one in C, which writes a name only if it can be imported


class _Pickler(_PythonPickler):
    """Writes the original's names for the classes that stand for its own, and no name that the original lacks."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name of a class or function."""
        own = _NAMES.get(obj)
        if own is not None:
            module, _, attribute = own.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())
            self.memoize(obj)
            return
        full = f"{getattr(obj, '__module__', None)}.{name or getattr(obj, '__qualname__', obj)}"
        if full not in PLAIN and not full.startswith("torch.nn.modules."):
            raise DistillError(
                f"the network holds {full}, which the original YOLOv5 does not have: it can only be saved in "
                "ultralytics' format"
            )
        super().save_global(obj, name)


def _original_head(head: AnchorDetect) -> OriginalHead:
    """The original's Detect, with the attributes of a fresh one: its grids are made when it first runs."""
    original: Any = OriginalHead()
    original.register_buffer("anchors", head.get_buffer("anchors"))
    original.grid, original.anchor_grid = ([torch.empty(0) for _ in head.m] for _ in range(2))
    original.inplace = True
    for name in ("nc", "no", "nl", "na", "training"):
        setattr(original, name, getattr(head, name))
    return original


def _type(layer: nn.Module) -> str:
    """How the original's model summary calls a layer; of a layer repeated in a Sequential, the repeated one."""
    if isinstance(layer, block.SPPF) and (getattr(layer, "n", 3) != 3 or getattr(layer, "add", False)):
        raise DistillError("the original YOLOv5 has no SPPF but that of three poolings and no shortcut")
    kind: Any = type(layer[0] if isinstance(layer, nn.Sequential) else layer)
    return _NAMES.get(kind, f"{kind.__module__}.{kind.__qualname__}")
