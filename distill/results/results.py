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
from distill.results.networks import START, STUDENT
from distill.results.quality import Beside, Curves, Pictures, score_of
from distill.results.records import Brief, RecordError, from_plain

FORMAT = 2
FILE = "results.json"


def epoch_score(row: Mapping[str, Any]) -> float | None:
    """The figure of an epoch by which networks are judged: top-1 or mAP50-95; None if it was not validated."""
    return row.get("map50_95") if row.get("top1") is None else row.get("top1")


@dataclass(frozen=True, repr=False)
class Evaluation(Brief):
    """How good one network is; all values are 0 to 1. Without labels the mAP is None, and agreement takes its place."""

    map50_95: float | None  # mean average precision over the IoU thresholds 0.50 to 0.95
    map50: float | None  # at an IoU of 0.5
    per_class: dict[str, float] | None  # AP50-95 by class name
    precision: float | None = None  # at the confidence of the largest F1, IoU 0.5
    recall: float | None = None  # at the same
    images: int | None = None  # how many were looked at
    instances: int | None = None  # labelled objects on them
    agreement50_95: float | None = None  # as mAP50-95, against the teacher's own boxes
    agreement50: float | None = None
    agreement_per_class: dict[str, float] | None = None
    teacher_boxes: dict[str, int] | None = None  # of each class, by its name
    confidence: float | None = None  # a box of the teacher counts from this score on
    curves: Curves | None = None  # against the labels, or against the teacher's own boxes
    map50_95_without_nms: float | None = None  # of a head's branch that works without NMS, if it has one
    beside: Beside | None = None  # the same of what the task has beside boxes: masks or poses
    top1: float | None = None  # of a classifier: share of images whose likeliest class is theirs
    top5: float | None = None  # whose class is among the five likeliest; None if there are no more than five
    agreement: float | None = None  # share of images whose likeliest class is the teacher's

    @property
    def measures(self) -> list[tuple[str, float]]:
        """The means against the labels, each with its name."""
        if self.top1 is not None:
            return [("top-1", self.top1)] + ([] if self.top5 is None else [("top-5", self.top5)])
        if self.map50_95 is None or self.map50 is None:
            return []
        free, more = self.map50_95_without_nms, self.beside
        figures = [("mAP50-95", self.map50_95), ("mAP50", self.map50)]
        figures += [] if free is None else [("mAP50-95 without NMS", free)]
        if more is not None:
            figures += [(f"{more.name} mAP50-95", more.map50_95), (f"{more.name} mAP50", more.map50)]
        return figures

    @property
    def second(self) -> float | None:
        """The second figure against the labels: mAP50, or top-5."""
        return self.map50 if self.top1 is None else self.top5

    @property
    def figures(self) -> str:
        """The means in a line."""
        if self.measures:
            return ", ".join(f"{name} {value:.3f}" for name, value in self.measures)
        if self.agreement is not None:
            return f"agreement with the teacher {self.agreement:.3f}"
        more = "" if self.beside is None else f", of {self.beside.name}s {self.beside.map50_95:.3f}"
        if self.agreement50_95 is None:
            return ""
        return f"agreement with the teacher 50-95 {self.agreement50_95:.3f}, 50 {self.agreement50:.3f}{more}"

    @property
    def score(self) -> float | None:
        """By what the network is judged: mAP, top-1 or agreement; None if the teacher sees nothing to agree with."""
        if self.map50_95 is None and self.agreement50_95 is None:
            return self.agreement if self.top1 is None else self.top1
        boxes = self.agreement50_95 if self.map50_95 is None else self.map50_95
        return None if boxes is None else score_of(boxes, self.beside)

    @property
    def yardstick(self) -> tuple[str, float | None]:
        """What the network is judged by, and its figure; None if the teacher sees nothing to agree with."""
        if self.top1 is not None:
            return "top-1", self.top1
        of = "" if self.beside is None else f" of boxes and of {self.beside.name}s"
        return f"{'agreement with the teacher' if self.map50_95 is None else 'mAP50-95'}{of}", self.score


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass at batch 1: the median, and the range that 80 % of the passes fell in."""

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class Deployed:
    """Latency of a network's export in a runtime that it is deployed in."""

    runtime: str  # as people write it: "ONNX Runtime"
    device: str  # with the number of threads
    threads: int
    latency_ms: Latency


@dataclass(frozen=True)
class Cost:
    """What a network costs: parameters, 10^9 operations (a multiply-add is two), megabytes of its file, milliseconds."""

    params: int
    gflops: float
    size_mb: float
    latency_ms: Latency  # in PyTorch
    deployed: tuple[Deployed, ...] = ()  # in each runtime that is installed and runs one of the exports


@dataclass(frozen=True, repr=False)
class ModelResult(Brief):
    """One row of the results: how good a network is, what it costs, and its file in the run folder."""

    map50_95: float | None
    map50: float | None
    per_class: dict[str, float] | None
    agreement50_95: float | None
    agreement50: float | None
    agreement_per_class: dict[str, float] | None
    params: int
    gflops: float
    size_mb: float
    latency_ms: Latency  # in PyTorch
    file: str
    deployed: tuple[Deployed, ...] = ()  # latency of its exports
    curves: Curves | None = None  # as that of `Evaluation`
    map50_95_without_nms: float | None = None  # as that of `Evaluation`
    beside: Beside | None = None  # as that of `Evaluation`

    top1: float | None = None  # as those of `Evaluation`
    top5: float | None = None
    agreement: float | None = None

    @property
    def score(self) -> float | None:
        """What networks are judged by if there are labels: mAP50-95, or top-1."""
        return self.map50_95 if self.top1 is None else self.top1

    @property
    def agreed(self) -> float | None:
        """What networks are judged by if there are none: agreement with the teacher."""
        return self.agreement50_95 if self.agreement is None else self.agreement

    @property
    def latencies(self) -> dict[str, Latency]:
        """By what it was timed in: each runtime of the exports, since they are what is deployed, then PyTorch."""
        return {each.runtime: each.latency_ms for each in self.deployed} | {"PyTorch": self.latency_ms}


@dataclass(frozen=True, repr=False)
class OtherTeacher(Brief):
    """A teacher that is not the network that was cut or trained on: how good it is, and what it costs."""

    name: str  # in the names of losses
    file: str  # the checkpoint that was given
    copy: str  # its copy in the run folder, with classes in the order of the student's
    evaluation: Evaluation
    params: int
    gflops: float
    size_mb: float  # of the copy

    @property
    def map50_95(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.map50_95

    @property
    def top1(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.top1

    @property
    def top5(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.top5

    @property
    def agreement(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.agreement

    @property
    def score(self) -> float | None:
        """As of a network of the run."""
        return self.map50_95 if self.top1 is None else self.top1

    @property
    def map50(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.map50

    @property
    def map50_95_without_nms(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.map50_95_without_nms

    @property
    def agreement50_95(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.agreement50_95

    @property
    def agreement50(self) -> float | None:
        """As of a network of the run."""
        return self.evaluation.agreement50

    @property
    def beside(self) -> Beside | None:
        """As of a network of the run."""
        return self.evaluation.beside


@dataclass(frozen=True, repr=False)
class DataFacts(Brief):
    """The data set of a run."""

    path: str
    train_images: int
    val_images: int
    classes: tuple[str, ...]
    labelled: bool
    unlabelled_images: int = 0  # beside those of train

    @property
    def described(self) -> str:
        """How many images there are of each kind."""
        beside = f" + {self.unlabelled_images} unlabelled" if self.unlabelled_images else ""
        return f"{self.train_images}{beside} + {self.val_images} images"


@dataclass(frozen=True, repr=False)
class Agreement(Brief):
    """What agreement with the teacher was measured on. `held_back`: nothing was calibrated or trained on these images."""

    images: int
    held_back: bool
    confidence: float | None
    teacher_boxes: dict[str, int]


@dataclass(frozen=True)
class Accept:
    """The limit of the verdict: how much lower than the teacher's the student's mAP50-95 may be."""

    map_drop: float


@dataclass(frozen=True)
class Average:
    """The mean of the weights before and after training, beside the trained network. `taken`: it is the student."""

    judged_by: str
    averaged: float
    map50: float | None
    trained: float | None
    taken: bool


@dataclass(frozen=True)
class Group:
    """Channels of one group of layers, before and after the cut."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, repr=False)
class Cut(Brief):
    """What was cut. `verify`: largest difference between the masked original and the pruned network, in float64."""

    flops_before: float
    flops_after: float
    params_before: int
    params_after: int
    verify: float
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Repaired:
    """What repair did to one layer or block: held-out error as a share of the outputs' variance, before and after."""

    name: str
    error_before: float | None
    error_after: float | None
    changed: bool


@dataclass(frozen=True, repr=False)
class Repair(Brief):
    """What repair did, and on how many images."""

    images: int
    layers: tuple[Repaired, ...]
    blocks: tuple[Repaired, ...]


@dataclass(frozen=True)
class Search:
    """Trials of learning rates: the loss before them, the highest that is accepted, and (rate, loss) of each; None diverged."""

    start: float
    limit: float
    tried: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class TeacherForward:
    """What a teacher's forward pass runs in, beside the student that trains."""

    runtime: str = "torch"  # as a recipe writes it
    title: str = "PyTorch"
    # How many times as fast as PyTorch it is, and the largest difference of its outputs from PyTorch's, in their standard
    # deviations. None in PyTorch.
    speedup: float | None = None
    difference: float | None = None

    def __str__(self) -> str:
        """In words, after the teacher's name."""
        if self.speedup is None or self.difference is None:
            return f"runs in {self.title}"
        within = "equal to" if self.difference < 0.01 else "within"
        faster = f"runs in {self.title}, {self.speedup:.2g}x as fast as in PyTorch"
        return f"{faster}, outputs {within} {self.difference:.1g} of their spread"


@dataclass(frozen=True)
class Tuning:
    """How the student is trained, found by short trials."""

    freeze_bn: bool  # BatchNorm keeps its statistics
    factors: dict[str, float]  # what each loss is multiplied by beside its weight, by name
    lr: float  # the highest learning rate
    search: Search | None  # the trials that chose it; None if the recipe gives it
    forwards: dict[str, TeacherForward] = field(default_factory=dict)  # by the teacher's name


@dataclass(frozen=True)
class Export:
    """One export: its file relative to the run folder, and how far its outputs are from the checkpoint's."""

    format: str
    file: str
    size_mb: float
    max_abs_diff: float | None


@dataclass(frozen=True)
class Native:
    """The student for the project that its checkpoint came from: see `NativeFormat` in `distill.yolo.families.family`."""

    file: str
    about: str
    commands: tuple[str, ...]
    beside: tuple[str, ...] = ()  # other files that it needs


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
