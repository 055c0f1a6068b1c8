"""Families of detectors on real images: a teacher of each is trained, cut to half of its FLOPs, repaired and trained on.

    python -m tests.bench.families ../shared/data/bccd/data.yaml
    python -m tests.bench.families ../shared/data/bccd/data.yaml --models yolo26n=16 --start yolo11n-seg-coco.pt

The student sees no label: neither the cut nor the repair reads any, and in its epochs the teacher alone teaches. What is
finished is not done again, and what was stopped goes on. The figures of all models are in OUT/families.json, each with the
commands that gave it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import torch_safe_load

from distill.machine.signals import interrupted_by_signals
from distill.results.results import Results
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.data import dataset as datasets

MODELS = "yolo26n=40,yolo11n=40,yolov8n=40"  # and the epochs of each teacher
QUICK = ("export=[]", "pictures=0", "latency.runs=1")  # nothing of these is reported
UNCUT = ("prune=null", "repair=null", "distill.epochs=0")


def main(words: Sequence[str] | None = None) -> int:
    """Do what is not finished. Returns the exit status: 1 if a run has failed."""
    args = arguments(words)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with interrupted_by_signals():
        for model, epochs in args.models:
            failed += do(model, epochs, args)
    return int(failed > 0)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data.yaml")
    parser.add_argument("override", nargs="*", metavar="key=value", help="more keys of the student's recipe")
    parser.add_argument("--out", type=Path, default=Path("families"))
    parser.add_argument("--models", default=MODELS, help="architectures, each with the epochs of its teacher")
    parser.add_argument("--start", type=Path, help="a checkpoint whose weights the teachers begin with, those that fit")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10, help="of the student")
    args = parser.parse_intermixed_args(words)
    pairs = (text.partition("=") for text in args.models.split(","))
    args.models = [(model, int(epochs)) for model, _, epochs in pairs]
    return args


def do(model: str, epochs: int, args: argparse.Namespace) -> int:
    """Teacher and student of one architecture. Returns 1 if one has failed."""
    teacher, student = args.out / f"{model}-teacher", args.out / model
    train = f"teacher={{train: {{model: {started(model, args)}, epochs: {epochs}, batch: {args.batch}, mosaic: 0}}}}"
    shared = [f"data={args.data}", f"imgsz={args.imgsz}", *QUICK]
    steps = {
        teacher: ["half", "model=null", train, *UNCUT, *shared],
        student: [
            "half",
            f"model={teacher / 'teacher.pt'}",
            f"distill.epochs={args.epochs}",
            "distill.labels=0",
            *shared,
            *args.override,
        ],
    }
    for folder, words in steps.items():
        if not (folder / "results.json").is_file() and run(folder, words):
            return 1
    note(
        model,
        teacher,
        student,
        {folder.name: shlex.join(["distill", "run", *words]) for folder, words in steps.items()},
        args,
    )
    return 0


def started(model: str, args: argparse.Namespace) -> str:
    """What a teacher begins with: its description, or a checkpoint with all the weights of `--start` that fit."""
    if args.start is None:
        return f"{model}.yaml"
    path = args.out / f"{model}-start.pt"
    if not path.is_file():
        network: Any = build(f"{model}.yaml", datasets.names_in(args.data) or {})
        weights = torch_safe_load(str(args.start))[0]["model"].float().state_dict()
        own = network.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        network.load_state_dict(fitting, strict=False)
        share = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
        print(f"{model}: {share:.0%} of the weights are those of {args.start.name}", flush=True)
        checkpoint.save(network, path, names=network.names, imgsz=args.imgsz)
    return str(path)


def run(folder: Path, words: list[str]) -> int:
    """One run, from the start or from where it was. Returns its exit status."""
    begun = (folder / "recipe.yaml").is_file()
    command = [
        sys.executable,
        "-m",
        "distill",
        "run",
        *(["--resume", str(folder)] if begun else [*words, "--out", str(folder)]),
    ]
    start = time.monotonic()
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        status = subprocess.run(
            command, check=False, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)
        ).returncode
    print(f"{folder.name}: exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
    return status


def note(model: str, teacher: Path, student: Path, commands: dict[str, str], args: argparse.Namespace) -> None:
    """Add the figures of an architecture to OUT/families.json."""
    file = args.out / "families.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    results, start = Results.read(student), time.strftime("%Y-%m-%d")
    figures = {
        name: {
            "map50_95": network.map50_95,
            "map50_95_without_nms": network.map50_95_without_nms,
            "gflops": network.gflops,
            "params": network.params,
        }
        for name, network in results.models.items()
    }
    known[model] = {
        "date": start,
        "device": results.device,
        "versions": results.versions,
        "begins_with": args.start.name if args.start else "random weights",
        "repaired_share": figures["repaired"]["map50_95"] / figures["teacher"]["map50_95"],
        "student_is": results.student_is,
        "networks": figures,
        "commands": commands,
    }
    file.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{model}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
