"""What a cut costs in seconds and memory: one network, one importance, in a process of its own.

    python -m tests.bench.cost yolov5x bn_scale          # trace, plan, apply
    python -m tests.bench.cost yolov5l obs 320 96        # imgsz, images: statistics, plan, apply, repair too
    python -m tests.bench.cost best.pt obs 320 96        # a checkpoint
    python -m tests.bench.cost yolov5s obs 640 96 0      # on a GPU, whose own memory is not counted

Memory is what the process held at most above what it held when the model was built, in GB of 2^30 bytes.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

import prune
from distill.machine.device import pick_device
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import sensitivity_of
from tests.prune.networks import yolo


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(name: str, importance: str = "bn_scale", imgsz: str = "320", count: str = "96", device: str = "cpu") -> None:
    model = checkpoint.load(name).model if name.endswith(".pt") else yolo(name, classes=80)
    model.to(pick_device(device))
    images = torch.rand(int(count), 3, int(imgsz), int(imgsz))
    sensitivity, before, start = sensitivity_of(model), peak_gb(), time.perf_counter()
    last = start

    def lap(label: str) -> None:
        nonlocal last
        now = time.perf_counter()
        print(f"{label:<12}{now - last:>8.1f} s   {peak_gb() - before:>6.2f} GB", flush=True)
        last = now

    graph = prune.trace(model, images[:1].to(pick_device(device)), adapter=YOLO_ADAPTER)
    lap("trace")
    scores = prune.score(graph, importance, batches=images, sensitivity=sensitivity)
    lap("score")
    plan = prune.make_plan(graph, scores, flops=0.5)
    del scores
    lap("plan")
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    lap("apply")
    if importance == "obs":
        prune.repair(student, model, plan, images, sensitivity=sensitivity, adapter=YOLO_ADAPTER)
        lap("repair")
    print(
        f"{'total':<12}{last - start:>8.1f} s   {peak_gb() - before:>6.2f} GB   {plan.flops_after / plan.flops_before:.3f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
