"""The commands: the name of each, its arguments, and the call whose docstring holds its help and examples."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.cli import calls, lists
from distill.cli.completion import SHELLS, completion

Argument = tuple[str, dict[str, Any]]  # name and options of `argparse.ArgumentParser.add_argument`


@dataclass(frozen=True)
class Command:
    """One command: what does it, with the parsed arguments, and what the arguments are."""

    call: Callable[[argparse.Namespace], None]
    arguments: tuple[Argument, ...] = ()

    @property
    def help(self) -> str:
        """One line."""
        return (inspect.getdoc(self.call) or "").partition("\n")[0]

    @property
    def example(self) -> str:
        """Lines that a user can type."""
        return (inspect.getdoc(self.call) or "").partition("\n\n")[2]


def _word(name: str, metavar: str, help: str | None = None, **options: Any) -> Argument:
    return name, {"metavar": metavar, "help": help, **options}


def _flag(name: str, help: str, **options: Any) -> Argument:
    return name, {"action": "store_true", "help": help, **options}


_OPEN = _flag("--open", "open the report in a browser at the end")
# What every command has that computes.
_SCREEN = (
    _flag("--quiet", "show warnings and results only"),
    _flag("-v", "show what was decided, and why, for bug reports", dest="verbose"),
)


def _folder(what: str, default: str) -> tuple[Argument, ...]:
    return (
        _OPEN,
        _word("--out", "DIR", f"the folder of the {what}; runs/{default}<recipe>-<n> by default"),
        _flag("--resume", f"resume a {what}; its folder may stand in the place of RECIPE"),
    )


_RECIPE = (
    _word("recipe", "RECIPE", "a recipe file, or the name of a shipped one (distill ls recipes)"),
    _word("override", "key=value", "replaces a key of the recipe (distill ls keys)", nargs="*"),
    *_SCREEN,
)
_JOBS = _word("--jobs", "N", "runs side by side, each in a process of its own; 1 by default", type=int)
_COMPARE = (
    *_RECIPE,
    _word("--arms", "A,B,C", "ways of training to compare (distill ls arms)"),
    _word("--arm", "WAY", "one of your own, 'name=key=value ...'; may be repeated", action="append", default=[]),
    _word("--seeds", "N", "runs of each arm, from the recipe's seed on; 3 by default", type=int),
    _word("--lrs", "LR,LR", "learning rates to choose from, for each arm, with the first seed"),
    _JOBS,
    *_folder("comparison", "compare-"),
)
_PLAN = (
    *_RECIPE,
    _flag("--curve", "measure accuracy after cut and repair over a range of budgets"),
    _word("--budgets", "A,B,C", "with --curve, values of the budget key; 0.9 to 0.1 and around the limit by default"),
    _flag("--full-repair", "with --curve, repair block by block too, as a run does: slower"),
    _word("--out", "DIR", "with --curve, write curve.json and curve.html there, perhaps into a run's folder"),
    _OPEN,
)
_SWEEP = (
    _RECIPE[0],
    _word(
        "override", "key=value", "replaces a key; each of several values, key=a,b, is tried ([a,b] is one)", nargs="*"
    ),
    *_SCREEN,
    _word("--seeds", "N", "runs of each combination, from the recipe's seed on; 1 by default", type=int),
    _JOBS,
    *_folder("sweep", "sweep-"),
)
_LS = (
    ("what", {"choices": lists.LISTS, "help": "what to list"}),
    _word(
        "name",
        "NAME",
        "with losses or importances, only these: score_bce, my_losses.py:my_kd, package.module:name; with features, "
        "model=, plan=, imgsz=, trust=, code=",
        nargs="*",
    ),
    _flag("--json-schema", "with keys, a schema with which editors complete recipes"),
)
_CP = (
    _word("recipe", "RECIPE", "a shipped recipe, or a recipe file"),
    _word("dest", "DEST", "file or folder to copy it to; here by default", nargs="?"),
)
_CHECKPOINT = _word("checkpoint", "CHECKPOINT")
_OPTIONS = _word("option", "key=value", "data=, teacher=, pictures=, imgsz=, batch=, device=", nargs="*")
_FORMATS = _word(
    "format", "FORMAT", "onnx, torchscript, openvino, ...; imgsz= sets another size than the checkpoint's", nargs="+"
)

COMMANDS = {
    "run": Command(calls.run, (*_RECIPE, *_folder("run", ""))),
    "plan": Command(calls.plan, _PLAN),
    "compare": Command(calls.compare, _COMPARE),
    "sweep": Command(calls.sweep, _SWEEP),
    "check": Command(calls.check, _RECIPE),
    "ls": Command(lists.ls, _LS),
    "cp": Command(calls.copy, _CP),
    "eval": Command(calls.evaluate, (_CHECKPOINT, _OPTIONS, *_SCREEN)),
    "export": Command(calls.export, (_CHECKPOINT, _FORMATS, *_SCREEN)),
    "report": Command(
        calls.report,
        (
            _word("folder", "RUN_DIR", "the folder of a finished run or comparison", nargs="*"),
            _word(
                "--results", "DIR", "write DIR.md, a page of the small JSON files in DIR, to which RUN_DIRs are added"
            ),
            _word("--table", "FILE", "with --results, put their table into this document, between its two marks"),
            _OPEN,
        ),
    ),
    "env": Command(lists.env),
    "completion": Command(completion, (("shell", {"choices": SHELLS, "help": "the shell that you use"}),)),
}
