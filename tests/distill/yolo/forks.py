"""Small forks, with blocks of their own: a folder of code for each, and a checkpoint that this code has saved."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

BLOCKS = """
import torch
from torch import nn

{imports}


class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class SE(nn.Module):
    '''Squeeze and excitation, and a scale of its own.'''

    def __init__(self, c1):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(c1, 4, 1), nn.Conv2d(4, c1, 1)
        self.helper = halved  # a function of the fork, pickled by its name

    def forward(self, x):
        weights = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        return x * self.helper(weights).sigmoid()


class StemBlock(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.first, self.left, self.right = Conv(c1, c2, 3, 2), Conv(c2, c2, 3, 2), nn.MaxPool2d(2)
        self.last = Conv(c2 * 2, c2)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat((self.left(x), self.right(x)), 1))
"""
MODEL = """

class {model}(nn.Module):
    def __init__(self, nc=2, width=24):
        super().__init__()
        down = [Conv(width, width, 3, 2), SE(width), Conv(width, width, 3, 2), SE(width)]
        self.model = nn.Sequential(StemBlock(3, width), *down, Detect(nc, (width, width)))
        for i, layer in enumerate(self.model):
            layer.i, layer.f, layer.type, layer.np = i, -1, type(layer).__name__, 1
        self.model[-1].f, self.save, self.inplace = [2, 4], [2, 4], True
        self.names, self.yaml, self.nc = {{i: f"class{{i}}" for i in range(nc)}}, {{"nc": nc}}, nc
        self.stride = self.model[-1].stride = torch.tensor([8.0, 16.0])

    def forward(self, x):
        kept = []
        for layer in self.model:
            x = layer(x if layer.f == -1 else [kept[i] for i in layer.f])
            kept.append(x)
        return x
"""
ANCHOR_HEAD = """
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from models.common import SE, Conv, StemBlock

print("the fork is noisy")


class Detect(nn.Module):
    onnx_dynamic = False

    def __init__(self, nc, ch):
        super().__init__()
        self.nc, self.no, self.nl, self.na = nc, nc + 5, 2, 3
        self.grid = [torch.zeros(1)] * 2
        a = torch.tensor([[[1.0, 1.5], [2, 4], [4, 2]], [[3, 2], [4, 7], [8, 6]]])
        self.register_buffer("anchors", a)
        self.register_buffer("anchor_grid", (a * torch.tensor([8.0, 16.0]).view(2, 1, 1)).view(2, 1, 3, 1, 1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * 3, 1) for c in ch)

    def forward(self, x):
        z = []
        for i, conv in enumerate(self.m):
            x[i] = conv(x[i]).unflatten(1, (3, self.no)).permute(0, 1, 3, 4, 2).contiguous()
            if not self.training:
                y, (rows, columns) = x[i].sigmoid(), x[i].shape[2:4]
                cells = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
                y[..., :2] = (y[..., :2] * {factor} - 0.5 + cells) * self.stride[i]
                y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * self.anchor_grid[i]
                z.append(y.flatten(1, 3))
        return x if self.training else (torch.cat(z, 1), x)
"""
DFL_HEAD = """
import torch
from torch import nn

from .conv import Conv


class DFL(nn.Module):
    def __init__(self, c1=16):
        super().__init__()
        self.conv, self.c1 = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False), c1
        self.conv.weight.data[:] = torch.arange(c1).view(1, c1, 1, 1)

    def forward(self, x):
        return self.conv(x.unflatten(1, (4, self.c1)).transpose(1, 2).softmax(1))[:, 0]


class Detect(nn.Module):
    dynamic = export = False
    shape = None
    anchors = strides = torch.empty(0)

    def __init__(self, nc, ch):
        super().__init__()
        self.nc, self.nl, self.reg_max, self.no = nc, len(ch), 16, nc + 64
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(c, 16, 3), Conv(16, 16, 3), nn.Conv2d(16, 64, 1)) for c in ch)
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(c, 16, 3), Conv(16, 16, 3), nn.Conv2d(16, nc, 1)) for c in ch)
        self.dfl = DFL(16)

    def forward(self, x):
        x = [torch.cat((box(each), score(each)), 1) for each, box, score in zip(x, self.cv2, self.cv3)]
        if self.training:
            return x
        boxes, scores = torch.cat([each.flatten(2) for each in x], 2).split((64, self.nc), 1)
        cells, strides = [], []
        for each, stride in zip(x, self.stride):
            rows, columns = each.shape[2:]
            grid = torch.meshgrid(torch.arange(columns) + 0.5, torch.arange(rows) + 0.5, indexing="xy")
            cells.append(torch.stack(grid).flatten(1))
            strides.append(stride.expand(1, rows * columns))
        cells, strides = torch.cat(cells, 1), torch.cat(strides, 1)
        near, far = self.dfl(boxes).unflatten(1, (2, 2)).unbind(1)
        box = torch.cat((cells + (far - near) / 2, far + near), 1) * strides
        return torch.cat((box, scores.sigmoid()), 1), x
"""
NETWORK = """
import torch
from torch import nn

from ultralytics.nn.modules import SE, Conv, Detect, StemBlock
"""


def yolov5(folder: Path, *, factor: float = 2.0) -> Path:
    """The code of a fork of the original YOLOv5, whose head keeps its anchors as v5.0 does. `factor` 2 is the original's."""
    files = {
        "models/__init__.py": "",
        "models/common.py": BLOCKS.format(imports="from utils.general import halved"),
        "models/yolo.py": ANCHOR_HEAD.replace("{factor}", str(factor)) + MODEL.format(model="Model"),
        "utils/__init__.py": "import os\n\nos.environ['SET_BY_THE_FORK'] = '99'\n",
        "utils/general.py": "def halved(x):\n    return x / 2\n",
        "train.py": "import models.yolo\n",
    }
    return _write(folder, files)


def ultralytics(folder: Path) -> Path:
    """The code of a fork of ultralytics, an early one: its head gives what those of version 8.0 did."""
    imported = "from .block import SE, StemBlock\nfrom .conv import Conv\nfrom .head import Detect\n"
    blocks = BLOCKS.format(imports="def halved(x):\n    return x / 2\n")
    before, conv, rest = (*blocks.partition("class Conv"),)
    conv, block = (conv + rest).split("class SE", 1)
    files = {
        "ultralytics/__init__.py": "import os\nimport torch\n\n__version__ = '8.0.99'\ntorch.save = None\n",
        "ultralytics/nn/__init__.py": "",
        "ultralytics/nn/modules/__init__.py": imported,
        "ultralytics/nn/modules/conv.py": f"from torch import nn\n\n\n{conv}",
        "ultralytics/nn/modules/block.py": f"{before}from .conv import Conv\n\n\nclass SE{block}",
        "ultralytics/nn/modules/head.py": DFL_HEAD,
        "ultralytics/nn/tasks.py": NETWORK + MODEL.format(model="DetectionModel"),
    }
    return _write(folder, files)


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder


@contextmanager
def imported(folder: Path) -> Iterator[None]:
    """While this lasts, the modules of a fork are imported first; the product's way of doing that is not used."""
    roots = {path.stem for path in folder.iterdir()}
    path, save = mock.patch.object(sys, "path", [str(folder), *sys.path]), mock.patch.object(torch, "save", torch.save)
    with mock.patch.dict(sys.modules), mock.patch.dict("os.environ"), path, save:
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        importlib.invalidate_caches()
        yield


def trained(folder: Path, path: Path, *, nc: int = 2, seed: int = 0, **entries: Any) -> torch.Tensor:
    """Write a checkpoint with the code of a fork. Returns what its network gives for `IMAGE`."""
    with imported(folder):
        original = (folder / "models").is_dir()
        name = "models.yolo:Model" if original else "ultralytics.nn.tasks:DetectionModel"
        module, _, kind = name.partition(":")
        torch_save = torch.save
        torch.manual_seed(seed)
        model: Any = getattr(importlib.import_module(module), kind)(nc).eval()
        for each in model.modules():
            if isinstance(each, torch.nn.BatchNorm2d):
                each.running_mean.normal_(0, 0.1)
                each.running_var.uniform_(0.5, 2)
        half = {"opt": {"imgsz": 64}} if original else {"train_args": {"imgsz": 64, "task": "detect"}}
        model.half().float()  # a file is in half precision
        with torch.no_grad():
            gave = model(IMAGE)[0]
        torch_save({"model": model.half(), "ema": None, "epoch": -1, **half, **entries}, path)
    return gave


IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
