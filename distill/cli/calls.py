"""What the commands call. Heavy modules are imported once the words are known to be right."""

from __future__ import annotations

import argparse
import os
import shlex
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, Interrupted, RunError
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.words import text_table

if TYPE_CHECKING:
    from distill.engine.folder import RunFolder
    from distill.recipe.schema import Recipe


def run(args: argparse.Namespace) -> None:
    """`distill run`."""
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
    """`distill compare`."""
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

        before = ComparisonResults.read(path).to_dict()
    plan = arms.plan(recipe, args.arms, args.arm, args.seeds, args.lrs, before)
    with closing(RunFolder.create(path, to_yaml(recipe), resume=args.resume)) as folder:
        from distill.comparison import runner

        _watch(lambda console: runner.run(plan, folder, console, quiet=args.quiet), folder, args.quiet, "compare")


def _recipe_and_folder(args: argparse.Namespace, prefix: str = "") -> tuple[Recipe, Path]:
    """The recipe of a run or a comparison, and its folder: an earlier one's, the one that --out names, or the next."""
    from distill.engine.folder import last_path, next_path, recipe_of
    from distill.recipe.load import load

    earlier = Path(args.recipe) if args.resume and Path(args.recipe).is_dir() else None
    if earlier is not None and args.out is not None:
        raise DistillError("--resume with the folder of a run takes no --out: the run stays in its folder")
    recipe = load(recipe_of(earlier) if earlier else args.recipe, args.override)
    choose = last_path if args.resume else next_path
    path = earlier or (Path(args.out) if args.out else choose(f"{prefix}{recipe.name}"))
    return recipe, parallel.broadcast(path)


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
            return
        except KeyboardInterrupt:
            end = f"to resume: {resume}" if folder.started else "nothing was written"
            raise Interrupted(f"interrupted; {end}") from None
        except DistillError as error:
            if not isinstance(error, RunError):
                console.record(str(error))
                raise
            fault = error
        except Exception as error:
            machine = machine_fault(error, Path(getattr(error, "filename", None) or folder.path))
            if machine is None:
                console.record(traceback.format_exc())
                raise
            fault = machine
    raise RunError(f"{fault}; after fixing that, resume: {resume}" if folder.started else str(fault))


def plan(args: argparse.Namespace) -> None:
    """`distill plan`."""
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override)
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.plan(recipe, console)


def check(args: argparse.Namespace) -> None:
    """`distill check`."""
    from distill.recipe.load import load

    recipe = load(args.recipe, args.override)
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.check(recipe, console)
    print(f"{recipe.name}: recipe, model, data and losses are in order")


def evaluate(args: argparse.Namespace) -> None:
    """`distill eval`."""
    from distill.recipe.schema import EvalOptions

    options = _options(EvalOptions, args.option)
    from distill.engine import standalone

    with closing(Console(quiet=args.quiet)) as console:
        standalone.evaluate(args.checkpoint, options, console)


def export(args: argparse.Namespace) -> None:
    """`distill export`."""
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


def ls(args: argparse.Namespace) -> None:
    """`distill ls`."""
    if args.name and args.what != "losses":
        raise DistillError(f"distill ls {args.what} lists all there are and takes no name, got '{args.name[0]}'")
    if args.json_schema and args.what != "keys":
        raise DistillError(f"--json-schema describes keys, not {args.what}: distill ls keys --json-schema")
    if args.json_schema:
        import json

        from distill.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))
    else:
        print("\n".join(text_table(LISTS[args.what](args.name))))


def _recipes(_: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.recipe.load import shipped

    for name, file in shipped().items():
        yield (
            name,
            file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "),
        )  # its first line says what it is for


def _keys(_: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.recipe.load import keys

    return [("key", "type", "default", "help"), *keys()]


def _losses(names: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill import losses

    yield "loss", "options", "help"
    for loss in losses.describe(names or losses.BUILTIN):
        options = [*loss.required, *(f"{name}={value}" for name, value in loss.options.items())]
        yield loss.name, ", ".join(options), loss.help


def _importances(_: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.recipe.schema import IMPORTANCES

    return IMPORTANCES.items()


def _arms(_: Sequence[str]) -> Iterable[Sequence[str]]:
    from distill.comparison import arms

    return [*((arm.name, arm.help) for arm in arms.BUILTIN), arms.WITHOUT]


LISTS = {"recipes": _recipes, "keys": _keys, "losses": _losses, "importances": _importances, "arms": _arms}


def copy(args: argparse.Namespace) -> None:
    """`distill cp`."""
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
    """`distill report`."""
    from distill import report as reports
    from distill.engine.folder import COMPARISON
    from distill.report import compare as comparisons

    folder = Path(args.folder)
    compared = (folder / COMPARISON).is_file()
    if not compared and not (folder / "results.json").is_file():
        raise DistillError(f"{folder} holds no results.json: give the folder of a finished run")
    (comparisons if compared else reports).write(folder)
    print(folder / ("compare.html" if compared else "report.html"))


def env(_: argparse.Namespace) -> None:
    """`distill env`."""
    from distill.machine.env import collect

    machine = collect()
    versions = machine.pop("versions")
    lists = {name: ", ".join(value) for name, value in machine.items() if isinstance(value, list)}
    rows = (machine | lists | versions).items()
    print("\n".join(text_table((name, "none" if value in (None, "") else str(value)) for name, value in rows)))
