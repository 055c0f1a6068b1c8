"""Small networks with the original YOLOv5's head, and files of them such as that project's own code writes.

The files are made by pickling classes of the original's names and nothing else of it, so they owe nothing to the code
that reads them.
"""

from __future__ import annotations

import copy
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn
from ultralytics.nn.modules import C3, C3x, block, conv, transformer
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from distill.yolo.families.yolov5.head import AnchorDetect

NAMES = {0: "circle", 1: "square", 2: "star"}
HYP = {"box": 0.06, "cls": 0.02, "obj": 0.7, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 3.0, "fl_gamma": 0.0}
IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

_STEM = [[-1, 1, "Conv", [8, 6, 2, 2]], [-1, 1, "Conv", [16, 3, 2]]]
_NECK = [[-1, 1, "Conv", [16, 1, 1]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 4], 1, "Concat", [1]]]
_TWO_LEVELS = [
    *_NECK,
    [-1, 1, "C3", [16, False]],
    [-1, 1, "Conv", [16, 3, 2]],
    [[-1, 7], 1, "Concat", [1]],
    [-1, 1, "C3", [24, False]],
]
_DETECT = [[[10, 13], 1, "Detect", ["nc"]]]


def _backbone(csp: str, pool: list[Any], stem: list[Any], width: int = 16, depth: int = 1) -> list[Any]:
    down = [-1, 1, "Conv", [width, 3, 2]]
    parts = [-1, depth + 1, csp, [width]], down, [-1, depth, csp, [width]]
    return [*stem, *parts, [-1, 1, "Conv", [24, 3, 2]], pool]


_SPPF = [-1, 1, "SPPF", [24, 5]]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "v7.0": {"backbone": _backbone("C3", _SPPF, _STEM), "head": [*_TWO_LEVELS, *_DETECT]},
    "v5.0": {
        "backbone": _backbone("BottleneckCSP", [-1, 1, "SPP", [24, [5, 9, 13]]], [[-1, 1, "Focus", [8, 3]], _STEM[1]]),
        "head": [*_TWO_LEVELS, *_DETECT],
    },
    "deep and wide": {
        "backbone": _backbone("C3", [-1, 1, "SPPF", [40, 5]], _STEM, width=32, depth=2),
        "head": [*_TWO_LEVELS[:3], [-1, 3, "C3", [40]], *_TWO_LEVELS[4:], *_DETECT],
    },
    "P6": {  # four levels, a stride of 64 at the end
        "backbone": [
            *_backbone("C3", _SPPF, _STEM),
            [-1, 1, "Conv", [24, 3, 2]],
            [-1, 1, "C3", [24]],
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "SPPF", [32, 5]],
        ],
        "head": [[[4, 6, 8, 10], 1, "Detect", ["nc"]]],
    },
    "rare": {  # what the original has beside its standard architectures
        "backbone": [
            [-1, 1, "Conv", [8, 6, 2, 2]],
            [-1, 1, "GhostConv", [16, 3, 2]],
            [-1, 1, "C3Ghost", [16]],
            [-1, 1, "DWConv", [16, 3, 2]],
            [-1, 1, "C3x", [16]],
            [-1, 1, "GhostBottleneck", [24, 3, 2]],
            [-1, 1, "C3TR", [24]],
        ],
        "head": [
            [-1, 1, "Bottleneck", [16]],
            [-1, 1, "DWConvTranspose2d", [16, 2, 2]],
            *_TWO_LEVELS[2:],
            *_DETECT,
        ],
    },
}

# Which class of the original each of ultralytics' is.
_ORIGINALS: dict[type, str] = {
    **{kind: f"models.common.{kind.__name__}" for kind in (conv.Conv, conv.DWConv, conv.DWConvTranspose2d)},
    **{kind: f"models.common.{kind.__name__}" for kind in (conv.Focus, conv.GhostConv, conv.Concat, block.Bottleneck)},
    **{kind: f"models.common.{kind.__name__}" for kind in (block.BottleneckCSP, C3, C3x, block.C3TR, block.C3Ghost)},
    **{kind: f"models.common.{kind.__name__}" for kind in (block.GhostBottleneck, block.SPP, block.SPPF)},
    transformer.TransformerBlock: "models.common.TransformerBlock",
    transformer.TransformerLayer: "models.common.TransformerLayer",
}


def tiny(architecture: str = "yolov8n.yaml") -> Any:
    """A real architecture of ultralytics with few channels, its BatchNorm statistics unlike those of a fresh one."""
    cfg = yaml_model_load(architecture)
    cfg["scales"] = {"n": [0.33, 0.07, 1024]}
    torch.manual_seed(0)
    model = DetectionModel(cfg, nc=len(NAMES), verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    model.names = dict(NAMES)
    return model.eval()


def network(architecture: str = "v7.0", nc: int = 3, boxes: int = 3, channels: int = 3, seed: int = 0) -> Any:
    """A network that is like a trained one: its statistics and biases are unlike those of a fresh one."""
    torch.manual_seed(seed)
    description = {**copy.deepcopy(ARCHITECTURES[architecture]), "nc": nc}
    made: Any = DetectionModel(description, ch=channels, verbose=False)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    old = made.model[-1]
    convolutions = [nn.Conv2d(branch[0].conv.in_channels, boxes * (5 + nc), 1) for branch in old.cv2]
    anchors = (torch.rand(old.nl, boxes, 2) * 4 + 1).half().float()  # a file in half precision keeps them
    head = AnchorDetect(convolutions, anchors, old.stride, nc)
    head.i, head.f, head.type, head.np = old.i, old.f, "models.yolo.Detect", 0
    made.model[-1] = head
    made.hyp, made.names = dict(HYP), dict(NAMES) if nc == 3 else {i: f"class{i}" for i in range(nc)}
    return made.eval()


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGE)


class Original:
    """Writes networks under the original's names.

    Args:
        root: "" for the project, "yolov5." for its package on PyPI.
        version: whose attributes the head has: "v5.0", "v7.0", or "used" for a v7.0 whose head has made its grids.
        rename: name in the original -> another name to write.
    """

    def __init__(self, root: str = "", version: str = "v7.0", rename: Mapping[str, str] | None = None) -> None:
        self.root, self.version, self.rename = root, version, rename or {}
        self.modules: dict[str, ModuleType] = {}

    def kind(self, name: str) -> type[nn.Module]:
        """The class of this name, by name as the original has it. It can do nothing."""
        place, _, attribute = f"{self.root}{self.rename.get(name, name)}".rpartition(".")
        home = self.modules.setdefault(place, ModuleType(place))
        if not hasattr(home, attribute):
            setattr(home, attribute, type(attribute, (nn.Module,), {"__module__": place}))
        return getattr(home, attribute)

    def model(self, network: Any, *, half: bool = True) -> Any:
        """The network as the original's own DetectionModel: with its classes and its attributes."""
        made = copy.deepcopy(network)
        made.model[-1] = self.head(made.model[-1])
        made.__class__ = self.kind("models.yolo.DetectionModel")
        keep = {"yaml", "save", "names", "stride", "hyp"} | vars(nn.Module()).keys()
        for name in vars(made).keys() - keep:
            delattr(made, name)
        made.nc, made.inplace = network.model[-1].nc, True
        for module in list(made.modules()):
            if isinstance(module, C3x):
                for cross in module.m:
                    cross.__class__ = self.kind("models.common.CrossConv")
            if type(module) in _ORIGINALS:
                module.__class__ = self.kind(_ORIGINALS[type(module)])
        return made.half() if half else made

    def head(self, head: AnchorDetect) -> Any:
        made: Any = self.kind("models.yolo.Detect")()
        made.nc, made.no, made.nl, made.na = head.nc, head.no, head.nl, head.na
        made.i, made.f, made.type, made.np, made.m = head.i, head.f, head.type, head.np, head.m
        made.register_buffer("anchors", head.get_buffer("anchors"))
        made.stride = head.get_buffer("stride")
        made.grid = [torch.zeros(1)] * head.nl
        made.training = False
        pixels = made.anchors * made.stride.view(-1, 1, 1)
        if self.version == "v5.0":
            made.register_buffer("anchor_grid", pixels.view(head.nl, 1, -1, 1, 1, 2))
            made.export = False
            return made
        made.inplace, made.anchor_grid = True, [torch.zeros(1)] * head.nl
        if self.version == "used":
            shape = (1, head.na, 80, 80, 2)
            made.grid = [torch.rand(1, 1, 80, 80, 2).expand(shape) for _ in pixels]
            made.anchor_grid = [level.view(1, -1, 1, 1, 2).expand(shape) for level in pixels]
        return made

    def save(self, model: Any, path: Path, **content: Any) -> Path:
        """Write a checkpoint of a network that `model` gave; `content` replaces entries of it."""
        content = {"epoch": -1, "best_fitness": None, "model": model, "optimizer": None, "ema": None, **content}
        with self.imported():
            torch.save(content, path)
        return path

    def imported(self) -> Any:
        """While this lasts the classes can be imported."""
        parents = {".".join(name.split(".")[:depth]) for name in self.modules for depth in (1, 2)}
        return mock.patch.dict(sys.modules, {**{name: ModuleType(name) for name in parents}, **self.modules})


def edited(path: Path, change: Callable[[bytes], bytes], target: Path) -> Path:
    """A copy of a checkpoint with another pickle in it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("/data.pkl") else data)
    return target


def seeing_one_object() -> Any:
    """A network that sees one square over the whole of every image and far beyond it, whatever is on it."""
    model = network()
    head = model.model[-1]
    head.anchors.fill_(1000)
    for convolution in head.m:
        convolution.weight.data.zero_()
        convolution.bias.data.view(3, -1)[:] = torch.tensor([0, 0, 0, 0, 9, -9, 9, -9.0])
    head.m[0].bias.data.view(3, -1)[:, 4] = -20
    return model
