"""What the report says of the run itself: its cut, its repair, its exports, and how to use it and to do it again."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill.losses.spec import ORIGINAL
from distill.machine.words import duration
from distill.report.facts import Table, shown_models
from distill.report.format import digits, percent, value_text
from distill.results.networks import START, network_of
from distill.results.results import Results
from distill.results.steps import Repaired


def commands(results: Results, run_dir: Path) -> list[str]:
    """What to do with the result next, in the project that its checkpoint came from."""
    if results.native:
        # Its scripts are run in a checkout of their project, so every path is absolute.
        paths = {"file": (run_dir / results.native.file).absolute(), "data": Path(results.data.path).absolute()}
        words = {name: shlex.quote(str(path)) for name, path in paths.items()} | {"imgsz": results.imgsz}
        return [
            line.format(**words) for line in results.native.commands if results.data.labelled or "{data}" not in line
        ]
    model, size = _student(run_dir), f" imgsz={results.imgsz}"
    code = shlex.quote(
        os.pathsep.join(results.recipe.get("code", ()))
    )  # the student of a fork needs the fork's classes
    yolo = f"PYTHONPATH={code} yolo" if results.recipe.get("code") else "yolo"
    lines = [f"yolo predict model={model} source=path/to/images{size}"]
    if results.data.labelled:
        lines.append(f"yolo val model={model} data={shlex.quote(results.data.path)}{size}")
    lines.append(f"yolo export model={model} format=onnx{size}")
    return [line.replace("yolo", yolo, 1) for line in lines]


def further_commands(results: Results, run_dir: Path) -> list[str]:
    """To train the result on, or to cut it again."""
    options = f"model={_student(run_dir)} data={shlex.quote(results.data.path)} imgsz={results.imgsz}"
    if code := results.recipe.get("code"):
        options += f" code={shlex.quote(code[0] if len(code) == 1 else json.dumps(code))} trust=true"
    return [f"distill run {recipe} {options}" for recipe in ("finetune", "half")]


def _student(run_dir: Path) -> str:
    return shlex.quote(str(run_dir / "student.pt"))  # whichever network was chosen, the result has this name


def legend(results: Results) -> list[str]:
    """What each network is, in a sentence each."""
    recipe, distill = results.recipe, results.recipe["distill"]
    labelled = results.data.labelled and distill["labels"] > 0
    teachers = [ORIGINAL] * results.taught_by_original + [other.name for other in results.teachers]
    taught_by = "the teacher" if not results.teachers else " and ".join(teachers)
    training = f"training against {taught_by}" + (" and on the labels" if labelled else "")
    schedule = results.schedule or {}
    if schedule.get("labelled") not in (None, schedule.get("batch")):
        training += f", with {results.data.unlabelled_images} unlabelled images"
    if not distill["losses"] and not results.teachers:
        training = "training on the labels alone"
    student = training.replace("training", "trained", 1)
    if results.average and results.average.taken:
        student = f"the mean of the weights before and after {training}"
    elif results.student_is in ("pruned", "repaired"):
        student = f"the {results.student_is} network, for {training} ended below it"
    own = {"student": student}  # what the table of networks does not know
    if results.model is None:
        own["teacher"] = "trained by this run"
    elif results.titles["teacher"] == START:
        own["teacher"] = "the network that training started from"
    if recipe["prune"] is None:
        own["pruned"] = "the same network, for nothing was to be cut"
    elif recipe["sparsify"]:
        own["pruned"] = "its channels cut, after sparsity training"
    lines = [f"{other.name}: a teacher, {other.file}." for other in results.teachers]
    shown = shown_models(results)
    titles = results.titles
    return lines + [f"{titles[name].capitalize()}: {own.get(name, network_of(name).legend)}." for name in shown]


def channels(results: Results) -> Table | None:
    """Width of every group of layers, in the order of execution; those that lost nothing have no change."""
    groups = results.plan.groups
    rows = tuple(
        (g.name, str(g.before), str(g.after), percent(g.before, g.after) if g.after != g.before else "") for g in groups
    )
    return Table(("layer", "channels", "kept", "change"), rows) if rows else None


class Error(NamedTuple):
    """Held-out error of a layer or block before and after repair, and whether repair changed it."""

    name: str
    before: float
    after: float
    changed: bool


def errors(parts: Iterable[Repaired]) -> list[Error]:
    """Of the layers or blocks whose error was a number."""
    return [
        Error(part.name, part.error_before, part.error_after, part.changed)
        for part in parts
        if part.error_before is not None and part.error_after is not None
    ]


def repairs(layers: Iterable[Error]) -> Table:
    """Error of every layer around its repair."""
    rows = ((e.name, f"{e.before:.3f}", f"{e.after:.3f}", "" if e.changed else "left as it was") for e in layers)
    return Table(("layer", "error after the cut", "after repair", ""), tuple(rows))


def exports(results: Results) -> Table | None:
    """What was exported, and how far its output is from the checkpoint's."""
    rows = []
    for export in results.exports:
        difference = "not checked" if export.max_abs_diff is None else f"{export.max_abs_diff:.1e}"
        rows.append((export.format, export.file, digits(export.size_mb), difference))
    return Table(("format", "file", "size (MB)", "difference"), tuple(rows)) if rows else None


def timings(results: Results) -> Table | None:
    """How long each stage took."""
    rows = [(name, duration(seconds)) for name, seconds in results.seconds.items()]
    total = ("total", duration(sum(results.seconds.values())))
    return Table(("stage", "time"), (*rows, total)) if rows else None


def terms(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values as a person writes them; None is left out."""
    pairs = (values or {}).items()
    return [(name.replace("_", " "), value_text(value)) for name, value in pairs if value is not None]


def recipe_yaml(results: Results) -> str:
    """The resolved recipe as a file."""
    import yaml

    return yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True, default_flow_style=None).rstrip()
