"""What a recipe holds: every key with its kind, default and help, as frozen dataclasses."""

# ruff: noqa: RUF009 - key() is dataclasses.field() with a kind and a help text
from __future__ import annotations

from dataclasses import dataclass

from distill.losses.spec import LossSpec
from distill.recipe.fields import Auto, Choice, File, Flag, Many, Nullable, Number, Text
from distill.recipe.losses import Losses
from distill.recipe.section import Section, key

SHAPES = "shapes"  # `data: shapes` is the generated demo set
# The names are prune.IMPORTANCES; repeated here because importing prune takes torch's two seconds.
IMPORTANCES = {
    "obs": "Error that remains after the other channels have made up for the loss (structured Optimal Brain Surgeon).",
    "fisher": "Squared gradients of the outputs with respect to the channel.",
    "bn_scale": "Size of the BatchNorm scale (network slimming); meant for use after sparsify.",
    "l1": "Size of the weights that make the channel.",
    "random": "Nothing: what any other importance has to beat.",
}
DEFAULT_LOSSES = (
    LossSpec("score_bce", 1.0),
    LossSpec("objectness_bce", 1.0),
    LossSpec("box_iou", 2.0),
    LossSpec("dfl_kl", 1.0),
    LossSpec("feature_pkd", 1.0),
)

_COUNT = Number(low=1, whole=True)
_EPOCHS = Number(low=0, whole=True)
_SEED = Number(low=0, high=10**9, whole=True)
_SHARE = Number(low=0, high=1, open=True)
_POSITIVE = Number(low=0, open=True)
_SIZE = Number(low=32, whole=True, step=32)


def _loss_names() -> tuple[str, ...]:
    from distill import losses

    return tuple(losses.BUILTIN)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    train: int = key(_COUNT, "Generated images to train on.", 400)
    val: int = key(_COUNT, "Generated images to measure on.", 100)
    imgsz: int = key(_SIZE, "Width and height of the generated images in pixels.", 160)
    seed: int = key(_SEED, "The same seed draws the same images.", 0)


@dataclass(frozen=True, kw_only=True)
class TeacherTrain:
    model: str = key(File(), "An ultralytics model (yolov5n.yaml, yolov8s.yaml, ...) or a checkpoint.", "yolov5n.yaml")
    width: float | None = key(Auto(_POSITIVE), "Width factor; auto takes the model's own (size n: 0.25).", None)
    epochs: int = key(_COUNT, "Epochs at most.", 100)
    patience: int = key(_COUNT, "Stop after this many epochs without a better mAP.", 20)
    lr: float | None = key(Auto(_POSITIVE), "Highest learning rate; auto chooses it.", None)
    batch: int | None = key(Auto(_COUNT), "Images in a batch; auto takes `batch`.", None)
    mosaic: float = key(Number(low=0, high=1), "Probability that an image is made of four, but at the end.", 1.0)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    train: TeacherTrain | None = key(
        Section(TeacherTrain, optional=True), "Train the teacher first; for who has data and no checkpoint.", None
    )


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    epochs: int = key(_COUNT, "Epochs with the penalty.", 20)
    strength: float = key(_POSITIVE, "Factor of the L1 penalty on the BatchNorm scales; it decays.", 1e-3)
    lr: float | None = key(Auto(_POSITIVE), "Highest learning rate; auto chooses it.", None)
    distill: bool = key(
        Flag(), "Hold the outputs to the teacher's by the losses and labels of distill, or labels alone.", False
    )


@dataclass(frozen=True, kw_only=True)
class Prune:
    flops: float | None = key(Nullable(_SHARE), "Share of the teacher's FLOPs to keep.", None, rivals="budget")
    params: float | None = key(Nullable(_SHARE), "Share of the teacher's parameters to keep.", None, rivals="budget")
    ratio: float | None = key(Nullable(_SHARE), "Share of the prunable channels to cut.", None, rivals="budget")
    importance: str = key(
        Choice(tuple(IMPORTANCES)), "How a channel's cost is measured (distill ls importances).", "obs"
    )
    round_to: int = key(_COUNT, "Widths end on multiples of this.", 8)
    protect: tuple[str, ...] = key(
        Many(Text(), "[model.0.*, model.9.*]"), "Layers that stay whole: names, * matches anything.", ()
    )
    max_ratio: float = key(_SHARE, "Largest share of one layer's channels that may be cut.", 0.95)
    images: int = key(_COUNT, "Training images that the costs are measured on.", 96)
    rounds: int = key(_COUNT, "Rounds to cut in: what is left is repaired and asked again what to cut next.", 1)


@dataclass(frozen=True, kw_only=True)
class Repair:
    images: int = key(
        _COUNT, "Training images that the student is mended on, of those there are; no labels are read.", 256
    )
    steps: int = key(_EPOCHS, "Optimizer steps for each block after the closed form; 0 stops there.", 200)


@dataclass(frozen=True, kw_only=True)
class Distill:
    epochs: int = key(_EPOCHS, "Epochs of training after repair; 0 stops there.", 50)
    losses: tuple[LossSpec, ...] = key(
        Losses(_loss_names, DEFAULT_LOSSES),
        "Losses against the teacher: name to weight, or to {weight: ..., option: ...}; weight 0 leaves one out. Beside "
        "the weight, in shares of the training: warmup, in which it rises from 0; until, where it ends; fade: none, linear "
        "or cosine, how it falls until then. One that the model's head has no use for is left out by itself.",
        DEFAULT_LOSSES,
    )
    labels: float = key(Number(low=0), "Weight of the labels' own loss; 0 learns from the teacher alone.", 1.0)
    balance: bool = key(
        Flag(),
        "A loss of weight 1 pulls as hard as the labels do where training starts; false: weights are plain factors.",
        True,
    )
    lr: float | None = key(Auto(_POSITIVE), "Highest learning rate; auto finds one by short trials.", None)
    batch: int | None = key(Auto(_COUNT), "Images in a batch; auto chooses it from the optimizer steps.", None)


@dataclass(frozen=True, kw_only=True)
class Accept:
    map_drop: float = key(Number(low=0, high=1), "A result is accepted that loses at most this much mAP50-95.", 0.005)


@dataclass(frozen=True, kw_only=True)
class Latency:
    runs: int = key(_COUNT, "Timed forward passes of each network.", 50)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. Every field is a key of the file; `distill ls keys` prints them."""

    name: str = key(Text(), "What run folders are called; the file's name where it is left out.", "")
    model: str | None = key(Nullable(File()), "The checkpoint to make smaller: any YOLO detector.", None)
    data: str = key(File(words=(SHAPES,)), "A data.yaml, a folder of images, or shapes: a generated set.")
    imgsz: int = key(_SIZE, "Width and height of the network's input in pixels.", 640)
    batch: int = key(_COUNT, "Images in a batch.", 16)
    device: str = key(Text(empty=True), "cpu, 0, cuda:1, ...; empty takes a GPU where there is one.", "")
    seed: int = key(_SEED, "Seed of everything random.", 0)
    workers: int | None = key(Auto(_EPOCHS), "Processes that load images.", None)
    trust: bool = key(Flag(), "Load the checkpoint by executing what is pickled in it. Only for files you made.", False)
    shapes: Shapes = key(Section(Shapes), "The generated demo set; read with data: shapes.", Shapes)
    teacher: Teacher = key(Section(Teacher), "Where the teacher comes from, if not from `model`.", Teacher)
    sparsify: Sparsify | None = key(Section(Sparsify, optional=True), "Network slimming before the cut.", None)
    prune: Prune | None = key(
        Section(Prune, optional=True),
        "What to cut; null cuts nothing: the network is trained on as it is.",
        example="prune.flops=0.5, or prune=null",
    )
    repair: Repair | None = key(
        Section(Repair, optional=True), "Repair after the cut: in closed form, then block by block.", Repair
    )
    distill: Distill = key(Section(Distill), "Training of the student.", Distill)
    accept: Accept = key(Section(Accept), "When the result is good enough.", Accept)
    export: tuple[str, ...] = key(
        Many(Text(), "[onnx]"), "Formats the student is exported to, by ultralytics' names.", ("onnx",)
    )
    latency: Latency = key(Section(Latency), "How latency is measured.", Latency)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `distill eval` takes beside a checkpoint."""

    data: str = key(File(), "A data.yaml.")
    teacher: str | None = key(
        Nullable(File()), "What it was pruned from: also measure what its boxes and its scores have lost.", None
    )
    imgsz: int | None = key(Auto(_SIZE), "Width and height of the input in pixels; auto takes the checkpoint's.", None)
    batch: int = key(_COUNT, "Images in a batch.", 16)
    device: str = key(Text(empty=True), "cpu, 0, ...; empty takes a GPU where there is one.", "")
    trust: bool = key(Flag(), "As of a recipe: execute what is pickled in the checkpoint.", False)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `distill export` takes beside a checkpoint and formats."""

    imgsz: int | None = key(Auto(_SIZE), "Width and height of the input in pixels; auto takes the checkpoint's.", None)
    trust: bool = key(Flag(), "As of a recipe: execute what is pickled in the checkpoint.", False)
