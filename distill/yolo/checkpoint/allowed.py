"""Which names a YOLO checkpoint may hold, and what each of them stands for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from distill.errors import DistillError
from distill.machine.words import printable
from distill.yolo.checkpoint.archive import Archive
from distill.yolo.checkpoint.checkout import GIVE_CODE
from distill.yolo.checkpoint.unpickle import GRAPH, METHOD, PLAIN
from distill.yolo.families.family import Family
from distill.yolo.families.table import FAMILIES, supported
from distill.yolo.tasks.table import TASKS
from distill.yolo.upstream import Detect, DetectionModel, __version__, tasks

OTHER_TASKS = {
    "ClassificationModel": "a classification model",
    "SemanticSegmentationModel": "a model for semantic segmentation",
    "DepthModel": "a depth model",
    "RTDETRDetectionModel": "an RT-DETR",
    "WorldModel": "a YOLO-World",
    "YOLOEModel": "a YOLOE",
    "YOLOESegModel": "a YOLOE",
}

# Module classes: those of torch.nn and of ultralytics, old names included. None is ever called, see unpickle.py.
_MODULE_PACKAGES = ("torch.nn.modules.", "ultralytics.nn.modules.")
_MODULES: dict[str, type[nn.Module]] = {
    **{f"ultralytics.nn.tasks.{task.network.__name__}": task.network for task in TASKS},
    "ultralytics.nn.tasks.YOLOv10DetectionModel": DetectionModel,
    "ultralytics.nn.modules.block.Silence": nn.Identity,
    "torch.nn.modules.module.Module": nn.Module,
    **{name: kind for family in FAMILIES for name, kind in family.checkpoints.modules.items()},
}

# Parts of checkpoints that a network does not need: the loss it was trained with, its score, its file.
_IGNORED_PACKAGES = ("ultralytics.utils.", "ultralytics.cfg.", "ultralytics.yolo.utils.", "ultralytics.yolo.cfg.")
_IGNORED = frozenset(
    (
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray", "_codecs.encode", "torch.device", "torch.fx._symbolic_trace.Tracer"),
    )
)

# Until 8.2, ultralytics kept a method of its detectors as an attribute of its heads for other tasks.
_METHODS = frozenset({(Detect, "forward")})

_LARGEST_NUMBER = 8192  # in a description: of channels, pixels, repetitions
_ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Z]\w*\([\w\s.,=+-]*\)")  # nn.LeakyReLU(0.1, inplace=True)


def own_project(names: tuple[str, ...]) -> Family | None:
    """The family whose own project made a checkpoint with these names; None if that is ultralytics."""
    return next((family for family in FAMILIES if family.checkpoints.owns(names)), None)


def unpickle(archive: Archive) -> Any:
    """Unpickle a detector's checkpoint.

    Raises:
        DistillError: it is no detector's, or uses a name that is not allowed. Of several reasons the most telling one.
    """
    path, names = archive.path, archive.names
    for name in names:
        check_task(path, name.removeprefix("ultralytics.nn.tasks."))
    modules = {name: kind for name in names if (kind := module_class(name))}
    ignored = {name for name in names if name in _IGNORED or name.startswith(_IGNORED_PACKAGES)}
    allowed = {*modules, *ignored, *PLAIN, GRAPH}
    foreign = [name for name in names if name not in allowed]
    if foreign == [METHOD]:
        try:
            return archive.load(modules, ignored, _METHODS)
        except DistillError:  # one put in place of forward(), as fusing does
            raise fused_network(path) from None
    if (project := own_project(names)) is not None:
        project.checkpoints.check_names(path, foreign)
    if foreign:
        raise _foreign(path, foreign[0])
    return archive.load(modules, ignored)


def check_task(path: Path, model_class: str) -> None:
    """Refuse a model of another task by its class name. Raises `DistillError` that names the task."""
    if task := OTHER_TASKS.get(model_class):
        raise DistillError(f"{path} is {task}, not a detector: {supported()}")


def fused_network(path: Path) -> DistillError:
    """The error for a network without its BatchNorm layers."""
    return DistillError(f"{path} holds a fused network: give the .pt that training saved, with its BatchNorm layers")


def check_description(path: Path, description: Any) -> None:
    """Check a model's `yaml`, from which ultralytics builds the same network anew.

    Building it evaluates the activation, and calls whatever ultralytics' code has under the name of each layer.

    Raises:
        DistillError: a name that is not one of a module.
    """
    if description is None:
        return
    try:
        layers = [layer[2] for layer in (*description["backbone"], *description["head"])]
        activation = description.get("activation")
        if not all(isinstance(text, str) for text in (*layers, activation or "")):
            raise TypeError("a layer without a name")
        numbers = (value for value in tree_leaves(description) if isinstance(value, (int, float)))
        if not all(abs(value) <= _LARGEST_NUMBER for value in numbers):
            raise TypeError("a number that no network has")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DistillError(f"{path} is damaged (its 'yaml' describes no network): copy or download it again") from error
    if activation and not _ACTIVATION.fullmatch(activation):
        raise _foreign(path, activation)
    for name in layers:
        of_torch = name.startswith("nn.")
        kind = getattr(nn, name.removeprefix("nn."), None) if of_torch else getattr(tasks, name, nn.Identity)
        if not _is_module(kind):
            raise _foreign(path, name)


def _foreign(path: Path, name: str) -> DistillError:
    package, _, attribute = name.rpartition(".")
    what = f"{path} holds '{printable(name, 100)}'"
    if package.startswith("ultralytics.nn.modules") and not hasattr(sys.modules.get(package), attribute):
        return DistillError(
            f"{what}, which ultralytics {__version__} does not have: a newer or a changed one saved it: install a newer one "
            f"(pip install -U ultralytics); of a fork, {GIVE_CODE}"
        )
    if package == "__main__":
        return DistillError(
            f"{what}, a class of the script that saved it, which no other program has: move the class to a file that can be "
            "imported, save the network again, and, only if you trust where the file comes from, load it with trust=true"
        )
    return DistillError(
        f"{what}, which is not part of a YOLO: nothing of it was run; only if you trust where the file comes from, load it "
        "with trust=true"
    )


def module_class(name: str) -> type[nn.Module] | None:
    """The module class that a name stands for. Nothing is imported to look it up."""
    if name in _MODULES or not name.startswith(_MODULE_PACKAGES):
        return _MODULES.get(name)
    package, _, attribute = name.rpartition(".")
    kind = getattr(sys.modules.get(package), attribute, None)
    return kind if _is_module(kind) else None


def _is_module(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)
