"""What trace, plan and apply cost on the largest detectors, each in a process of its own; prints JSON.

    python -m tests.bench.planning [yolov8x yolo26n ...]

Seconds are of the clock and of the CPU (those that other processes take count in the first only), torch's imports in the
trace among them. `gb` is the most that the process held above what it held when the model was built, in 2^30 bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import torch

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.bench.cost import peak_gb

NAMES = ("yolov5x", "yolov8x", "yolo11x", "yolo26x")
SIDE = 640


def measure(name: str) -> dict[str, Any]:
    """Seconds of each step and of all, and memory."""
    from ultralytics.nn.tasks import DetectionModel

    model, images = DetectionModel(f"{name}.yaml", verbose=False), torch.rand(1, 3, SIDE, SIDE)
    before, laps = peak_gb(), [(time.perf_counter(), time.process_time())]

    def lap() -> None:
        laps.append((time.perf_counter(), time.process_time()))

    graph = prune.trace(model, images, adapter=YOLO_ADAPTER)
    lap()
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.5)
    lap()
    prune.apply(model, plan, adapter=YOLO_ADAPTER)
    lap()
    spent = [[round(b - a, 1) for a, b in zip(x, y, strict=True)] for x, y in pairwise(laps)]
    total = [round(b - a, 1) for a, b in zip(laps[0], laps[-1], strict=True)]
    return {
        **dict(zip(("trace", "plan", "apply", "total"), [*spent, total], strict=True)),
        "gb": round(peak_gb() - before, 2),
        "flops": round(plan.flops_after / plan.flops_before, 3),
    }


def main(names: list[str]) -> None:
    if names[:1] == ["--one"]:
        print(json.dumps(measure(names[1])))
        return
    found = {}
    for name in names or NAMES:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, "--one", name], capture_output=True, text=True, check=False
        )
        found[name] = json.loads(done.stdout) if done.returncode == 0 else done.stderr.splitlines()[-1:]
    print(json.dumps({"side": SIDE, "seconds": "[clock, CPU]", "networks": found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
