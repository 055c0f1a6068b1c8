"""What the commands call; the docstrings are their help. Heavy modules are imported only after the words are parsed."""

from __future__ import annotations

import argparse
import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, Interrupted, RunError
from distill.machine import parallel
from distill.machine.console import Console

if TYPE_CHECKING:
    from distill.engine.folder import RunFolder
    from distill.recipe.schema import Recipe


def run(args: argparse.Namespace) -> None:
    """Prune, repair and distill a detector as a recipe says.

    distill run half model=best.pt data=data.yaml
    distill run half model=best.pt data=data.yaml distill.epochs=0 --out runs/no-training
    distill run --resume runs/half-1
    """
    from distill.engine.folder import COMPARISON, RunFolder
    from distill.recipe.load import to_yaml

    with parallel.process_group():
        recipe, path = _recipe_and_folder(args)
        if (path / COMPARISON).is_file() and args.resume:
            raise DistillError(f"{path} is a comparison: distill compare --resume {path}")
        make = RunFolder.create if parallel.is_leader() else RunFolder.follow
        with closing(make(path, to_yaml(recipe), resume=args.resume)) as folder:
            from distill.engine import pipeline

            parallel.broadcast()  # followers start only if the leader could take its folder
            _watch(lambda console: pipeline.run(recipe, folder, console), folder, args.quiet, "run")


def compare(args: argparse.Namespace) -> None:
    """Train the same pruned network in several ways, over seeds, and say which ends higher.

    distill compare half model=best.pt data=data.yaml --arms finetune,ultralytics,ours --seeds 3
    distill compare half model=best.pt data=data.yaml --lrs 1e-4,3e-4 --arm 'gentle=distill.labels=0.1'
    distill compare --resume runs/compare-half-1
    """
    from distill.comparison import arms
    from distill.engine.folder import COMPARISON, STAGES, RunFolder
    from distill.recipe.load import to_yaml

    parallel.require_single("distill compare")
    recipe, path = _recipe_and_folder(args, "compare-")
    before = None
    if args.resume and (path / STAGES).is_file():
        raise DistillError(f"{path} is a run and no comparison: distill run --resume {path}")
    if args.resume and (path / COMPARISON).is_file():
        from distill.results.comparison import ComparisonResults

        before = ComparisonResults.read(path)
    plan = arms.plan(recipe, args.arms, args.arm, args.seeds, args.lrs, before)
    with closing(RunFolder.create(path, to_yaml(recipe), resume=args.resume)) as folder:
        from distill.comparison import runner

        _watch(lambda console: runner.run(plan, folder, console, quiet=args.quiet), folder, args.quiet, "compare")


def _recipe_and_folder(args: argparse.Namespace, prefix: str = "") -> tuple[Recipe, Path]:
    """The recipe of a run or a comparison, and its folder: an earlier one's, the one that --out names, or the next."""
    from distill.engine.folder import RECIPE, last_path, next_path, recipe_of
    from distill.recipe.load import load

    earlier = Path(args.recipe) if args.resume and Path(args.recipe).is_dir() else None
    if earlier is not None and args.out is not None:
        raise DistillError("--resume with the folder of a run takes no --out: the run stays in its folder")
    recipe = load(recipe_of(earlier) if earlier else args.recipe, args.override)
    choose = last_path if args.resume else next_path
    path = earlier or (Path(args.out) if args.out else choose(f"{prefix}{recipe.name}"))
    path = parallel.broadcast(path)
    if args.resume and recipe.imgsz is None and (path / RECIPE).is_file():  # the size that its checkpoint had then
        recipe = replace(recipe, imgsz=load(path / RECIPE).imgsz)
    return recipe, path


def _watch(work: Callable[[Console], object], folder: RunFolder, quiet: bool, command: str) -> None:
    """Do the work of a run. However it ends, the log says why and the user reads how to resume."""
    from distill.engine.folder import LOG
    from distill.machine.faults import machine_fault

    resume = f"distill {command} --resume {shlex.quote(str(folder.path))}"
    with closing(Console(quiet=quiet or not parallel.is_leader())) as console:
        if parallel.is_leader():
            console.log_to(folder.path / LOG)
        try:
            work(console)
        except KeyboardInterrupt:
            end = f"to resume: {resume}" if folder.started else "nothing was written"
            raise Interrupted(f"interrupted; {end}") from None
        except Exception as error:
            place = Path(getattr(error, "filename", None) or folder.path)
            fault = error if isinstance(error, RunError) else machine_fault(error, place)
            if fault is None:
                console.record(str(error) if isinstance(error, DistillError) else traceback.format_exc())
                raise
            raise RunError(f"{fault}; after fixing that, resume: {resume}" if folder.started else str(fault)) from None


def plan(args: argparse.Namespace) -> None:
    """Show what a run would cut, layer by layer; or, with --curve, how far one can go.

    distill plan half model=best.pt data=data.yaml prune.flops=0.3
    distill plan half model=best.pt data=data.yaml --curve --out runs/curve
    """
    from distill.cli import exploring
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override)
    if exploring.wants_curve(args):
        exploring.curve(recipe, args)
        return
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.plan(recipe, console)


def check(args: argparse.Namespace) -> None:
    """Open everything a run needs, and say what is wrong.

    distill check my.yaml model=best.pt
    """
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override)
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.check(recipe, console)
    print(f"{recipe.name}: recipe, model, data and losses are in order")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a checkpoint's mAP.

    distill eval student.pt data=data.yaml imgsz=320
    """
    from distill.recipe.schema import EvalOptions

    options = _options(EvalOptions, args.option)
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.evaluate(args.checkpoint, options, console)


def export(args: argparse.Namespace) -> None:
    """Convert a checkpoint, and check the outputs.

    distill export student.pt onnx imgsz=320
    """
    from distill.recipe.schema import ExportOptions

    options = _options(ExportOptions, [word for word in args.format if "=" in word])
    formats = tuple(word for word in args.format if "=" not in word)
    if not formats:
        raise DistillError("no format to export to: distill export best.pt onnx")
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.export(args.checkpoint, formats, options, console)


def _options(cls: type, words: Sequence[str]) -> Any:
    from distill.recipe.section import bind
    from distill.recipe.yaml import wrap

    return bind(cls, wrap({}, "command line"), words)


def copy(args: argparse.Namespace) -> None:
    """Copy a shipped recipe to a file, to edit it.

    distill cp half mine.yaml
    """
    from distill.recipe.load import find

    source = find(args.recipe)
    target = Path(args.dest or source.name)
    if target.is_dir() or str(args.dest).endswith(("/", os.sep)):
        target /= source.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise DistillError(f"{target} exists and is not overwritten: name another file") from None
    except FileNotFoundError:
        raise DistillError(f"there is no folder {target.parent} to copy the recipe into") from None
    print(f"{target}: edit it, then: distill run {shlex.quote(str(target))}")


def report(args: argparse.Namespace) -> None:
    """Write the report of a finished run again, or one page of many runs' results.

    distill report runs/half-1
    distill report --results docs/results runs/half-1 --table README.md
    """
    from distill import report as reports
    from distill.engine.folder import COMPARISON
    from distill.report import compare as comparisons
    from distill.report import summary

    if args.results is not None:
        summary.collect(map(Path, args.folder), Path(args.results))
        print(summary.write(Path(args.results), args.table and Path(args.table)))
        return
    if len(args.folder) != 1 or args.table:
        raise DistillError(
            "give the folder of one run; for a page of several: distill report --results DIR RUN_DIR ..."
        )
    folder = Path(args.folder[0])
    compared = (folder / COMPARISON).is_file()
    if not compared and not (folder / "results.json").is_file():
        raise DistillError(f"{folder} holds no results.json: give the folder of a finished run")
    (comparisons if compared else reports).write(folder)
    print(folder / ("compare.html" if compared else "report.html"))
