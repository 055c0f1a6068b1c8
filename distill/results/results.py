"""results.json, typed: what a finished run has measured, as `distill.run` returns it and reports read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.losses.spec import ORIGINAL
from distill.machine.files import read_json
from distill.machine.words import html_table, text_table
from distill.results.figures import Evaluation, ModelResult, OtherTeacher
from distill.results.networks import START, STUDENT
from distill.results.quality import Pictures
from distill.results.records import RecordError, from_plain
from distill.results.steps import Accept, Agreement, Average, Cut, DataFacts, Export, Native, Repair, Tuning

FORMAT = 2
FILE = "results.json"


@dataclass(frozen=True)
class Results:
    """What a run has measured."""

    format: int
    recipe: dict[str, Any]  # resolved, as plain data
    recipe_name: str
    model: str | None  # None if the run trained its teacher
    imgsz: int
    seed: int
    data: DataFacts
    agreement: Agreement | None  # what it was measured on; None with labels
    device: str  # that latency in PyTorch was measured on
    versions: dict[str, str]  # of the packages that can change a result
    models: dict[str, ModelResult]  # by name of the network, from the teacher to the result
    chosen: str  # the name in `models` whose figures are student.pt's
    student_is: str  # the network that student.pt is: trained, averaged, repaired or pruned
    native: Native | None  # the student for the project that the checkpoint came from; None if that is ultralytics
    accept: Accept
    accepted: bool | None  # whether the student keeps to `accept`; None without labels
    trained: Evaluation | None  # the network after training, also if the student is another one; None without training
    average: Average | None
    schedule: dict[str, Any] | None  # of the training, by name; None without training
    history: tuple[dict[str, Any], ...]  # one row per epoch
    epoch_seconds: tuple[float, ...]  # of each epoch of this process
    plan: Cut
    repair: Repair | None
    tuning: Tuning | None
    exports: tuple[Export, ...]
    warnings: tuple[str, ...]  # what the reader must know, in the order it came up
    seconds: dict[str, float]  # of each stage, by its name
    pictures: Pictures | None = None  # None if the recipe wants none
    teachers: tuple[OtherTeacher, ...] = ()  # those that are not the network of `model`
    folder: Path = field(default=Path(), compare=False)  # of the run; not in the file

    @property
    def teacher(self) -> ModelResult:
        """The network that was cut."""
        return self.models["teacher"]

    @property
    def student(self) -> ModelResult:
        """The result: what student.pt is."""
        return self.models[self.chosen]

    @property
    def measure(self) -> str:
        """What networks are judged by if there are labels."""
        return "mAP50-95" if self.teacher.top1 is None else "top-1"

    @property
    def cut(self) -> bool:
        """Whether anything was cut."""
        return self.plan.flops_after != self.plan.flops_before

    @property
    def taught_by_original(self) -> bool:
        """Whether the network of `model` was a teacher; other checkpoints may have been, too."""
        return not self.teachers or ORIGINAL in self.recipe.get("teachers", {})

    @property
    def titles(self) -> dict[str, str]:
        """What tables call each network of `models`: beside other teachers, `teacher` is the original or the start."""
        first = "teacher" if not self.teachers else ORIGINAL if self.cut or self.taught_by_original else START
        return {name: first if name == "teacher" else name for name in self.models}

    @classmethod
    def from_dict(cls, data: Any, source: str = FILE) -> Results:
        """The inverse of `to_dict`. Raises `DistillError`, with its source: it is none, or of another version."""
        if not isinstance(data, Mapping) or not isinstance(data.get("models"), Mapping):
            raise DistillError(f"{source}: no 'models' in it; is it the results.json of a run?")
        if data.get("format") != FORMAT:
            raise DistillError(
                f"{source}: has the layout {data.get('format')} of another version, and this one reads {FORMAT}: run it again"
            )
        try:
            return from_plain(cls, data)
        except RecordError as error:
            raise DistillError(f"{source}: damaged: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Read a results.json, or that of a run folder. Raises `DistillError`: it is not there, or no such file."""
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        try:
            data = read_json(file)
        except FileNotFoundError:
            raise DistillError(
                f"{file}: not there; a run writes it when it ends, `distill run --resume` goes on"
            ) from None
        except (OSError, ValueError) as error:
            raise DistillError(f"{file}: no JSON: {error}") from error
        return replace(cls.from_dict(data, str(file)), folder=file.parent)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as results.json holds it."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    @property
    def beside_figures(self) -> dict[str, Callable[[Any], float | None]]:
        """The means of what the task has beside boxes, by name: of a network of the run, or of another teacher."""
        if self.teacher.beside is None:
            return {}
        name = f"{self.teacher.beside.name} {'mAP' if self.data.labelled else 'agreement '}"
        return {
            f"{name}50-95": lambda model: None if model.beside is None else model.beside.map50_95,
            f"{name}50": lambda model: None if model.beside is None else model.beside.map50,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per network, for `pandas.DataFrame(results.rows())`."""
        keys = (
            "map50_95",
            "map50",
            "map50_95_without_nms",
            "top1",
            "top5",
            "agreement50_95",
            "agreement50",
            "agreement",
            "params",
            "gflops",
            "size_mb",
            "file",
        )
        return [
            {
                "network": name,
                **{key: getattr(model, key) for key in keys},
                **{_column(key): figure(model) for key, figure in self.beside_figures.items()},
                **{f"latency_{key}_ms": getattr(model.latency_ms, key) for key in ("median", "p10", "p90")},
                **{
                    f"{each.runtime.lower().replace(' ', '_')}_{key}_ms": getattr(each.latency_ms, key)
                    for each in model.deployed
                    for key in ("median", "p10", "p90")
                },
            }
            for name, model in self.models.items()
        ] + [
            {"network": other.name, **{key: getattr(other, key) for key in keys if key != "file"}, "file": other.copy}
            for other in self.teachers
        ]

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row per figure and a column per network, under a title row."""
        figures: dict[str, Callable[[Any], float | None]] = {
            "mAP50-95": lambda model: model.map50_95,
            "mAP50": lambda model: model.map50,
            "top-1": lambda model: model.top1,
            "top-5": lambda model: model.top5,
            "agreement": lambda model: model.agreement,
            "mAP50-95 without NMS": lambda model: model.map50_95_without_nms,
            "agreement 50-95": lambda model: model.agreement50_95,
            **self.beside_figures,
            "params (M)": lambda model: model.params / 1e6,
            f"GFLOPs at {self.imgsz} px": lambda model: model.gflops,
            "size (MB)": lambda model: model.size_mb,
        }
        models, others = self.models.values(), self.teachers
        table = {label: [figure(model) for model in (*others, *models)] for label, figure in figures.items()}
        for name in self.teacher.latencies:
            medians = [model.latencies[name].median for model in models]
            table[f"latency, {name} (ms)"] = [*(None for _ in others), *medians]
        rows = [("", *(other.name for other in others), *self.titles.values())]
        for label, values in table.items():
            if any(value is not None for value in values):
                rows.append((label, *("" if value is None else f"{value:.3f}" for value in values)))
        return rows

    def __str__(self) -> str:
        """The table, the verdict and the run folder."""
        verdict = {True: "accepted", False: "not accepted", None: "no labels, so no verdict"}[self.accepted]
        place = f": {self.folder / STUDENT.file}" if self.folder != Path() else ""
        return "\n".join([*text_table(self.table, numbers=True), f"{verdict}{place}"])

    def __repr__(self) -> str:
        before, after = self.teacher, self.student
        quality = "no labels" if after.score is None else f"{self.measure} {before.score:.3f} -> {after.score:.3f}"
        costs = f"{before.gflops:.2f} -> {after.gflops:.2f} GFLOPs"
        return f"Results({self.recipe_name}: {quality}, {costs}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return html_table(self.table)


def _column(figure: str) -> str:
    """A figure's name as a column: "mask mAP50-95" is mask_map50_95."""
    return figure.lower().replace(" ", "_").replace("-", "_")
