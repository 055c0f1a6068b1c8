"""What the report says, section by section."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from distill.report import agreement, facts
from distill.report.document import Block, Code, Document, Figure, Fold, Terms, Text, fold, section
from distill.report.facts import Results, Table
from distill.report.format import value_text

MANY = 12  # classes that are shown at once
PARITY = "Difference: the largest from the checkpoint's own outputs, relative for boxes and absolute for scores."


def compose(results: Results, run_dir: Path, figures: Collection[str] = ()) -> Document:
    """The report, before it becomes Markdown or HTML. What there is nothing to say about is left out.

    Args:
        results: what is in results.json.
        run_dir: where student.pt lies, for the commands.
        figures: names of the plots that could be drawn.
    """

    def figure(name: str, *, wide: bool = False) -> Figure | None:
        return Figure(name, wide) if name in figures else None

    plan, schedule = results.get("plan") or {}, results.get("schedule") or {}
    measured = [_quiet(_legend(results)), _quiet(agreement.note(results)), _quiet(facts.latency_note(results))]
    quality = "Agreement with the teacher" if agreement.measured(results) else "Accuracy"
    sections = (
        section("Before and after", [facts.comparison(results), *measured]),
        section("Use it", _usage(results, run_dir)),
        section(quality, [figure("accuracy"), figure("training"), *_classes(results)]),
        section("What was cut", [_cut(plan), figure("channels", wide=True), _layers(facts.channels(results))]),
        section("What repair mended", [_mended(results), figure("repair", wide=True), _layers(facts.repairs(results))]),
        section(
            "Training", [_terms(schedule), _factors(results), _rates(results), _average(results), figure("losses")]
        ),
        section("Exports", [facts.exports(results), _quiet(PARITY)]),
        section("Do it again", _reproduction(results, run_dir)),
        section("Where it ran", [_terms(_environment(results)), fold("Time", facts.timings(results))]),
    )
    return Document(
        name=str(results.get("recipe_name") or "run"),
        about=_about(results),
        gain=facts.gain(results),
        judgement=facts.judgement(results),
        accepted=results.get("accepted"),
        warnings=tuple(facts.findings(results)),
        sections=tuple(part for part in sections if part is not None),
    )


def commands(results: Results, run_dir: Path) -> list[str]:
    """What to do with the result next: with the original YOLOv5 where it came from there, else with stock ultralytics."""
    if results.get("original"):
        model, size = shlex.quote(str(run_dir / results["original"])), f" --imgsz {results['imgsz']}"
        return [
            f"python detect.py --weights {model} --source path/to/images{size}",
            f"python val.py --weights {model} --data data.yaml{size}",
            f"python export.py --weights {model} --include onnx{size}",
        ]
    model, data = _student(run_dir), results.get("data") or {}
    lines = [f"yolo predict model={model} source=path/to/images{_imgsz(results)}"]
    if data.get("labelled") and data.get("path"):
        lines.append(f"yolo val model={model} data={shlex.quote(str(data['path']))}{_imgsz(results)}")
    return [*lines, f"yolo export model={model} format=onnx{_imgsz(results)}"]


def _usage(results: Results, run_dir: Path) -> list[Block]:
    if facts.chosen(results) == "teacher" or not facts.stages(results):
        return []
    data = shlex.quote(str((results.get("data") or {}).get("path") or "data.yaml"))
    return [
        Text(
            f"{results['original']} has the format of the original YOLOv5, for that project's own scripts:"
            if results.get("original")
            else "Needs ultralytics alone, not this project:"
        ),
        Code(tuple(commands(results, run_dir))),
        Text(
            "To train or cut it further. (`yolo train` would not keep its shape: it builds the full-size network again.)"
        ),
        Code(
            tuple(
                f"distill run {recipe} model={_student(run_dir)} data={data}{_imgsz(results)}"
                for recipe in ("finetune", "yolov5-half")
            )
        ),
    ]


def _student(run_dir: Path) -> str:
    """Whatever was chosen, the result has this name."""
    return shlex.quote(str(run_dir / "student.pt"))


def _imgsz(results: Results) -> str:
    return f" imgsz={results['imgsz']}" if results.get("imgsz") else ""


def _reproduction(results: Results, run_dir: Path) -> list[Block]:
    blocks: list[Block] = [
        Text("The run folder holds the recipe with every value that was used, defaults and overrides alike:"),
        Code((f"distill run {shlex.quote(str(run_dir / 'recipe.yaml'))}",)),
    ]
    if results.get("recipe"):
        import yaml

        text = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, default_flow_style=None)
        blocks.append(Fold("recipe.yaml", Code(tuple(text.splitlines()), "yaml")))
    return blocks


def _about(results: Results) -> str:
    data = results.get("data") or {}
    images = f"{data.get('train_images', 0)} + {data.get('val_images', 0)} images" if "val_images" in data else ""
    size = f"{results['imgsz']} px" if results.get("imgsz") else ""
    return " · ".join(filter(None, [results.get("model"), data.get("path"), images, size, results.get("device")]))


def _legend(results: Results) -> str:
    """What the stages are, for who reads the table first."""
    recipe = results.get("recipe") or {}
    wanted = recipe.get("distill") or {}
    labelled = (results.get("data") or {}).get("labelled", True) and wanted.get("labels", 1)
    training = "training against the teacher" if wanted.get("losses", True) else "training on the labels alone"
    if labelled and wanted.get("losses", True):
        training = "training against the teacher and on the labels"
    student = training.replace("training", "trained", 1)
    if (results.get("average") or {}).get("taken"):
        student = f"the mean of the weights before and after {training}"
    elif (before := results.get("student_is")) in ("pruned", "repaired"):
        student = f"the {before} network, for {training} ended below it"
    legend = {
        "teacher": "trained by this run" if results.get("model") is None else "the network that was given",
        "pruned": "its channels cut"
        + (", after sparsity training" if recipe.get("sparsify") else ", and nothing else"),
        "repaired": "mended without labels and without an epoch",
        "student": student,
    }
    if not recipe.get("prune", True):
        legend["pruned"] = "the same network, for nothing was to be cut"
    return " ".join(f"{name.capitalize()}: {legend[name]}." for name in facts.stages(results) if name in legend)


def _cut(plan: Mapping[str, Any]) -> Text | None:
    if not plan:
        return None
    text = ", ".join(
        f"{plan[f'{key}_after'] / plan[f'{key}_before']:.1%} of the {name} are left"
        for key, name in (("flops", "FLOPs"), ("params", "parameters"))
        if plan.get(f"{key}_before") and plan.get(f"{key}_after") is not None
    )
    if plan.get("verify") is not None:
        text += f". With the same channels zeroed the full network gives the same outputs, to {plan['verify']:.1e}"
    return Text(f"{text.removeprefix('. ')}.") if text else None


def _mended(results: Results) -> Text | None:
    layers = facts.repaired_layers(results)
    if not layers:
        return None
    images, text = results["repair"].get("images"), ""
    on = f" on {images} images, without labels" if images else ""
    for what, how, rows in (
        ("layers", f"mended in closed form{on}", layers),
        ("blocks", "then trained, each by itself, towards the teacher's", results["repair"].get("blocks") or ()),
    ):
        if rows:
            before, after = (median(row[key] for row in rows) for key in ("error_before", "error_after"))
            changed = sum(bool(row.get("changed", True)) for row in rows)
            text += (
                f"{changed} of {len(rows)} {what} were {how}: the median error of a {what[:-1]} fell from {before:.2f} to "
                f"{after:.2f}. "
            )
    return Text(text.strip())


def _classes(results: Results) -> list[Block | None]:
    """A long list is closed, and those that lost most stand above it."""
    table = facts.per_class(results) or agreement.per_class(results)
    if table is None or len(table.rows) <= MANY:
        return [table]
    title = f"All {len(table.rows)} classes, greatest loss first"
    return [replace(table, rows=table.rows[: MANY // 2]), Fold(title, table)]


def _environment(results: Results) -> dict[str, Any]:
    data = results.get("data") or {}
    return {
        "device": results.get("device"),
        **(results.get("versions") or {}),
        "seed": results.get("seed"),
        "data": data.get("path"),
        "classes": data.get("classes"),
    }


def _terms(values: Mapping[str, Any]) -> Terms | None:
    pairs = tuple((str(key).replace("_", " "), value_text(value)) for key, value in values.items() if value is not None)
    return Terms(pairs) if pairs else None


def _factors(results: Results) -> Text | None:
    found = (results.get("rehearsal") or {}).get("factors")
    if not found:
        return None
    factors = ", ".join(f"{name} {factor:.3g}" for name, factor in found.items())
    return Text(
        f"Losses were balanced: each was multiplied, beside its weight, so that all of weight 1 pull equally hard: {factors}."
    )


def _rates(results: Results) -> Text | None:
    found = (results.get("rehearsal") or {}).get("search")
    if not found:
        return None
    losses = [f"{rate:.0e}: {'diverged' if loss is None else f'{loss:.3f}'}" for rate, loss in found["tried"]]
    if all(loss is None or loss > found.get("limit", found["start"]) for _, loss in found["tried"]):
        why = "No learning rate came back in a short trial to within 5 % of the loss that it began with, so the lowest is taken"
    else:
        why = "The learning rate is the highest at which a short trial, of a tenth of the steps, ends within 5 % of where it began"
    return Text(f"{why}: from a loss of {found['start']:.3f} to {', '.join(losses)}.")


def _average(results: Results) -> Text | None:
    found = results.get("average")
    if not found:
        return None
    return Text(
        "BatchNorm kept its statistics, so the mean of the weights before and after training was measured too: "
        f"{found['judged_by']} {found['averaged']:.3f}, against {found['trained']:.3f} after training. It is "
        f"{'' if found['taken'] else 'not '}the student."
    )


def _quiet(text: str) -> Text | None:
    return Text(text, quiet=True) if text else None


def _layers(table: Table | None) -> Fold | None:
    return fold("Every layer", table)
