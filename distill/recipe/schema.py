"""What a recipe holds: every key with its type, bounds, default and help, as frozen dataclasses."""

# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and bounds
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.losses.spec import ORIGINAL, LossSpec, TeacherSpec
from distill.recipe.keys import ARCHITECTURES, LIBRARIES, key

SHAPES = "shapes"  # `data: shapes` is the generated demo set
# The names are prune.IMPORTANCES; repeated here because importing prune takes torch's two seconds.
IMPORTANCES = {
    "obs": "Error that remains after the other channels have made up for the loss (structured Optimal Brain Surgeon).",
    "fisher": "Squared gradients of the outputs with respect to the channel.",
    "bn_scale": "Size of the BatchNorm scale (network slimming); meant for use after sparsify.",
    "l1": "Size of the weights that make the channel.",
    "random": "Nothing: a baseline that any other importance has to beat.",
}
_WEIGHTS = {"score_bce": 1.0, "objectness_bce": 1.0, "box_iou": 2.0, "dfl_kl": 1.0, "feature_pkd": 1.0}
DEFAULT_LOSSES = tuple(LossSpec(name, weight) for name, weight in _WEIGHTS.items())

RUNTIMES = ("auto", "torch", "onnxruntime", "openvino", "bfloat16")
LOGGERS = ("tensorboard", "mlflow", "wandb", "clearml", "comet", "dvc")  # as ultralytics calls its integrations
_NAMES = tuple(IMPORTANCES)
_COUNT = {"minimum": 1}
_NOT_NEGATIVE = {"minimum": 0}
_POSITIVE = {"exclusiveMinimum": 0}
_SIZE = {"minimum": 32, "multipleOf": 32}
_SEED = {"minimum": 0, "maximum": 10**9}
_SHARE = {"minimum": 0, "maximum": 1}
_INNER_SHARE = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
_DEVICE = "cpu, 0, cuda:1, ...; if empty, a GPU is used if there is one."
_IMGSZ = "Width and height of the network's input in pixels; auto takes the size that the checkpoint was trained at."
_CODE = "The folder of a fork's own code (or several), for checkpoints with blocks of its own; needs trust=true, for it is run."
_CODE_OPTIONS: dict[str, Any] = {"path": True, "given": True, "single": True, "example": "[my-yolov5]"}
_AUTO_LR = "Highest learning rate; auto chooses it."


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The generated demo set, which `data: shapes` names."""

    train: int = key("Number of generated training images.", 400, _COUNT)
    val: int = key("Number of generated validation images.", 100, _COUNT)
    imgsz: int = key("Width and height of the generated images in pixels.", 160, _SIZE)
    seed: int = key("Seed of the drawing: the same seed gives the same images.", 0, _SEED)


@dataclass(frozen=True, kw_only=True)
class TeacherTrain:
    """Trains the teacher first, from data alone: for users without a checkpoint."""

    model: str = key(
        "An ultralytics model (yolov8s.yaml, ...), timm/NAME, torchvision/NAME, or a checkpoint.",
        "yolov5n.yaml",
        path=True,
    )
    width: float | None = key(
        "Width factor; auto takes the model's own (0.25 for size n).", None, _POSITIVE, none="auto"
    )
    epochs: int = key("Largest number of epochs.", 100, _COUNT)
    patience: int = key("Training stops after this many epochs without a better mAP.", 20, _COUNT)
    lr: float | None = key(_AUTO_LR, None, _POSITIVE, none="auto")
    batch: int | None = key("Images in a batch; auto takes `batch`.", None, _COUNT, none="auto")
    mosaic: float = key("Probability of mosaic, which joins four images; off in the last epochs.", 1.0, _SHARE)


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Images without labels beside `data`, in every batch: the teacher teaches on them too, and repair sees them."""

    SHORT: ClassVar = "images"

    images: tuple[str, ...] = key(
        "Folders of images, .txt lists of images, or videos; label files beside them are not read.",
        path=True,
        given=True,
        example="[more, clip.mp4]",
    )
    ratio: float | None = key(
        "Images without labels for each labelled one in a batch; auto: as many as there are, at most 3; 0: none, repair "
        "alone sees them.",
        None,
        _NOT_NEGATIVE,
        none="auto",
    )
    weight: float = key("Factor of the teacher's losses on them; 1: as on labelled images.", 1.0, _POSITIVE)
    frames: int = key("Most frames taken of a video, evenly spread.", 300, _COUNT)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher, if it is not the network of `model`."""

    SHORT: ClassVar = "checkpoint"

    checkpoint: str | None = key(
        "A checkpoint that teaches in place of the network of `model`: any detector of the same classes and strides.",
        None,
        path=True,
        given=True,
        named=LIBRARIES,
    )
    train: TeacherTrain | None = key(default=None)


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Network slimming before the cut: training with a penalty on the BatchNorm scales."""

    epochs: int = key("Epochs with the penalty.", 20, _COUNT)
    strength: float = key("Factor of the L1 penalty on the BatchNorm scales; it decays.", 1e-3, _POSITIVE)
    lr: float | None = key(_AUTO_LR, None, _POSITIVE, none="auto")
    distill: bool = key("Also use the losses and labels of `distill`; false: the labels alone.", False)


@dataclass(frozen=True, kw_only=True)
class Prune:
    """What to cut; null cuts nothing: the network is trained as it is."""

    EXACTLY_ONE: ClassVar = ("flops", "params", "ratio")

    flops: float | None = key("Share of the teacher's FLOPs to keep.", None, _INNER_SHARE)
    params: float | None = key("Share of the teacher's parameters to keep.", None, _INNER_SHARE)
    ratio: float | None = key("Share of the prunable channels to cut.", None, _INNER_SHARE)
    importance: str = key("Measure of a channel's cost (distill ls importances).", "obs", words=_NAMES, function=True)
    round_to: int = key("Widths, in channels, are multiples of this.", 8, _COUNT)
    protect: tuple[str, ...] = key("Layers that stay whole; * matches anything.", (), example="[model.0.*, model.9.*]")
    max_ratio: float = key("Largest share of one layer's channels that may be cut.", 0.95, _INNER_SHARE)
    images: int = key("Training images that the costs are measured on.", 96, _COUNT)
    rounds: int = key("Rounds to cut in: after each the network is repaired and measured again.", 1, _COUNT)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Repair after the cut: in closed form, then block by block."""

    images: int = key("Largest number of training images used for repair; labels are not read.", 256, _COUNT)
    steps: int = key("Optimizer steps for each block after the closed form; 0 leaves them out.", 200, _NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Training of the student."""

    epochs: int = key("Epochs of training after repair; 0 leaves it out.", 50, _NOT_NEGATIVE)
    losses: tuple[LossSpec, ...] = key(
        "Losses against the teacher: name to weight, or to {weight: ..., option: ...}; weight 0 leaves one out. Each takes, "
        "in shares of the training, warmup, in which its weight rises from 0, and until, where it ends; fade (none, "
        "linear, cosine), how its weight falls until then; and features of its own, [model.4, ...], where it reads features. A "
        "loss that the model's head cannot serve is left out; beside losses on boxes or scores, those on masks, keypoints and "
        "angles join if the head predicts such: mask_bce, keypoint_oks, angle_sin; weight 0 leaves them out.",
        DEFAULT_LOSSES,
    )
    features: tuple[str, ...] = key(
        "Where losses on features compare: neck, where features enter the head, or paths of modules (distill ls features).",
        ("neck",),
        example="[neck, model.4, model.6.cv1]",
    )
    labels: float = key("Weight of the labels' own loss; 0 learns from the teacher alone.", 1.0, _NOT_NEGATIVE)
    balance: bool = key("Scale losses: weight 1 pulls as hard as the labels at first; false: plain factors.", True)
    lr: float | None = key("Highest learning rate; auto finds one by short trials.", None, _POSITIVE, none="auto")
    batch: int | None = key("Images in a batch; auto chooses it from the optimizer steps.", None, _COUNT, none="auto")
    teacher_runtime: str = key(
        "What runs the teacher on a CPU; auto takes the fastest with PyTorch's outputs, bfloat16 gives near ones.",
        "auto",
        words=RUNTIMES,
    )


@dataclass(frozen=True, kw_only=True)
class Accept:
    """When the result is good enough."""

    map_drop: float = key("Largest loss of mAP50-95 (0 to 1) with which a result is accepted.", 0.005, _SHARE)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How latency is measured."""

    runs: int = key("Timed forward passes of each network.", 50, _COUNT)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. Every field is a key of the file; `distill ls keys` prints them."""

    name: str = key("Prefix of the run folders; the file's name by default.", "")
    model: str | None = key(
        "The checkpoint to make smaller: any YOLO detector, or a classifier that timm or torchvision trained (timm/NAME for one "
        "in their caches); with prune=null and a teacher also an architecture (yolov5n.yaml), which starts from random weights.",
        None,
        path=True,
        given=True,
        built=True,
        named=LIBRARIES,
    )
    data: str = key(
        "A data.yaml, a folder of images, or shapes: a generated set.",
        path=True,
        given=True,
        words=(SHAPES,),
        named=("torch/",),
    )
    unlabelled: Unlabelled | None = key(default=None)
    imgsz: int | None = key(_IMGSZ, None, _SIZE, none="auto")
    batch: int = key("Images in a batch.", 16, _COUNT)
    device: str = key(_DEVICE, "", empty=True)
    seed: int = key("Seed of all random numbers.", 0, _SEED)
    workers: int | None = key("Processes that load images; auto chooses.", None, _NOT_NEGATIVE, none="auto")
    trust: bool = key("Load the checkpoint by executing what is pickled in it. Only for files you made.", False)
    code: tuple[str, ...] = key(_CODE, (), **_CODE_OPTIONS)
    weights: str | None = key(
        "A file with the weights of `model`, if that is timm/NAME or torchvision/NAME.", None, path=True, given=True
    )
    shapes: Shapes = key(default=Shapes)
    teacher: Teacher = key(default=Teacher)
    teachers: tuple[TeacherSpec, ...] = key(
        "Several teachers: original, which is the network of `model`, or a checkpoint, to a weight, or to {weight: ..., losses: "
        "{...}}; a teacher's own losses replace those of `distill`.",
        (),
    )
    sparsify: Sparsify | None = key(default=None)
    prune: Prune | None = key(example="prune.flops=0.5, or prune=null")
    repair: Repair | None = key(default=Repair)
    distill: Distill = key(default=Distill)
    accept: Accept = key(default=Accept)
    export: tuple[str, ...] = key(
        "Formats of the exported student, by ultralytics' names.", ("onnx",), example="[onnx]"
    )
    latency: Latency = key(default=Latency)
    pictures: int = key("Val images of each kind that the report shows with boxes; 0: no pictures.", 3, _NOT_NEGATIVE)
    loggers: tuple[str, ...] = key(
        f"Loggers that follow the student's training, as ultralytics calls them: {', '.join(LOGGERS)}.",
        (),
        words=LOGGERS,
        example="[tensorboard]",
    )

    @property
    def size(self) -> int:
        """`imgsz` of a recipe whose checkpoint was opened: see `distill.engine.size`."""
        assert self.imgsz is not None, "imgsz is auto until the checkpoint is opened"
        return self.imgsz

    @property
    def fresh(self) -> bool:
        """Whether `model` is an architecture, of which a network with random weights is built."""
        return self.model is not None and Path(self.model).suffix in ARCHITECTURES

    @property
    def taught_by(self) -> tuple[TeacherSpec, ...]:
        """The teachers: those of `teachers`, else the one of `teacher`, else the original."""
        return self.teachers or (TeacherSpec(self.teacher.checkpoint or ORIGINAL),)

    @property
    def losses(self) -> tuple[LossSpec, ...]:
        """The losses of all teachers."""
        return tuple(loss for spec in self.taught_by for loss in self.losses_of(spec))

    def losses_of(self, teacher: TeacherSpec) -> tuple[LossSpec, ...]:
        """The losses against a teacher."""
        return tuple(loss for loss in self._given(teacher) if loss.weight)

    def unwanted(self, teacher: TeacherSpec) -> frozenset[str]:
        """Names of the losses against a teacher that have a weight of 0, as far as reading keeps them."""
        return frozenset(loss.name for loss in self._given(teacher) if not loss.weight)

    def _given(self, teacher: TeacherSpec) -> tuple[LossSpec, ...]:
        return self.distill.losses if teacher.losses is None else teacher.losses

    @property
    def foreign(self) -> tuple[str, ...]:
        """The checkpoints of the teachers that are not the network of `model`."""
        return tuple(spec.network for spec in self.taught_by if spec.network != ORIGINAL)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `distill eval` takes beside a checkpoint."""

    data: str = key("A data.yaml.", path=True, given=True, named=("torch/",))
    teacher: str | None = key(
        "The original checkpoint: also measure how its boxes and scores changed.", None, path=True, given=True
    )
    pictures: str | None = key("A folder for pictures of where both differ; with `teacher` only.", None, path=True)
    imgsz: int | None = key(_IMGSZ, None, _SIZE, none="auto")
    batch: int = key("Images in a batch.", 16, _COUNT)
    device: str = key(_DEVICE, "", empty=True)
    trust: bool = key("Execute what is pickled in the checkpoint. Only for files you made.", False)
    code: tuple[str, ...] = key(_CODE, (), **_CODE_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What `distill ls features` takes."""

    model: str = key("A checkpoint.", path=True, given=True, example="model=best.pt")
    plan: str | None = key("The folder of a run, or its plan.json: what the cut keeps.", None, path=True, given=True)
    imgsz: int | None = key(_IMGSZ, None, _SIZE, none="auto")
    trust: bool = key("Execute what is pickled in the checkpoint. Only for files you made.", False)
    code: tuple[str, ...] = key(_CODE, (), **_CODE_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `distill export` takes beside a checkpoint and formats."""

    imgsz: int | None = key(_IMGSZ, None, _SIZE, none="auto")
    trust: bool = key("Execute what is pickled in the checkpoint. Only for files you made.", False)
    code: tuple[str, ...] = key(_CODE, (), **_CODE_OPTIONS)
