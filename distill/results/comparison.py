"""compare.json: what a comparison measured, as typed records that go to the file and come back from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from distill.errors import DistillError
from distill.machine.files import read_json
from distill.machine.words import html_table, text_table
from distill.results.figures import epoch_score
from distill.results.records import from_plain, of_format
from distill.results.results import Results
from distill.results.steps import DataFacts

FORMAT = 1
FILE = "compare.json"


@dataclass(frozen=True)
class Arm:
    """One way of training: its name, what it does in a line, and the keys in which its recipe differs, or a list of words."""

    name: str
    help: str
    overrides: Any = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSize:
    """How long a training was, and how many images were in a step."""

    epochs: int
    steps: int
    batch: int


@dataclass(frozen=True)
class ArmNetwork:
    """The network that an arm trains."""

    model: str | None  # the checkpoint or architecture that it came from
    gflops: float
    params: int


@dataclass(frozen=True)
class ArmRun:
    """One finished training of an arm."""

    arm: str
    seed: int
    lr_tried: float | None  # the rate that the comparison gave it; None if the recipe or its schedule chose
    lr: float  # the rate that it trained with
    start: float  # of the network before training, in the measure of the comparison, as all figures here
    map50_95: float  # what training came to
    map50: float | None  # the second figure: mAP50, or top-5 if there are more than five classes
    labels: bool  # whether it trained on labels
    history: tuple[float | None, ...]  # the same after each epoch; None for one that was not measured
    seconds_per_step: float  # median over the epochs
    schedule: TrainingSize
    folder: str  # of the run, inside that of the comparison
    network: ArmNetwork | None = None  # None in a file of an older version

    @classmethod
    def of(cls, results: Results, arm: str, seed: int, lr_tried: float | None, folder: str) -> ArmRun:
        """The figures of a finished run with labels and a training: what that came to, even if it is not the student."""
        trained, schedule, average = results.trained, results.schedule, results.average
        start = results.models.get("repaired") or results.models["pruned"]
        assert trained is not None and schedule is not None  # a comparison trains, and it needs labels
        score, second = trained.yardstick[1], trained.second
        if average is not None and score is not None and average.averaged > score:
            score, second = average.averaged, average.map50
        assert score is not None and start.score is not None
        return cls(
            arm=arm,
            seed=seed,
            lr_tried=lr_tried,
            lr=schedule["lr"],
            start=start.score,
            map50_95=score,
            map50=second,
            labels=results.recipe["distill"]["labels"] > 0,
            history=tuple(epoch_score(row) for row in results.history),
            seconds_per_step=median(results.epoch_seconds) / (schedule["steps"] / schedule["epochs"]),
            schedule=TrainingSize(schedule["epochs"], schedule["steps"], schedule["batch"]),
            folder=folder,
            network=ArmNetwork(results.model, start.gflops, start.params),
        )


@dataclass(frozen=True)
class FailedRun:
    """A training that ended with an error."""

    arm: str
    seed: int
    lr_tried: float | None
    error: str
    lr: float | None = None  # the rate that it was given, by the comparison or a recipe; None if it was to choose one


@dataclass(frozen=True)
class ComparedNetwork:
    """Quality and size of a network that the arms have in common."""

    map50_95: float
    gflops: float
    params: int


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common."""

    model: str | None
    data: DataFacts
    imgsz: int
    device: str
    versions: dict[str, str]
    teacher: ComparedNetwork
    pruned: ComparedNetwork
    first: str = "teacher"  # what tables call `teacher`: see `Results.titles`
    measure: str = "mAP50-95"  # what all figures are: see `Results.measure`

    @classmethod
    def of(cls, results: Results) -> Setting:
        """The same of one run."""
        before, after = (
            ComparedNetwork(model.score, model.gflops, model.params)
            for model in (results.teacher, results.models["pruned"])
            if model.score is not None
        )
        about = (results.model, results.data, results.imgsz, results.device, results.versions)
        return cls(*about, before, after, results.titles["teacher"], results.measure)


@dataclass(frozen=True)
class ComparisonResults:
    """What compare.json says."""

    recipe_name: str  # of the recipe that the arms have in common
    arms: tuple[Arm, ...]  # in the order of the table
    seeds: tuple[int, ...]  # each arm is trained once with each
    lrs: tuple[float, ...]  # learning rates that were searched, with the first seed; empty if there was no search
    about: Setting | None  # what all runs have in common; None until the first has finished
    chosen: dict[str, float | None]  # by arm, once its first seed is finished: the rate; None if its schedule chose
    runs: tuple[ArmRun, ...]  # all finished runs, those of the search too
    failed: tuple[FailedRun, ...]  # all others that were tried

    @classmethod
    def read(cls, folder: Path) -> ComparisonResults:
        """What the compare.json in a folder says. Raises `DistillError` if it is missing, damaged or of an older layout."""
        file = folder / FILE
        try:
            return cls.from_dict(read_json(file))
        except (OSError, ValueError):
            message = f"{file} was not written by this version or is damaged: start a new comparison"
            raise DistillError(message) from None

    @classmethod
    def from_dict(cls, content: Any) -> ComparisonResults:
        """The inverse of `to_dict`. Raises `RecordError` for anything else."""
        content = of_format(content, FORMAT)
        return from_plain(cls, {**content, "about": content.get("about") or None})

    @property
    def measure(self) -> str:
        """What the arms are judged by."""
        return self.about.measure if self.about else "mAP50-95"

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row for each arm that has a result, under a title row; over its seeds, with the rate that was chosen for it."""
        rows: list[tuple[str, ...]] = [("arm", "seeds", "start", self.measure, "from", "to")]
        for arm in self.arms:
            chosen = self.chosen.get(arm.name)
            runs = [run for run in self.runs if run.arm == arm.name and run.lr_tried == chosen]
            if runs:
                ends = [run.map50_95 for run in runs]
                figures = (mean(run.start for run in runs), mean(ends), min(ends), max(ends))
                rows.append((arm.name, str(len(runs)), *(f"{figure:.3f}" for figure in figures)))
        return rows

    def __str__(self) -> str:
        """The table."""
        return "\n".join(text_table(self.table, numbers=True))

    def __repr__(self) -> str:
        arms = ", ".join(arm.name for arm in self.arms)
        return f"ComparisonResults({self.recipe_name}: {arms}; {len(self.runs)} runs, {len(self.failed)} failed)"

    def _repr_html_(self) -> str:
        return html_table(self.table)

    def to_dict(self) -> dict[str, Any]:
        """What compare.json holds."""
        return {"format": FORMAT, **asdict(self), "about": asdict(self.about) if self.about else {}}
