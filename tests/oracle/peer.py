"""Cuts a YOLOv5u or YOLOv8 with torch-pruning, the best-known library for it, for a comparison from the same teacher.

    CONTRIBUTING.md says how to make its environment.

From the root of the repository:

    python -m tests.oracle.peer CKPT OUT.pt FLOPS IMGSZ        # FLOPS: the share to keep, 0 to 1

Magnitudes summed over each group, the same share of every layer in one step, the detection head's last layers left
alone: as its own example for YOLOv8 does (Fang et al., "DepGraph", CVPR 2023). The share is found by bisection. Opens CKPT
the usual way, so only give it files that you trust.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch_pruning
from torch import nn
from ultralytics import YOLO


def cut(model: nn.Module, image: torch.Tensor, ratio: float) -> nn.Module:
    """A copy of `model` without the share `ratio` of the channels of each layer."""
    model = copy.deepcopy(model)
    last = [branch[-1] for name in ("cv2", "cv3") for branch in getattr(model.model[-1], name)]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        model, image, importance, pruning_ratio=ratio, ignored_layers=[*last, model.model[-1].dfl]
    )
    pruner.step()
    return model


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("checkpoint")
    words.add_argument("out")
    words.add_argument("flops", type=float)
    words.add_argument("imgsz", type=int)
    given = words.parse_args()

    model = YOLO(given.checkpoint).model.float().requires_grad_(True)
    image = torch.zeros(1, 3, given.imgsz, given.imgsz)
    whole, _ = torch_pruning.utils.count_ops_and_params(model, image)
    low, high = 0.0, 1.0
    for _ in range(7):
        ratio = (low + high) / 2
        left, _ = torch_pruning.utils.count_ops_and_params(cut(model, image, ratio), image)
        low, high = (ratio, high) if left > given.flops * whole else (low, ratio)
    student = cut(model, image, high)
    left, parameters = torch_pruning.utils.count_ops_and_params(student, image)
    torch.save({"model": student.half(), "train_args": {}}, given.out)
    print(f"{given.out}: {left / whole:.3f} of the FLOPs, {parameters / 1e6:.2f} M parameters, ratio {high:.3f}")


if __name__ == "__main__":
    main()
