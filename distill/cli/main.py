"""The command line: words in, one call out. No logic, and no import that takes time before it is known to be needed."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from distill.cli import commands
from distill.errors import DistillError

PIPE_CLOSED = 141  # what a shell reports for SIGPIPE


class Parser(argparse.ArgumentParser):
    """Complains in one line, as everything else here does, and suggests options."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", key=value", "")  # which may be absent: argparse says otherwise of intermixed words
        for word in message.partition("unrecognized arguments: ")[2].split():
            close = difflib.get_close_matches(word, self._option_string_actions, n=1)
            keyed = ": a recipe's keys are given as key=value" if word.startswith("--") else ""
            message += f", did you mean '{close[0]}'?" if close else keyed
        raise DistillError(f"{message} ({self.prog} --help)")


@dataclass(frozen=True)
class Command:
    """One command: its function, a line of help, an example, and what declares its arguments."""

    run: Callable[[argparse.Namespace], int]
    help: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 the machine's fault, 2 the user's, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except DistillError as error:
        return _complain(error, error.exit_status)
    except KeyboardInterrupt:
        return _complain("interrupted", commands.INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (`distill ls keys | head`): keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        from distill.machine.faults import machine_fault

        if isinstance(error, ValueError):
            prune = sys.modules.get("prune.errors")  # what was not imported was not raised
            if prune is not None and isinstance(error, prune.PruneError):
                return _complain(error, DistillError.exit_status)
        elif fault := machine_fault(error):
            return _complain(fault, fault.exit_status)
        raise


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from distill.machine.env import versions

        print("distill", versions().get("distill-prune", "(not installed)"))
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f", did you mean '{close[0]}'?" if close else f": there are {', '.join(COMMANDS)}"
        raise DistillError(f"no command '{words[0]}'{hint}")
    parser = Parser(
        prog=f"distill {words[0]}",
        description=command.help,
        epilog=f"example:\n{textwrap.indent(command.example, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.declare(parser)
    # Intermixed: `distill run demo --quiet seed=1` has its words in any order.
    try:
        args = parser.parse_intermixed_args(words[1:])
    except SystemExit as done:  # --help
        return int(done.code or 0)
    return command.run(args)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        "usage: distill COMMAND ...\n\nMake a trained YOLO smaller: prune it, mend it, let the original teach the rest.\n\n"
        f"{commands}\n\nexample:\n  {COMMANDS['run'].example.splitlines()[0]}\n\ndistill COMMAND --help says more."
    )


def _complain(text: object, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped one (distill ls recipes)"
    )
    parser.add_argument(
        "override", metavar="key=value", nargs="*", help="replaces a key of the recipe (distill ls keys)"
    )
    _quiet(parser)


def _run(parser: argparse.ArgumentParser) -> None:
    _recipe(parser)
    _folder(parser, "run", "runs/<recipe>-<n>")


def _folder(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    parser.add_argument("--out", metavar="DIR", help=f"the folder of the {what}; {default} by default")
    parser.add_argument(
        "--resume", action="store_true", help=f"go on with a {what}; its folder may stand in the place of RECIPE"
    )


def _compare(parser: argparse.ArgumentParser) -> None:
    _recipe(parser)
    parser.add_argument("--arms", metavar="A,B,C", help="ways of training to compare (distill ls arms)")
    parser.add_argument(
        "--arm",
        metavar="WAY",
        action="append",
        default=[],
        help="one of your own, 'name=key=value key=value': what it changes in the recipe; may be repeated",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, help="runs of each arm, from the recipe's seed on; 3 by default"
    )
    parser.add_argument(
        "--lrs",
        metavar="LR,LR",
        help="learning rates to choose from, for each arm in the same way: with the first seed",
    )
    _folder(parser, "comparison", "runs/compare-<recipe>-<n>")


def _ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("recipes", "keys", "losses", "importances", "arms"), help="what to list")
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="*",
        help="with losses, only these, your own too: my_losses.py:my_kd, package.module:name, score_bce",
    )


def _cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe, or a recipe file")
    parser.add_argument("dest", metavar="DEST", nargs="?", help="file or folder to copy it to; here by default")


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("option", metavar="key=value", nargs="*", help="data=, teacher=, imgsz=, batch=, device=")
    _quiet(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument(
        "format", metavar="FORMAT", nargs="+", help="onnx, torchscript, openvino, ...; imgsz= sets the size"
    )
    _quiet(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN_DIR", nargs="*", help="the folder of a finished run or comparison")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="write the page of all results, DIR.md, from the small JSON files in DIR; each RUN_DIR is added there first",
    )
    parser.add_argument(
        "--table", metavar="FILE", help="with --results, put their table into this document, between its two marks"
    )


def _env(parser: argparse.ArgumentParser) -> None:
    pass


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show warnings and results only")


COMMANDS = {
    "run": Command(
        commands.run,
        "Prune, repair and distill a detector as a recipe says.",
        "distill run yolov5-half model=best.pt data=data.yaml imgsz=320\n"
        "distill run yolov5-half model=best.pt data=data.yaml distill.epochs=0 --out runs/no-training\n"
        "distill run --resume runs/yolov5-half-1",
        _run,
    ),
    "plan": Command(
        commands.plan,
        "Show what a run would cut, layer by layer, without training.",
        "distill plan yolov5-half model=best.pt data=data.yaml prune.flops=0.3",
        _recipe,
    ),
    "compare": Command(
        commands.compare,
        "Train the same pruned network in several ways, over seeds, and say which ends higher.",
        "distill compare yolov5-half model=best.pt data=data.yaml --arms finetune,ultralytics,ours --seeds 3\n"
        "distill compare yolov5-half model=best.pt data=data.yaml --lrs 1e-4,3e-4 --arm 'gentle=distill.labels=0.1'\n"
        "distill compare --resume runs/compare-yolov5-half-1",
        _compare,
    ),
    "check": Command(
        commands.check,
        "Open everything a run needs, and say what is wrong with it.",
        "distill check my.yaml model=best.pt",
        _recipe,
    ),
    "ls": Command(
        commands.list_things,
        "List the shipped recipes, the keys of a recipe, losses, importances, or arms of a comparison.",
        "distill ls keys\ndistill ls losses my_losses.py:my_kd",
        _ls,
    ),
    "cp": Command(
        commands.copy, "Copy a shipped recipe to a file, to edit it.", "distill cp yolov5-half mine.yaml", _cp
    ),
    "eval": Command(
        commands.evaluate, "Measure a checkpoint's mAP.", "distill eval student.pt data=data.yaml imgsz=320", _eval
    ),
    "export": Command(
        commands.export,
        "Convert a checkpoint, and check the outputs.",
        "distill export student.pt onnx imgsz=320",
        _export,
    ),
    "report": Command(
        commands.report,
        "Write the report of a finished run again, or one page of many runs' results.",
        "distill report runs/yolov5-half-1\ndistill report --results docs/results runs/yolov5-half-1 --table README.md",
        _report,
    ),
    "env": Command(
        commands.show_env, "Print this machine and the versions installed, for bug reports.", "distill env", _env
    ),
}
