"""A classifier at half the FLOPs: this project, labels alone, and torch-pruning with labels alone, from the same teachers.

    pip install torch-pruning==1.6.1 scikit-learn
    python -m tests.bench.classify FOLDER --out docs/bench/classify.json

Data: the 1797 handwritten digits of scikit-learn (8 x 8 pixels, shown at 32), few of them to train on. For each seed a teacher is
trained, then each way makes a network of half its FLOPs and trains it for the same epochs from its own search for a learning
rate. It goes on where it was stopped: what the file of `--out` has is not done again. Without scikit-learn, shapes are drawn.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import distill
from distill.classifiers import checkpoint
from distill.classifiers.kind import CLASSIFIERS
from distill.demo import crops
from distill.machine.measure import count_gflops

SIZE, TRAIN, EPOCHS, TEACHER_EPOCHS = 32, 400, 10, 20
ARCHITECTURE = "timm/resnet10t"
COMMON = {"imgsz": SIZE, "batch": 16, "device": "cpu", "export": [], "latency.runs": 2, "prune.images": 96}


def write_digits(folder: Path) -> Path:
    """The first TRAIN digits to train on, the others to measure on, in folders of their classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, number) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("train" if index < TRAIN else "val") / str(number)
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * (255 / 16)).astype("uint8"))
        grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB").save(place / f"{index:04d}.png")
    return folder


def cut_by_peer(teacher: Path, out: Path) -> None:
    """Half the FLOPs, by torch-pruning: group magnitudes, over all layers alike, found by bisection."""
    import torch_pruning

    opened = CLASSIFIERS.open(teacher)
    image = torch.zeros(1, 3, SIZE, SIZE)

    def cut(ratio: float) -> nn.Module:
        model = copy.deepcopy(opened.model)
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        ignored = [model.get_submodule("fc")]
        torch_pruning.pruner.BasePruner(model, image, importance, pruning_ratio=ratio, ignored_layers=ignored).step()
        return model

    low, high, whole = 0.0, 0.95, count_gflops(opened.model, SIZE)
    for _ in range(7):
        ratio = (low + high) / 2
        low, high = (ratio, high) if count_gflops(cut(ratio), SIZE) > whole / 2 else (low, ratio)
    checkpoint.save(cut(high), out, classes=opened.names, imgsz=SIZE)


def one_seed(root: Path, data: Path, seed: int) -> dict[str, Any]:
    """The figures of one seed."""
    base = {**COMMON, "data": str(data), "seed": seed}
    teacher = root / "teacher" / "teacher.pt"
    if not teacher.is_file():
        train = {"model": None, "teacher.train.model": ARCHITECTURE, "teacher.train.epochs": TEACHER_EPOCHS}
        distill.run("classify", base | train | {"distill.epochs": 0, "repair.steps": 0}, out=root / "teacher")
    cut_by_peer(teacher, root / "peer.pt")
    ways = {
        "ours": {"model": str(teacher)},
        "labels alone": {"model": str(teacher), "distill.losses": {"kl": 0, "feature_pkd": 0}},
        "labels alone, not repaired": {
            "model": str(teacher),
            "distill.losses": {"kl": 0, "feature_pkd": 0},
            "repair": None,
        },
        "torch-pruning": {
            "model": str(root / "peer.pt"),
            "prune": None,
            "repair": None,
            "distill.losses": {"kl": 0, "feature_pkd": 0},
        },
    }
    found: dict[str, Any] = {}
    for name, keys in ways.items():
        out = root / name.replace(" ", "-").replace(",", "")
        if out.is_dir():
            results = distill.resume(out)
        else:
            results = distill.run("classify", base | {"distill.epochs": EPOCHS} | keys, out=out)
        found[name] = {
            "top1": results.student.score,
            "start": results.models["repaired" if "repaired" in results.models else "pruned"].score,
            "gflops": results.student.gflops,
            "params": results.student.params,
        }
        if name == "ours":
            found["teacher"] = {"top1": results.teacher.score, "gflops": results.teacher.gflops}
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--seeds", type=int, default=3)
    given = words.parse_args()
    data = given.folder / "data"
    content: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {"seeds": {}}
    if not data.is_dir():
        try:
            write_digits(data)
        except ImportError:
            crops.generate(data, train=TRAIN, val=400, imgsz=SIZE)
    setting = {
        "network": ARCHITECTURE,
        "train": TRAIN,
        "epochs": EPOCHS,
        "teacher_epochs": TEACHER_EPOCHS,
        "imgsz": SIZE,
    }
    for seed in range(given.seeds):
        if str(seed) not in content["seeds"]:
            content["seeds"][str(seed)] = one_seed(given.folder / f"seed-{seed}", data, seed)
            given.out.write_text(json.dumps(content | {"setting": setting}, indent=1) + "\n")
    for name in next(iter(content["seeds"].values())):
        print(name, [round(each[name]["top1"], 4) for each in content["seeds"].values()])


if __name__ == "__main__":
    main()
