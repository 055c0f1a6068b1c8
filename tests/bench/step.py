"""What a training step costs: labels alone, our distillation with its teacher in each runtime, and ultralytics' own.

    python -m tests.bench.step                                    # YOLOv5nu at half its FLOPs, 320 px, batches of 8, noise
    python -m tests.bench.step best.pt 640 8 --images folder      # a checkpoint, imgsz, batch; teachers look at images
    python -m tests.bench.step yolov5s 640 16 --device 0          # on a GPU, in bfloat16 as training there is
    python -m tests.bench.step ... --out docs/bench/step.json     # keep the figures

All arms take turns in one process, so a busy machine slows all of them alike. A step is forward and backward; with the optimizer
it is also clipping and AdamW's step. Printed are medians of the rounds, and the ratios to labels alone: of time on the clock, and
of processor time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import cv2
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg

import prune
from distill import losses
from distill.machine import env
from distill.machine.device import pick_device
from distill.machine.runtimes.table import RUNTIMES
from distill.recipe.schema import DEFAULT_LOSSES
from distill.results.steps import TeacherForward
from distill.training.schedule import Schedule
from distill.training.task import CHECKED_BATCHES
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families import outputs
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.points import keep_at
from distill.yolo.families.table import gives_of
from distill.yolo.training.forwards import BFLOAT16, use_forwards
from distill.yolo.training.in_memory import missing_packages
from distill.yolo.training.learner import Learner
from distill.yolo.training.ultralytics_loss import Ultralytics
from tests.prune.networks import yolo

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ALONE = "labels alone"


def learners(name: str, size: int, batch: int, device: torch.device) -> dict[str, Learner]:
    """The network of each arm, on the device and in training."""
    model = checkpoint.load(name).model if name.endswith(".pt") else yolo(name, classes=3)
    model.args = get_cfg()
    graph = prune.trace(model, torch.zeros(1, 3, size, size), adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "bn_scale"), flops=0.5, round_to=8)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    original = checkpoint.fused(model)
    ours = losses.build(losses.fitting(DEFAULT_LOSSES, gives_of(model))[0])
    arms = {ALONE: [], "ours, teacher in PyTorch": ours}
    elsewhere = {}
    if device.type == "cpu":
        elsewhere = {each.title: each.package for each in RUNTIMES if not missing_packages(each)} | {BFLOAT16: BFLOAT16}
    names = {f"ours, teacher in {title}": name for title, name in elsewhere.items()}
    arms |= dict.fromkeys(names, ours)
    if "dist" in gives_of(model):
        arms["ultralytics' own"] = [losses.WeightedLoss("ultralytics", 1.0, Ultralytics())]
    made = {}
    for arm, terms in arms.items():
        twin = copy.deepcopy(student).requires_grad_(True)
        task = outputs.distillation(twin, [outputs.teacher_of(original, terms, keep_at(model, plan, ["neck"]))])
        if arm in names:
            use_forwards(task, {task.teachers[0].name: TeacherForward(names[arm])}, size)
        made[arm] = Learner(twin, task, None, Schedule(epochs=1, batch=batch, steps=1)).train().to(device)
    return made


def batch_of(folder: str | None, size: int, count: int) -> dict[str, Tensor]:
    """Images of a folder, or noise, with four boxes each."""
    images = torch.rand(count, 3, size, size)
    if folder is not None:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".jpg", ".png"))[:count]
        read = [torch.from_numpy(cv2.resize(cv2.imread(str(file)), (size, size))[..., ::-1].copy()) for file in files]
        images = torch.stack(read).permute(0, 3, 1, 2).float() / 255
    boxes = torch.rand(4 * count, 4) * 0.4 + 0.3
    index = torch.arange(count).repeat_interleave(4).float()
    images = images.contiguous(memory_format=torch.channels_last)
    return {"img": images, "batch_idx": index, "cls": torch.zeros(4 * count, 1), "bboxes": boxes}


def measure(arms: dict[str, Learner], batch: dict[str, Tensor], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each arm's step by clock, and of its step with the optimizer."""
    device = batch["img"].device
    optimizers = {arm: torch.optim.AdamW(learner.parameters(), lr=1e-6) for arm, learner in arms.items()}
    times: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in arms}

    def now() -> list[float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return [clock() for clock in CLOCKS.values()]

    for turn in range(rounds + CHECKED_BATCHES + 1):
        for arm, learner in arms.items():
            begin = now()
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                loss, _ = learner(batch)
            loss.backward()
            step = now()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
            optimizers[arm].step()
            end = now()
            optimizers[arm].zero_grad()
            if turn > CHECKED_BATCHES:  # in the first ones each loss is watched
                times[arm].append(
                    tuple(1e3 * (b - a) for until in (step, end) for a, b in zip(begin, until, strict=True))
                )
    names = [f"{clock}{part}" for part in ("", " with optimizer") for clock in CLOCKS]
    return {arm: dict(zip(names, map(median, zip(*rows, strict=True)), strict=True)) for arm, rows in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="yolov5n", help="a checkpoint, or a name of ultralytics'")
    parser.add_argument("imgsz", nargs="?", type=int, default=320)
    parser.add_argument("batch", nargs="?", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", help="a folder")
    parser.add_argument("--out", help="a JSON file; the figures are added to it under the network's name")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = pick_device(options.device)
    arms = learners(options.network, options.imgsz, options.batch, device)
    batch = batch_of(options.images, options.imgsz, options.batch)
    figures = measure(arms, {name: value.to(device) for name, value in batch.items()}, options.rounds)
    result = {
        "device": env.device_name(str(device)),
        "imgsz": options.imgsz,
        "batch": options.batch,
        "rounds": options.rounds,
        "images": options.images is not None,
        "ms": {arm: {name: round(value, 1) for name, value in row.items()} for arm, row in figures.items()},
        "ratio": {
            arm: {n: round(value / figures[ALONE][n], 3) for n, value in row.items()} for arm, row in figures.items()
        },
        "versions": env.versions(),
    }
    for arm, row in figures.items():
        ratios = "".join(f"{name:>20} {value / figures[ALONE][name]:.2f}x" for name, value in row.items())
        print(f"{arm:<30}{row['wall']:>8.1f} ms{ratios}")
    if options.out:
        file = Path(options.out)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        kept[Path(options.network).stem] = result
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
