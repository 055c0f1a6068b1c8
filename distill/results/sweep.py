"""sweep.json: what the runs of a sweep came to, as typed records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.files import read_json
from distill.machine.words import html_table, text_table
from distill.results.figures import ModelResult
from distill.results.records import from_plain, of_format
from distill.results.results import Results

FORMAT = 1
FILE = "sweep.json"
SEED = "seed"  # the key whose values are repetitions and no choice


@dataclass(frozen=True)
class SweepPoint:
    """One finished run of a sweep."""

    name: str  # of its folder inside that of the sweep
    values: dict[str, str]  # of the keys that are varied, as they were typed; the seed is one of them
    judged_by: str  # mAP50-95, or agreement with the teacher
    score: float | None
    start: float | None  # before training
    teacher: float | None
    accepted: bool | None
    gflops: float
    params: int
    size_mb: float
    latency_ms: float  # median
    timed_in: str  # the runtime
    teacher_gflops: float
    teacher_latency_ms: float
    data: str
    imgsz: int

    @classmethod
    def of(cls, results: Results, name: str, values: dict[str, str]) -> SweepPoint:
        """The figures of a finished run."""
        labelled, student, teacher = results.data.labelled, results.student, results.teacher
        runtime = next(iter(teacher.latencies))

        def score(model: ModelResult | None) -> float | None:
            return None if model is None else model.score if labelled else model.agreed

        return cls(
            name,
            values,
            judged_by=results.measure if labelled else "agreement with the teacher",
            score=score(student),
            start=score(results.models.get("repaired") or results.models.get("pruned")),
            teacher=score(teacher),
            accepted=results.accepted,
            gflops=student.gflops,
            params=student.params,
            size_mb=student.size_mb,
            latency_ms=student.latencies[runtime].median,
            timed_in=runtime,
            teacher_gflops=teacher.gflops,
            teacher_latency_ms=teacher.latencies[runtime].median,
            data=results.data.path,
            imgsz=results.imgsz,
        )


@dataclass(frozen=True)
class FailedPoint:
    """A run that ended with an error."""

    name: str
    values: dict[str, str]
    error: str


@dataclass(frozen=True)
class SweepSetting:
    """What the runs of a sweep have in common, as the first one has it."""

    model: str | None
    data: str
    imgsz: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class SweepResults:
    """What sweep.json says."""

    format: int
    recipe_name: str
    axes: dict[str, tuple[str, ...]]  # key -> its values, as they were typed
    about: SweepSetting | None  # None until the first run has finished
    points: tuple[SweepPoint, ...]  # finished runs, in the order they were made
    failed: tuple[FailedPoint, ...]
    missing: int  # runs that were not tried yet

    @classmethod
    def read(cls, folder: Path) -> SweepResults:
        """What the sweep.json in a folder says. Raises `DistillError`: missing, damaged, or of another layout."""
        file = folder / FILE
        try:
            return from_plain(cls, of_format(read_json(file), FORMAT))
        except (OSError, ValueError) as error:
            raise DistillError(
                f"{file} was not written by this version or is damaged ({error}): start a new sweep"
            ) from None

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row for each finished run, under a title row."""
        judged_by = self.points[0].judged_by if self.points else "mAP50-95"
        rows: list[tuple[str, ...]] = [(*self.axes, judged_by, "GFLOPs", "latency (ms)", "accepted")]
        for point in self.points:
            score = "" if point.score is None else f"{point.score:.3f}"
            accepted = {True: "yes", False: "no", None: ""}[point.accepted]
            costs = (f"{point.gflops:.2f}", f"{point.latency_ms:.2f}")
            rows.append((*(point.values.get(key, "") for key in self.axes), score, *costs, accepted))
        return rows

    def __str__(self) -> str:
        """The table."""
        return "\n".join(text_table(self.table))

    def __repr__(self) -> str:
        keys = ", ".join(self.axes)
        return f"SweepResults({self.recipe_name} over {keys}: {len(self.points)} runs, {len(self.failed)} failed)"

    def _repr_html_(self) -> str:
        return html_table(self.table)

    def to_dict(self) -> dict[str, Any]:
        """What sweep.json holds."""
        return asdict(self)
