"""The recipe: everything a run depends on, as frozen dataclasses that a strict YAML file fills in."""

# ruff: noqa: RUF009 - key() is dataclasses.field() with a kind and a help text
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from distill.errors import DistillError
from distill.recipe_fields import Auto, Choice, File, Flag, Many, Nullable, Number, Text, nearest
from distill.recipe_losses import Losses, LossSpec
from distill.recipe_section import Overrides, Section, bind, key, rows
from distill.recipe_yaml import Item, dump, read, wrap

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
    LossSpec("score_bce", 2.0),
    LossSpec("objectness_bce", 2.0),
    LossSpec("box_iou", 1.0),
    LossSpec("dfl_kl", 2.0),
    LossSpec("feature_pkd", 1.0),
)

_COUNT = Number(low=1, whole=True)
_EPOCHS = Number(low=0, whole=True)
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
    seed: int = key(_EPOCHS, "The same seed draws the same images.", 0)


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
        "Scale each loss by its gradient at the start: weights then say how hard they pull, not a factor.",
        False,
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
    device: str = key(Text(empty=True), "cpu, 0, cuda:1, mps, ...; empty takes a GPU where there is one.", "")
    seed: int = key(_EPOCHS, "Seed of everything random.", 0)
    workers: int | None = key(Auto(_EPOCHS), "Processes that load images.", None)
    trust: bool = key(Flag(), "Load the checkpoint by executing what is pickled in it. Only for files you made.", False)
    shapes: Shapes = key(Section(Shapes), "The generated demo set; read with data: shapes.", Shapes)
    teacher: Teacher = key(Section(Teacher), "Where the teacher comes from, if not from `model`.", Teacher)
    sparsify: Sparsify | None = key(Section(Sparsify, optional=True), "Network slimming before the cut.", None)
    prune: Prune | None = key(
        Section(Prune, optional=True), "What to cut; null cuts nothing: the network is trained on as it is."
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
    imgsz: int | None = key(Auto(_SIZE), "Width and height of the input in pixels; auto takes the checkpoint's.", None)
    batch: int = key(_COUNT, "Images in a batch.", 16)
    device: str = key(Text(empty=True), "cpu, 0, ...; empty takes a GPU where there is one.", "")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `distill export` takes beside a checkpoint and formats."""

    imgsz: int | None = key(Auto(_SIZE), "Width and height of the input in pixels; auto takes the checkpoint's.", None)


def load(recipe: str | Path, overrides: Overrides = ()) -> Recipe:
    """Read a recipe file.

    Args:
        recipe: a path, or the bare name of a shipped recipe.
        overrides: `key=value` words as on the command line; or a mapping of dotted keys to text, read the same way, or
            to plain Python values.

    Raises:
        DistillError: with everything that is wrong, one line each.
    """
    file = find(recipe)
    problems: list[str] = []
    try:
        item = read(file.read_text(encoding="utf-8-sig"), _short(file), problems)
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{_short(file)}: not readable as a recipe: {error}") from None
    if item is None:
        raise DistillError("\n".join(problems))
    if isinstance(item.value, dict) and "name" not in item.value:
        name = wrap(re.sub(r"[^\w.-]+", "-", file.stem), item.where)
        item = replace(item, value={"name": name, **item.value})
    folders = (file.absolute().parent, Path.cwd())
    return bind(Recipe, item, overrides, problems, folders=folders, check=_check)


def changed(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with some keys replaced, in the ways and with the complaints of `load`."""
    item = wrap(Section(Recipe).write(recipe), recipe.name)
    return bind(Recipe, item, overrides, folders=(Path.cwd(),), check=_check)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every key. `load` gives an equal recipe back."""
    return dump(Section(Recipe).write(recipe))


def keys() -> list[tuple[str, str, str, str]]:
    """Rows of `distill ls keys`: dotted key, type, default, help."""
    return list(rows(Recipe))


def shipped() -> dict[str, Path]:
    """The recipes that come with the program, by bare name."""
    return {file.stem: file for file in sorted(_recipes().glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe that is named by its path or, for a shipped one, by its bare name."""
    path, files = Path(recipe).expanduser(), shipped()
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        raise DistillError(f"{recipe} is the folder of a run; to go on with it: distill run --resume {recipe}")
    if str(recipe) in files:
        return files[str(recipe)]
    hint = nearest(str(recipe), files) or f": give the path of a file or one of {', '.join(files)}"
    raise DistillError(f"no recipe '{recipe}'{hint}")


def _recipes() -> Path:
    """Inside the package where it was installed (setup.cfg maps it there), beside the package in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1] / "recipes"


def _short(file: Path) -> str:
    """A file as messages name it."""
    if file.is_absolute() and file.is_relative_to(Path.cwd()):
        return str(file.relative_to(Path.cwd()))
    return file.name if file.parent == _recipes() else str(file)


def _check(recipe: Recipe, item: Item) -> list[str]:
    """What no key can see alone."""

    def at(name: str) -> str:
        return item.value[name].key if name in item.value else item.where

    problems = []
    train, distill = recipe.teacher.train, recipe.distill
    if recipe.model is None and train is None:
        what = "The checkpoint to make smaller; teacher.train={} trains one first."
        problems.append(f"{at('model')}: model is not set: give model=... ({what})")
    if recipe.model is not None and train is not None:
        mend = "leave one out (model=null or teacher.train=null)"
        problems.append(f"{at('model')}: model and teacher.train are both set, and the teacher is one of them: {mend}")
    if distill.epochs and not distill.losses and not distill.labels:
        problems.append(
            f"{at('distill')}: distill has no losses and labels: 0, so nothing to train on: epochs=0 says so"
        )
    if distill.epochs and distill.losses and not distill.labels and not any(loss.span.lasts for loss in distill.losses):
        problems.append(
            f"{at('distill')}: distill has labels: 0 and every loss ends before the training does: leave out until of one"
        )
    if not re.fullmatch(r"\w[\w.-]*", recipe.name):
        problems.append(f"{at('name')}: name: expected letters, digits, '-', '_' and '.', got {recipe.name!r}")
    return problems
