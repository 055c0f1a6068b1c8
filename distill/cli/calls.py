"""What the commands call; the docstrings are their help. Heavy modules are imported only after the words are parsed."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.cli.screen import console_of, open_page
from distill.errors import DistillError
from distill.machine import parallel


def run(args: argparse.Namespace) -> None:
    """Prune, repair and distill a detector as a recipe says.

    distill run half model=best.pt data=data.yaml
    distill run half model=best.pt data=data.yaml distill.epochs=0 --out runs/no-training
    distill run --resume runs/half-1
    """
    from distill.api import runs

    with parallel.process_group(), console_of(args) as console:
        recipe, path = runs.recipe_and_folder(args.recipe, args.override, out=args.out, resume=args.resume)
        runs.run(recipe, path, console, resume=args.resume)
    if args.open:
        open_page(path / "report.html")


def compare(args: argparse.Namespace) -> None:
    """Train the same pruned network in several ways, over seeds, and say which ends higher.

    distill compare half model=best.pt data=data.yaml --arms finetune,ultralytics,ours --seeds 3
    distill compare half model=best.pt data=data.yaml --lrs 1e-4,3e-4 --arm 'gentle=distill.labels=0.1'
    distill compare --resume runs/compare-half-1
    """
    from distill.api import runs
    from distill.comparison import arms

    parallel.require_single("distill compare")
    with console_of(args) as console:
        recipe, path = runs.recipe_and_folder(
            args.recipe, args.override, out=args.out, resume=args.resume, prefix="compare-"
        )
        plan = partial(arms.plan, recipe, args.arms, args.arm, args.seeds, args.lrs)
        runs.compare(plan, recipe, path, console, resume=args.resume, quiet=args.quiet, jobs=args.jobs)
    if args.open:
        open_page(path / "compare.html")


def sweep(args: argparse.Namespace) -> None:
    """Run a recipe with each combination of several values, and say which are worth it.

    distill sweep half model=best.pt data=data.yaml prune.flops=0.7,0.5,0.3
    distill sweep half model=best.pt data=data.yaml prune.flops=0.5,0.3 distill.epochs=20,50 --seeds 2
    distill sweep --resume runs/sweep-half-1
    """
    from distill.api import runs
    from distill.comparison import sweep as sweeps

    parallel.require_single("distill sweep")
    single, several = sweeps.read_words(args.override)
    words = [*single, *(f"{key}={values[0]}" for key, values in several.items())]
    with console_of(args) as console:
        recipe, path = runs.recipe_and_folder(args.recipe, words, out=args.out, resume=args.resume, prefix="sweep-")
        plan = partial(sweeps.plan, several=several, seeds=args.seeds)
        runs.sweep(plan, recipe, path, console, resume=args.resume, quiet=args.quiet, jobs=args.jobs)
    if args.open:
        open_page(path / "sweep.html")


def plan(args: argparse.Namespace) -> None:
    """Show what a run would cut, layer by layer; or, with --curve, how far one can go.

    distill plan half model=best.pt data=data.yaml prune.flops=0.3
    distill plan half model=best.pt data=data.yaml --curve --out runs/curve
    """
    from distill.cli import exploring
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override, files=True)
    if exploring.wants_curve(args):
        exploring.curve(recipe, args)
        return
    from distill.engine import standalone

    with console_of(args) as console:
        console.result(str(standalone.plan(recipe, console)))


def check(args: argparse.Namespace) -> None:
    """Open everything a run needs, and say what is wrong.

    distill check my.yaml model=best.pt
    """
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override, files=True)
    from distill.engine import standalone

    with console_of(args) as console:
        standalone.check(recipe, console)
    print(f"{recipe.name}: recipe, model, data and losses are in order")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a checkpoint's mAP.

    distill eval student.pt data=data.yaml imgsz=320
    distill eval student.pt data=data.yaml teacher=best.pt pictures=seen
    """
    from distill.recipe.schema import EvalOptions

    options = _options(EvalOptions, args.option, args.checkpoint)
    from distill.engine import standalone

    with console_of(args) as console:
        console.result(str(standalone.evaluate(args.checkpoint, options, console)))


def export(args: argparse.Namespace) -> None:
    """Convert a checkpoint, and check the outputs.

    distill export student.pt onnx imgsz=320
    """
    from distill.recipe.schema import ExportOptions

    options = _options(ExportOptions, [word for word in args.format if "=" in word], args.checkpoint)
    formats = tuple(word for word in args.format if "=" not in word)
    if not formats:
        raise DistillError("no format to export to: distill export best.pt onnx")
    from distill.engine import standalone

    with console_of(args) as console:
        for exported in standalone.export(args.checkpoint, formats, options, console):
            console.result(str(exported))


def _options(cls: type, words: Sequence[str], checkpoint: str) -> Any:
    from distill.recipe.reading import missing_file
    from distill.recipe.section import bind
    from distill.recipe.yaml import wrap

    missing = missing_file(checkpoint)
    problems = [f"command line: {missing}"] if missing else []
    return bind(cls, wrap({}, "command line"), words, problems, files=True)


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
    """Write the report of a finished run, comparison, sweep or curve again, or one page of many runs' results.

    distill report runs/half-1
    distill report --results docs/results runs/half-1 --table README.md
    """
    from distill import report as reports
    from distill.report import compare as comparisons
    from distill.report import curve as curves
    from distill.report import summary
    from distill.report import sweep as sweeps

    if args.results is not None:
        summary.collect(map(Path, args.folder), Path(args.results))
        print(summary.write(Path(args.results), args.table and Path(args.table)))
        return
    if len(args.folder) != 1 or args.table:
        raise DistillError(
            "give the folder of one run; for a page of several: distill report --results DIR RUN_DIR ..."
        )
    folder = Path(args.folder[0])
    pages = {"compare": comparisons, "sweep": sweeps, "results": reports, "curve": curves}
    found = {name: page for name, page in pages.items() if (folder / f"{name}.json").is_file()}
    if not found:
        raise DistillError(f"{folder} holds no results.json: give the folder of a finished run")
    for written in found.values():
        written.write(folder)
    page = folder / f"{next(iter(found)).replace('results', 'report')}.html"
    print(page)
    if args.open:
        open_page(page)
