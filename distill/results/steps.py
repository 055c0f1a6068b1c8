"""What the stages of a run were given and did, as results.json has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.results.records import Brief


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
