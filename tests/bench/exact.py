"""The exactness proof on every size of YOLOv5u, YOLOv8 and YOLO11, at full width, with random weights and a random cut.

python -m tests.bench.exact [yolov5n yolov8x ...]
"""

from __future__ import annotations

import sys
import time

import torch

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.prune.networks import yolo

SIZES = [f"yolo{version}{size}" for version in ("v5", "v8", "11") for size in "nsmlx"]


def main(names: list[str]) -> None:
    print(f"{'network':<10}{'parameters':>12}{'left':>7}{'difference':>12}{'seconds':>9}")
    for name in names or SIZES:
        start = time.perf_counter()
        model, images = yolo(name, classes=80), torch.rand(1, 3, 64, 64)
        graph = prune.trace(model, images, adapter=YOLO_ADAPTER)
        plan = prune.make_plan(graph, prune.score(graph, "random"), flops=0.5, round_to=1)
        student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
        difference = prune.verify(model, student, plan, images, adapter=YOLO_ADAPTER)
        left = plan.params_after / plan.params_before
        print(
            f"{name:<10}{plan.params_before:>12,}{left:>7.2f}{difference:>12.1e}{time.perf_counter() - start:>9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
