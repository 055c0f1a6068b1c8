"""What a training step costs: labels alone, our distillation, and ultralytics' own, taking turns in one process.

    python -m tests.bench.step                        # YOLOv5nu at half its FLOPs, 320 px, batches of 8
    python -m tests.bench.step best.pt 640 8 20       # a checkpoint, imgsz, batch, rounds
    python -m tests.bench.step yolov5s 640 16 20 0    # on a GPU, in bfloat16 as training there is

Each is timed with the memory laid out as torch makes it and with channels last. Median of the rounds, and the ratio to
labels alone in the same layout.
"""

from __future__ import annotations

import copy
import sys
import time
from statistics import median

import torch
from ultralytics.cfg import get_cfg

import prune
from distill import losses
from distill.machine.device import pick_device
from distill.recipe.schema import DEFAULT_LOSSES
from distill.training.schedule import Schedule
from distill.training.task import CHECKED_BATCHES
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families import outputs
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.table import family_of
from distill.yolo.training.learner import Learner
from distill.yolo.training.ultralytics_loss import Ultralytics
from tests.prune.networks import yolo


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(name: str = "yolov5n", imgsz: str = "320", batch: str = "8", rounds: str = "10", device: str = "cpu") -> None:
    size, count, place = int(imgsz), int(batch), pick_device(device)
    model = checkpoint.load(name).model if name.endswith(".pt") else yolo(name, classes=3)
    model.args = get_cfg()
    graph = prune.trace(model, torch.zeros(1, 3, size, size), adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "bn_scale"), flops=0.5, round_to=8)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    ours = losses.build(losses.fitting(DEFAULT_LOSSES, family_of(model).gives)[0])
    kinds = {"labels": [], "distill": ours}
    if "dist" in family_of(model).gives:
        kinds["ultralytics"] = [losses.WeightedLoss("ultralytics", 1.0, Ultralytics())]
    learners = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for kind, terms in kinds.items():
            twin = copy.deepcopy(student).requires_grad_(True)
            teacher = outputs.teacher_of(checkpoint.fused(model), terms, twin, plan.keep_inputs)
            task = outputs.distillation(twin, [teacher])
            learner = Learner(twin, task, None, Schedule(epochs=1, batch=count, steps=1)).train().to(place)
            learners[kind, layout] = learner.to(memory_format=layout)
    boxes = torch.rand(4 * count, 4) * 0.4 + 0.3
    given = {"img": torch.rand(count, 3, size, size), "batch_idx": torch.arange(count).repeat_interleave(4).float()}
    given |= {"cls": torch.zeros(4 * count, 1), "bboxes": boxes}
    given = {key: value.to(place) for key, value in given.items()}
    times: dict = {key: [] for key in learners}
    for turn in range(int(rounds) + CHECKED_BATCHES + 1):
        for key, learner in learners.items():
            images = given["img"].contiguous(memory_format=key[1])
            synchronize(place)
            start = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16, enabled=place.type == "cuda"):
                loss, _ = learner({**given, "img": images})
            loss.backward()
            synchronize(place)
            if turn > CHECKED_BATCHES:  # in the first ones each loss is watched
                times[key].append(time.perf_counter() - start)
            learner.zero_grad()
    for (kind, layout), taken in times.items():
        alone = median(times["labels", layout])
        print(
            f"{kind:<12}{str(layout).removeprefix('torch.'):<18}{median(taken):>8.3f} s{median(taken) / alone:>7.2f}x"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
