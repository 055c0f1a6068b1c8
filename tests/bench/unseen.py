"""Checkpoints cut on images that nobody has labelled: agreement with the teacher, and mAP of boxes on others that have labels.

    python -m tests.bench.unseen ../shared/data/coco256 ../shared/weights/yolo11n-seg-coco.pt ../shared/weights/yolov5n.pt

The labels of DATA/data.yaml are boxes, so masks and keypoints have an agreement and no mAP. What is finished is not done again,
and what was stopped goes on. The figures of all checkpoints are in OUT/unseen.json, each with the command that gave it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distill.machine.signals import interrupted_by_signals
from distill.results.figures import ModelResult
from distill.results.results import Results
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.evaluation.evaluate import EvalSettings, evaluate
from tests.bench.families import QUICK, run


def main(words: Sequence[str] | None = None) -> int:
    """Do what is not finished. Returns the exit status: 1 if a run has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with images/train2017 and data.yaml")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("unseen"))
    parser.add_argument("--flops", type=float, default=0.8)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--keys", default="distill.epochs=0", help="more keys of the recipe, with blanks in between")
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with interrupted_by_signals():
        for path in args.checkpoints:
            failed += do(path, args)
    return int(failed > 0)


def do(path: Path, args: argparse.Namespace) -> int:
    """One checkpoint. Returns 1 if its run has failed."""
    folder, images = args.out / path.stem, args.data / "images" / "train2017"
    words = ["half", f"model={path}", f"data={images}", f"imgsz={args.imgsz}", f"prune.flops={args.flops}"]
    words += [*QUICK, *args.keys.split()]
    if not (folder / "results.json").is_file() and run(folder, words):
        return 1
    file = args.out / "unseen.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if path.stem not in known:
        known[path.stem] = figures(folder, args) | {"command": shlex.join(["distill", "run", *words])}
        file.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps({path.stem: known[path.stem]}, indent=2), flush=True)
    return 0


def figures(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Of each network of a run, what it agrees with the teacher and its mAP of boxes."""
    results = Results.read(folder)
    assert results.agreement is not None  # the images have no labels
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{results.device}, mAP with {torch.get_num_threads()}",
        "versions": results.versions,
        "agreement_on": f"{results.agreement.images} images, {sum(results.agreement.teacher_boxes.values())} boxes",
        "student_is": results.student_is,
        "networks": {name: of_network(model, folder, args) for name, model in results.models.items()},
        "seconds": results.seconds,
    }


def of_network(model: ModelResult, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network. The data are opened for a detector, whatever the network finds beside boxes."""
    network = checkpoint.load(folder / model.file)
    data = datasets.load(args.data / "data.yaml", network.names)
    measured = evaluate(network.model, data, EvalSettings(args.imgsz))
    beside = {} if model.beside is None else {f"agreement_of_{model.beside.name}s": asdict(model.beside)["map50_95"]}
    return {
        "agreement": model.agreement50_95,
        **beside,
        "box_map50_95": measured.map50_95,
        "box_map50": measured.map50,
        "gflops": model.gflops,
        "params": model.params,
    }


if __name__ == "__main__":
    raise SystemExit(main())
