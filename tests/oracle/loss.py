"""Writes what the loss of the original YOLOv5 says, for tests/distill/yolo/test_anchor_loss.py to compare with.

    pip install yolov5==7.0.14            # v7.0's code; in an environment of its own, without this project
    python -m tests.oracle.loss           # from the root of the repository; an argument names another file

Gradients are too many to keep: of each map's, the file holds some entries, the largest among them, the sum of squares
and the product with random numbers, so that no entry can change unseen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yolov5.utils.loss import ComputeLoss

from tests.oracle.inputs import SHAPES, Case, cases, uniform

FILE = Path(__file__).resolve().parents[1] / "distill" / "yolo" / "anchor_loss.json"
LARGEST, SPREAD = 14, 6


class Network(nn.Module):
    """As much of the original's network as its loss reads."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        head: Any = nn.Conv2d(1, 1, 1)
        head.na, head.nc, head.nl, head.anchors = len(SHAPES), case.nc, len(case.sizes), case.anchors()
        head.stride = torch.tensor([8.0 * 2**level for level in range(len(case.sizes))])
        self.model = nn.Sequential(head)
        self.hyp = dict(case.hyp)


def measure(case: Case) -> tuple[dict[str, float], list[Tensor]]:
    """The original's loss by name, and its gradient to each map."""
    maps = [raw.requires_grad_() for raw in case.maps()]
    total, parts = ComputeLoss(Network(case))(maps, case.targets)
    total.backward()
    gradients = [raw.grad for raw in maps if raw.grad is not None]
    return {"total": total.item(), **dict(zip(("box", "obj", "cls"), parts.tolist(), strict=True))}, gradients


def summarize(gradient: Tensor) -> dict[str, Any]:
    flat = gradient.flatten().double()
    at = flat.abs().sort(descending=True, stable=True).indices[:LARGEST].tolist()
    at = sorted({*at, *range(0, len(flat), len(flat) // SPREAD)})
    mixed = flat * (uniform(flat.shape, len(flat)).double() - 0.5)
    return {
        "squares": short(flat.square().sum()),
        "mixed": short(mixed.sum()),
        "at": at,
        "values": [short(value) for value in flat[at]],
    }


def short(value: Any) -> float:
    return float(f"{float(value):.9g}")


def main(file: Path) -> None:
    found = {}
    for name, case in cases().items():
        losses, gradients = measure(case)
        found[name] = {key: short(value) for key, value in losses.items()} | {"maps": [*map(summarize, gradients)]}
    lines = [f"{json.dumps(name)}: {json.dumps(content)}" for name, content in found.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
