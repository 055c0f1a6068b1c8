"""A tiny task for classifiers: squares of two colours on noise, and a network of timm's own tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import prune
from distill.classifiers import checkpoint

NAMES = {0: "blue", 1: "red"}
SIZE = 32


def write(root: Path, train: int = 16, val: int = 8) -> Path:
    """A folder with train/CLASS and val/CLASS. Returns it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number, name in NAMES.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count // 2):
                image = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
                x, y = rng.integers(0, SIZE // 2, 2)
                image[y : y + 14, x : x + 14] = (40, 60, 230) if number == 0 else (230, 60, 40)
                Image.fromarray(image).save(root / split / name / f"{index}.png")
    return root


def build(name: str = "timm/test_resnet", seed: int = 0) -> nn.Module:
    """A network with random weights and BatchNorm statistics."""
    model = checkpoint.build(name, NAMES, seed=seed).eval()
    make = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=make)
            module.running_var.uniform_(0.5, 1.5, generator=make)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=make)
    return model


def cut(model: nn.Module, size: int = SIZE, ratio: float = 0.4) -> tuple[nn.Module, prune.PrunePlan]:
    """The network with fewer channels, and the plan."""
    graph = prune.trace(model, torch.zeros(1, 3, size, size))
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=ratio, round_to=1)
    return prune.apply(model, plan).eval(), plan
