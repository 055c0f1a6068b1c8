"""Commands without a run: plan, check, evaluate, export."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import prune
from distill.engine.curve import CurveOptions, trace_curve
from distill.engine.folder import RECIPE
from distill.engine.planning import describe, make_plan
from distill.engine.preflight import load_data, preflight
from distill.engine.size import image_size
from distill.errors import DistillError
from distill.machine.console import Console
from distill.machine.device import pick_device
from distill.machine.files import lock_folder, write_bytes
from distill.machine.words import text_table
from distill.recipe.load import to_yaml
from distill.recipe.schema import SHAPES, Distill, EvalOptions, ExportOptions, Recipe
from distill.report import curve as curves
from distill.results.curve import FILE, CurveResults
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.evaluation.evaluate import PARTS, EvalSettings, Metrics, Swap, swap_with_teacher
from distill.yolo.evaluation.evaluate import evaluate as measure
from distill.yolo.export import check_exports, export_checkpoint


def plan(recipe: Recipe, console: Console) -> prune.PrunePlan:
    """Print what a run would cut, layer by layer, with the parameters and FLOPs that are left. Nothing is written."""
    _require_inputs(recipe)
    checked = preflight(replace(recipe, sparsify=None, distill=Distill(epochs=0), export=()), progress=console.track)
    assert checked.teacher is not None and checked.data is not None  # neither is made by a run
    checked.show(console)
    cut = make_plan(checked.recipe, checked.teacher, checked.data, checked.device, console)
    rows = [(group.name, str(group.before), str(group.after)) for group in cut.groups]
    console.result("\n".join(text_table([("channels of", "before", "after"), *rows], numbers=True)))
    console.result(describe(cut))
    return cut


def curve(recipe: Recipe, options: CurveOptions, out: Path | None, console: Console) -> CurveResults:
    """Print accuracy after the cut and after repair over a range of budgets; with `out`, write them and a page there too.

    Points that the curve.json in `out` has already are not measured again. The folder may be that of a run.
    """
    _require_inputs(recipe)
    with ExitStack() as held:
        if out is None:
            results = trace_curve(recipe, options, console)
        else:
            if out.is_dir():
                held.enter_context(closing(lock_folder(out)))
            save = partial(_save_curve, out, to_yaml(recipe))
            results = trace_curve(recipe, options, console, before=partial(CurveResults.read, out), save=save)
            save(results)
            curves.write(out)
    console.result("\n" + curves.summary(results, out))
    return results


def _save_curve(out: Path, recipe: str, results: CurveResults) -> None:
    write_bytes(out / FILE, (json.dumps(results.to_dict(), indent=2) + "\n").encode())
    if not (out / RECIPE).is_file():
        write_bytes(out / RECIPE, recipe.encode())


def _require_inputs(recipe: Recipe) -> None:
    """Raise if a run would make its network or its images first."""
    if recipe.model is None or recipe.data == SHAPES:
        raise DistillError(
            f"plan {recipe.name}: it needs a trained checkpoint and its images: give model=... and data=..."
        )


def check(recipe: Recipe, console: Console) -> None:
    """Open everything that a run needs, and raise the first error."""
    preflight(recipe, progress=console.track).show(console)


def evaluate(path: str, options: EvalOptions, console: Console) -> None:
    """Print a checkpoint's mAP as its own project would measure it; given the teacher, also what boxes and scores lost."""
    device = pick_device(options.device)
    student = checkpoint.load(path, trust=options.trust)
    teacher = checkpoint.load(options.teacher, trust=options.trust) if options.teacher else None
    data = load_data(options.data, student, console.track)
    for note in data.notes:
        console.line(note)
    for warning in data.warnings:
        console.warn(warning)
    size = image_size(options.imgsz, student)

    def measured(network: Detector, swap: Swap | None = None) -> Metrics:
        return measure(network.model, data, EvalSettings(size.pixels, options.batch, device), swap=swap)

    metrics = measured(student)
    rows = {"mAP50-95": metrics.map50_95, "mAP50": metrics.map50, **metrics.per_class}
    if teacher is not None:
        for part in PARTS:
            swap = swap_with_teacher(teacher.model, part, device)
            rows[f"mAP50-95 with the teacher's {part}"] = measured(student, swap).map50_95
        rows["mAP50-95 of the teacher"] = measured(teacher).map50_95
    console.result(f"{metrics.images} images, {metrics.instances} objects, {size}")
    console.result("\n".join(text_table((name, f"{value:.3f}") for name, value in rows.items())))


def export(path: str, formats: tuple[str, ...], options: ExportOptions, console: Console) -> None:
    """Convert a checkpoint; the results lie beside it."""
    check_exports(formats)
    size = image_size(options.imgsz, checkpoint.load(path, trust=options.trust))
    console.line(str(size))
    for name in formats:
        exported = export_checkpoint(Path(path), name, Path(path).absolute().parent, size.pixels, trust=options.trust)
        checked = "not compared" if exported.max_abs_diff is None else f"outputs differ by {exported.max_abs_diff:.1e}"
        console.result(f"{exported.file}  {exported.size_mb:.1f} MB, {checked}")
