"""Small networks, one for each way in which channels can depend on each other; and YOLOs of every depth, narrow."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, BatchNorm, activation; any stride or grouping."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Residual(nn.Module):
    """Two summands, one of them a concat, and a branch that reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = Block(3, 16), Block(16, 8), Block(16, 8, 1)
        self.body, self.out = Block(16, 16, act=nn.Sigmoid()), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.body(x) + torch.cat([self.left(x), self.right(x)], 1)
        return self.out(x)


class Split(nn.Module):
    """A C2f: halves, one of which goes on through a residual, all concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 8
        self.stem, self.cv1, self.m, self.cv2 = Block(3, 12), Block(12, 16, 1), Block(8, 8), Block(24, 12, 1)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(self.stem(x)).chunk(2, 1))
        y.append(y[-1] + self.m(y[-1]))
        return self.out(self.cv2(torch.cat(y, 1)))


class Pyramid(nn.Module):
    """Pooling, resizing and one tensor concatenated four times over, as in SPPF; a LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = Block(3, 8), Block(8, 12, 3, 2, act=nn.LeakyReLU(0.1))
        self.spp, self.up, self.out = Block(48, 16, 1), nn.Upsample(scale_factor=2), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        y = [self.down(first)]
        for _ in range(3):
            y.append(nn.functional.max_pool2d(y[-1], 5, 1, 2))
        return self.out(torch.cat([first, self.up(self.spp(torch.cat(y, 1)))], 1))


class Depthwise(nn.Module):
    """Depthwise and grouped convolutions, a gate per channel, and a classifier behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw, self.pw = Block(3, 16), Block(16, 16, g=16), Block(16, 24, 1)
        self.grouped, self.gate = Block(24, 24, g=4), nn.Conv2d(24, 24, 1)
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(2), nn.Linear(96, 20), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.pw(self.dw(self.stem(x))))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.fc2(torch.relu(self.fc1(self.pool(x).flatten(1))))


class Attention(nn.Module):
    """YOLO11's attention: a tensor that no rule follows is given the shape of what entered the block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.pe, self.proj = Block(16, 48, 1), Block(16, 16, g=16), Block(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).view(b, 2, 24, h * w).split([8, 8, 8], dim=2)
        x = (v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)).view(b, c, h, w) + self.pe(
            v.reshape(b, c, h, w)
        )
        return self.proj(x)


class Attending(nn.Module):
    """Attention in a residual, and layers on both sides of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.into, self.attention = Block(3, 12), Block(12, 16, 1), Attention()
        self.body, self.out = Block(16, 12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(self.stem(x))
        return self.out(self.body(x + self.attention(x)))


SMALL = {"residual": Residual, "split": Split, "pyramid": Pyramid, "depthwise": Depthwise, "attending": Attending}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, BatchNorm statistics and scales: nothing cancels by being 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith("bn.weight"):
                tensor.normal_(1.0, 0.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0.5, 0.5, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() > 1 and "dfl" not in name:
                tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5, generator=generator)
    return model


def narrow(name: str) -> tuple[nn.Module, int]:
    """One of `SMALL`, or a YOLO at a sixteenth of its width, with random weights; and a side for its images in pixels."""
    return (randomize(SMALL[name]()), 16) if name in SMALL else (yolo(name, width=0.0625), 64)


def yolo(name: str, width: float | None = None, classes: int = 3) -> nn.Module:
    """An ultralytics detector with random weights; `width` replaces the width factor of its size, to test its depth."""
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    description = yaml_model_load(f"{name}.yaml")
    if width is not None:
        depth, _, most = description["scales"][description["scale"]]
        description["scales"] = {description["scale"]: [depth, width, most]}
    return randomize(DetectionModel(description, nc=classes, verbose=False))
