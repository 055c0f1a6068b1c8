"""The commands: what each is called, what it says of itself, its arguments, and what it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.cli import calls


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        call: does it, with the parsed arguments.
        help: one line.
        example: lines that a user can type.
        arguments: names and options of `argparse.ArgumentParser.add_argument`.
    """

    call: Callable[[argparse.Namespace], None]
    help: str
    example: str
    arguments: tuple[tuple[str, dict[str, Any]], ...] = ()


def _word(name: str, metavar: str, help: str | None = None, **options: Any) -> tuple[str, dict[str, Any]]:
    return name, {"metavar": metavar, "help": help, **options}


def _flag(name: str, help: str) -> tuple[str, dict[str, Any]]:
    return name, {"action": "store_true", "help": help}


_QUIET = _flag("--quiet", "show warnings and results only")
_RECIPE = (
    _word("recipe", "RECIPE", "a recipe file, or the name of a shipped one (distill ls recipes)"),
    _word("override", "key=value", "replaces a key of the recipe (distill ls keys)", nargs="*"),
    _QUIET,
)
_CHECKPOINT = _word("checkpoint", "CHECKPOINT")

COMMANDS = {
    "run": Command(
        calls.run,
        "Prune, repair and distill a detector as a recipe says.",
        "distill run yolov5-half model=best.pt data=data.yaml imgsz=320\n"
        "distill run yolov5-half model=best.pt data=data.yaml distill.epochs=0 --out runs/no-training\n"
        "distill run --resume runs/yolov5-half-1",
        (
            *_RECIPE,
            _word("--out", "DIR", "the folder of the run; runs/<recipe>-<n> by default"),
            _flag("--resume", "resume a run; its folder may stand in the place of RECIPE"),
        ),
    ),
    "plan": Command(
        calls.plan,
        "Show what a run would cut, layer by layer, without training.",
        "distill plan yolov5-half model=best.pt data=data.yaml prune.flops=0.3",
        _RECIPE,
    ),
    "compare": Command(
        calls.compare,
        "Train the same pruned network in several ways, over seeds, and say which ends higher.",
        "distill compare yolov5-half model=best.pt data=data.yaml --arms finetune,ultralytics,ours --seeds 3\n"
        "distill compare yolov5-half model=best.pt data=data.yaml --lrs 1e-4,3e-4 --arm 'gentle=distill.labels=0.1'\n"
        "distill compare --resume runs/compare-yolov5-half-1",
        (
            *_RECIPE,
            _word("--arms", "A,B,C", "ways of training to compare (distill ls arms)"),
            _word(
                "--arm", "WAY", "one of your own, 'name=key=value ...'; may be repeated", action="append", default=[]
            ),
            _word("--seeds", "N", "runs of each arm, from the recipe's seed on; 3 by default", type=int),
            _word("--lrs", "LR,LR", "learning rates to choose from, for each arm, with the first seed"),
            _word("--out", "DIR", "the folder of the comparison; runs/compare-<recipe>-<n> by default"),
            _flag("--resume", "resume a comparison; its folder may stand in the place of RECIPE"),
        ),
    ),
    "check": Command(
        calls.check,
        "Open everything a run needs, and say what is wrong.",
        "distill check my.yaml model=best.pt",
        _RECIPE,
    ),
    "ls": Command(
        calls.ls,
        "List the shipped recipes, the keys of a recipe, losses, importances, or arms of a comparison.",
        "distill ls keys\ndistill ls losses my_losses.py:my_kd\ndistill ls keys --json-schema > recipe.schema.json",
        (
            ("what", {"choices": tuple(calls.LISTS), "help": "what to list"}),
            _word(
                "name", "NAME", "with losses, only these: score_bce, my_losses.py:my_kd, package.module:name", nargs="*"
            ),
            _flag("--json-schema", "with keys, a schema with which editors complete recipes"),
        ),
    ),
    "cp": Command(
        calls.copy,
        "Copy a shipped recipe to a file, to edit it.",
        "distill cp yolov5-half mine.yaml",
        (
            _word("recipe", "RECIPE", "a shipped recipe, or a recipe file"),
            _word("dest", "DEST", "file or folder to copy it to; here by default", nargs="?"),
        ),
    ),
    "eval": Command(
        calls.evaluate,
        "Measure a checkpoint's mAP.",
        "distill eval student.pt data=data.yaml imgsz=320",
        (_CHECKPOINT, _word("option", "key=value", "data=, teacher=, imgsz=, batch=, device=", nargs="*"), _QUIET),
    ),
    "export": Command(
        calls.export,
        "Convert a checkpoint, and check the outputs.",
        "distill export student.pt onnx imgsz=320",
        (
            _CHECKPOINT,
            _word("format", "FORMAT", "onnx, torchscript, openvino, ...; imgsz= sets the size", nargs="+"),
            _QUIET,
        ),
    ),
    "report": Command(
        calls.report,
        "Write the report of a finished run again.",
        "distill report runs/yolov5-half-1",
        (_word("folder", "RUN_DIR"),),
    ),
    "env": Command(calls.env, "Print this machine and the installed versions, for bug reports.", "distill env"),
}
