"""Commands without a run: plan, check, evaluate, export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import prune
from distill.engine.curve import CurveOptions, trace_curve
from distill.engine.folder import RECIPE
from distill.engine.kinds import kind_at
from distill.engine.planning import make_plan
from distill.engine.preflight import Preflight, preflight
from distill.engine.size import ImageSize, image_size
from distill.engine.unlabelled import scratch_frames
from distill.errors import DistillError
from distill.kinds.kind import Kind, Seen
from distill.kinds.opened import Exported, Images
from distill.machine.console import Console
from distill.machine.device import pick_device
from distill.machine.files import check_place, lock_folder, write_bytes
from distill.machine.words import html_table, text_table
from distill.recipe.load import to_yaml
from distill.recipe.schema import SHAPES, Distill, EvalOptions, ExportOptions, Recipe
from distill.report import curve as curves
from distill.report.pictures import title_of, words
from distill.results.curve import FILE, CurveResults
from distill.results.figures import Evaluation

PICTURES = 3  # of each kind


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluated(Evaluation):
    """What `distill eval` has measured of a checkpoint; printed, it is a table."""

    size: ImageSize  # of the input
    teacher: Evaluation | None = None  # of the teacher, if it is given
    # mAP50-95 with the teacher's boxes, or scores, in place of the student's: by part, if the teacher is given
    swapped: dict[str, float] = field(default_factory=dict)

    @property
    def imgsz(self) -> int:
        """Input size in pixels."""
        return self.size.pixels

    @property
    def rows(self) -> list[tuple[str, float]]:
        """Each figure with its name."""
        name = self.yardstick[0]
        rows = [*self.measures, *(self.per_class or {}).items()]
        rows += [(f"{name} with the teacher's {part}", value) for part, value in self.swapped.items()]
        if self.teacher is None:
            return rows
        agreement = [] if self.agreement is None else [("agreement with the teacher", self.agreement)]
        own = self.teacher.yardstick[1]
        return rows + agreement + ([] if own is None else [(f"{name} of the teacher", own)])

    def __str__(self) -> str:
        """The images, and a row for each figure."""
        objects = "" if self.instances is None else f", {self.instances} objects"
        lines = [f"{self.images} images{objects}, {self.size}"]
        return "\n".join([*lines, *text_table((name, f"{value:.3f}") for name, value in self.rows)])

    def __repr__(self) -> str:
        return f"Evaluated({self.figures}, {self.images} images)"

    def _repr_html_(self) -> str:
        return html_table([("", "0 to 1"), *((name, f"{value:.3f}") for name, value in self.rows)])


class Exports(tuple[Exported, ...]):
    """What `distill export` has made; printed, a line for each format."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def plan(recipe: Recipe, console: Console) -> prune.PrunePlan:
    """What a run would cut, layer by layer, with the parameters and FLOPs that are left. Nothing is written."""
    _require_inputs(recipe)
    untrained = replace(recipe, sparsify=None, distill=Distill(epochs=0), export=())
    checked = preflight(untrained, frames=scratch_frames, progress=console.track)
    assert checked.teacher is not None and checked.data is not None  # neither is made by a run
    checked.introduce(console)
    checked.show(console)
    if recipe.prune is None:
        console.line("prune is null: nothing is cut")
    return make_plan(checked.recipe, checked.teacher, checked.data, checked.device, console)


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


def check(recipe: Recipe, console: Console) -> Preflight:
    """Open everything that a run needs, and raise the first error."""
    checked = preflight(recipe, progress=console.track)
    checked.introduce(console)
    checked.show(console)
    return checked


def evaluate(path: str | Path, options: EvalOptions, console: Console) -> Evaluated:
    """A checkpoint's mAP as its own project would measure it; given the teacher, also what boxes and scores lost."""
    if options.pictures and not options.teacher:
        raise DistillError("pictures= shows how a network differs from its teacher: give teacher= too")
    folder = Path(options.pictures) if options.pictures else None
    if folder is not None:
        check_place(folder)
    device = pick_device(options.device)
    kind = kind_at(path)
    student = kind.open(path, trust=options.trust, code=options.code)
    teacher = kind.open(options.teacher, trust=options.trust, code=options.code) if options.teacher else None
    data = kind.load_data(options.data, student, console.track)
    for note in data.notes:
        console.line(note)
    for warning in data.warnings:
        console.warn(warning)
    if not data.labelled:
        raise DistillError(
            f"{data.path}: has no labels, so there is nothing to measure with: give a data.yaml as 'data'"
        )
    size = image_size(options.imgsz, student, kind)
    settings: dict[str, Any] = {"imgsz": size.pixels, "batch": options.batch, "device": device}
    judge = kind.judge(lambda: (teacher or student).model, data, Console(quiet=True), **settings)
    seen: dict[str, Seen] = {"teacher": {}, "student": {}}
    found, swapped, of_teacher = judge.evaluate(student.model, seen["student"]), {}, None
    if teacher is not None:
        swapped = kind.swapped(student.model, teacher.model, data, **settings)
        of_teacher = judge.evaluate(teacher.model, seen["teacher"])
        _draw(kind, folder, data, seen, (of_teacher.per_class or {}, found.per_class or {}), console)
    return Evaluated(**vars(found), size=size, teacher=of_teacher, swapped=swapped)


def _draw(
    kind: Kind,
    folder: Path | None,
    data: Images,
    seen: Mapping[str, Seen],
    figures: tuple[Mapping[str, float], Mapping[str, float]],
    console: Console,
) -> None:
    """Draw the images on which two networks differ; without a folder, say how to get the pictures."""
    if folder is None and not kind.draws:
        return
    if folder is None:
        console.line("to see on which images they differ, add pictures=DIR")
        return

    def write(name: str, content: bytes) -> None:
        write_bytes(folder / name, content)

    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"count": PICTURES, "small": False, "warn": console.warn}
    made = kind.pictures(data, seen, write, figures=figures, **options)
    for group in made.groups:
        for picture in group.pictures:
            console.line(f"{folder / picture.file}  {title_of(group)}: {picture.image}, {words(picture)}")


def export(path: str | Path, formats: Sequence[str], options: ExportOptions, console: Console) -> Iterator[Exported]:
    """Convert a checkpoint, one format after the other; the results lie beside it."""
    kind = kind_at(path)
    kind.check_exports(formats)
    size = image_size(options.imgsz, kind.open(path, trust=options.trust, code=options.code), kind)
    console.line(str(size))
    for name in formats:
        yield kind.export(
            Path(path), name, Path(path).absolute().parent, size.pixels, trust=options.trust, code=options.code
        )
