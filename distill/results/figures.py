"""How good a network of a run is, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.results.quality import Beside, Curves, score_of
from distill.results.records import Brief


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
    def score(self) -> float | None:
        """Against the labels: top-1 or mAP50-95, as of a network of the run."""
        return self.evaluation.map50_95 if self.evaluation.top1 is None else self.evaluation.top1

    def __getattr__(self, figure: str) -> Any:
        """A figure of its evaluation by name, as of a network of the run."""
        if figure.startswith("__") or figure == "evaluation":  # a copy asks for these before it has any
            raise AttributeError(figure)
        return getattr(self.evaluation, figure)
