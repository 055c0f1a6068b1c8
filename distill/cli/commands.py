"""What each command of the command line calls. Heavy modules are imported once the words are known to be right."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, RunError
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.words import text_table

if TYPE_CHECKING:
    from distill.engine.folder import RunFolder
    from distill.recipe.schema import Recipe

INTERRUPTED = 130  # what a shell reports for SIGINT


def run(args: argparse.Namespace) -> int:
    from distill.engine.folder import COMPARISON, LOG, RunFolder
    from distill.recipe import load as recipes

    with parallel.process_group():
        recipe, path = _place(args)
        if (path / COMPARISON).is_file() and args.resume:
            raise DistillError(f"{path} is a comparison: distill compare --resume {path}")
        make = RunFolder.create if parallel.is_leader() else RunFolder.follow
        with closing(make(path, recipes.to_yaml(recipe), resume=args.resume)) as folder:
            from distill.engine import pipeline

            parallel.broadcast()  # the leader has its folder; it would not do without
            console = Console(quiet=args.quiet or not parallel.is_leader())
            if parallel.is_leader():
                console.log_to(folder.path / LOG)
            return _watch(lambda: pipeline.run(recipe, folder, console), folder, console)


def compare(args: argparse.Namespace) -> int:
    from distill.comparison import arms
    from distill.engine.folder import COMPARISON, LOG, STAGES, RunFolder
    from distill.recipe import load as recipes

    parallel.require_single("distill compare")
    recipe, path = _place(args, "compare-")
    before = None
    if args.resume and (path / STAGES).is_file():
        raise DistillError(f"{path} is a run and no comparison: distill run --resume {path}")
    if args.resume and (path / COMPARISON).is_file():
        from distill.report import compare as reports

        before = reports.read(path)
    wanted = arms.plan(recipe, args.arms, args.arm, args.seeds, args.lrs, before)
    with closing(RunFolder.create(path, recipes.to_yaml(recipe), resume=args.resume)) as folder:
        from distill.comparison import runner as compare

        console = Console(quiet=args.quiet)
        console.log_to(folder.path / LOG)
        return _watch(lambda: compare.run(wanted, folder, console, quiet=args.quiet), folder, console, "compare")


def _place(args: argparse.Namespace, prefix: str = "") -> tuple[Recipe, Path]:
    """The recipe of a run or a comparison, and its folder: that of an earlier one, the one that is named, or the next."""
    from distill.engine.folder import last_path, next_path, recipe_of
    from distill.recipe import load as recipes

    earlier = Path(args.recipe) if args.resume and Path(args.recipe).is_dir() else None
    if earlier is not None and args.out is not None:
        raise DistillError("--resume with the folder of a run takes no --out: the run goes on where it is")
    recipe = recipes.load(recipe_of(earlier) if earlier else args.recipe, args.override)
    choose = last_path if args.resume else next_path
    path = earlier or (Path(args.out) if args.out else choose(f"{prefix}{recipe.name}"))
    return recipe, parallel.broadcast(path)


def _watch(work: Callable[[], object], folder: RunFolder, console: Console, command: str = "run") -> int:
    """Do the work of a run. However it ends, the log says why and the user reads how to go on."""
    from distill.machine.faults import machine_fault

    mend = f"distill {command} --resume {shlex.quote(str(folder.path))}"
    try:
        work()
        return 0
    except KeyboardInterrupt:
        console.close()
        print(
            f"interrupted; to go on: {mend}" if folder.started else "interrupted; nothing was written", file=sys.stderr
        )
        return INTERRUPTED
    except DistillError as error:
        if not isinstance(error, RunError):
            console.record(str(error))
            raise
        fault = error
    except Exception as error:
        found = machine_fault(error, Path(getattr(error, "filename", None) or folder.path))
        if found is None:
            console.record(traceback.format_exc())
            raise
        fault = found
    finally:
        console.close()
    raise RunError(f"{fault}; to go on after that is mended: {mend}" if folder.started else str(fault))


def plan(args: argparse.Namespace) -> int:
    recipe = _load(args)
    from distill.engine import standalone as dryrun

    dryrun.plan(recipe, Console(quiet=args.quiet))
    return 0


def check(args: argparse.Namespace) -> int:
    recipe = _load(args)
    from distill.engine import standalone as dryrun

    dryrun.check(recipe, Console(quiet=args.quiet))
    print(f"{recipe.name}: recipe, model, data and losses are in order")
    return 0


def list_things(args: argparse.Namespace) -> int:
    from distill.recipe import load as recipes
    from distill.recipe.schema import IMPORTANCES

    if args.name and args.what != "losses":
        raise DistillError(f"distill ls {args.what} lists all there are and takes no name, got '{args.name[0]}'")
    if args.what == "keys":
        _print_table([("key", "type", "default", "help"), *recipes.keys()])
    elif args.what == "recipes":
        _print_table([(name, _title(file)) for name, file in recipes.shipped().items()])
    elif args.what == "importances":
        _print_table(IMPORTANCES.items())
    elif args.what == "arms":
        from distill.comparison import arms

        _print_table([*((arm.name, arm.help) for arm in arms.BUILTIN), arms.WITHOUT])
    else:
        from distill import losses

        found = losses.describe(args.name or losses.BUILTIN)
        rows = [(row.name, ", ".join(filter(None, (*row.required, _named(row.options)))), row.help) for row in found]
        _print_table([("loss", "options", "help"), *rows])
    return 0


def copy(args: argparse.Namespace) -> int:
    from distill.recipe.load import find

    source = find(args.recipe)
    target = Path(args.dest or source.name)
    if target.is_dir() or str(args.dest).endswith(("/", os.sep)):
        target /= source.name
    text = source.read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DistillError(f"{target} is there already and is not overwritten: name another file") from None
    except FileNotFoundError:
        raise DistillError(f"no folder {target.parent} to copy the recipe into") from None
    print(f"{target}: edit it, then: distill run {shlex.quote(str(target))}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from distill.recipe.schema import EvalOptions

    options = _options(EvalOptions, args.option)
    from distill.engine import standalone as dryrun

    dryrun.evaluate(args.checkpoint, options, Console(quiet=args.quiet))
    return 0


def export(args: argparse.Namespace) -> int:
    from distill.recipe.schema import ExportOptions

    options = _options(ExportOptions, [word for word in args.format if "=" in word])
    formats = tuple(word for word in args.format if "=" not in word)
    if not formats:
        raise DistillError("export to which format? distill export best.pt onnx")
    from distill.engine import standalone as dryrun

    dryrun.export(args.checkpoint, formats, options, Console(quiet=args.quiet))
    return 0


def report(args: argparse.Namespace) -> int:
    from distill import report as reports
    from distill.engine.folder import COMPARISON
    from distill.report import compare as comparisons
    from distill.report import summary

    if args.results is not None:
        summary.collect(map(Path, args.folder), Path(args.results))
        print(summary.write(Path(args.results), args.table and Path(args.table)))
        return 0
    if len(args.folder) != 1 or args.table:
        raise DistillError(
            "give the folder of one run; for a page of several runs: distill report --results DIR RUN_DIR ..."
        )
    (folder,) = map(Path, args.folder)
    if (folder / COMPARISON).is_file():
        comparisons.write(folder)
        print(folder / "compare.html")
        return 0
    if not (folder / "results.json").is_file():
        raise DistillError(f"{folder} holds no results.json: give the folder of a run that is finished")
    reports.write(folder)
    print(folder / "report.html")
    return 0


def show_env(args: argparse.Namespace) -> int:
    from distill.machine import env

    found = env.collect()
    versions = found.pop("versions")
    _print_table([(name, _words(value)) for name, value in (found | versions).items()])
    return 0


def _load(args: argparse.Namespace) -> Recipe:
    from distill.recipe import load as recipes

    return recipes.load(args.recipe, args.override)


def _options(cls: type, words: Sequence[str]) -> Any:
    from distill.recipe.section import bind
    from distill.recipe.yaml import wrap

    return bind(cls, wrap({}, "command line"), words)


def _title(recipe: Path) -> str:
    """A recipe says what it is for in the comment of its first line."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _named(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _words(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    print("\n".join(text_table(rows)))
