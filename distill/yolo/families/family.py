"""What a family of detectors declares: everything in which one family differs from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from distill.losses.context import Outputs


class SaveNative(Protocol):
    """Writes a network as the family's own project does: see `distill.yolo.families.yolov5.saving`."""

    def __call__(self, model: nn.Module, path: Path, *, names: Mapping[int, str], imgsz: int) -> None: ...


@dataclass(frozen=True)
class NativeFormat:
    """A checkpoint for the family's own project, written beside the one that ultralytics reads.

    Attributes:
        file: its name in the run folder.
        save: writes it.
        about: what the report says of the file, after its name.
        commands: shell lines that use it, with `{file}` and `{imgsz}` to fill in.
    """

    file: str
    save: SaveNative
    about: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """How the family's own project measures mAP. The defaults are those of ultralytics' `yolo val`.

    Attributes:
        nms_iou: two boxes of a class that overlap by more than this are one.
        clip_boxes: whether boxes are cut off where their image ends.
        average_precision: (hits (detections, thresholds), confidence, predicted class, label class) -> AP of shape
            (classes, thresholds); None for ultralytics' own.
    """

    nms_iou: float = 0.7
    clip_boxes: bool = False
    average_precision: Callable[[NDArray, NDArray, NDArray, NDArray], NDArray] | None = None


@dataclass(frozen=True)
class Checkpoints:
    """How the family's checkpoints are read and written. The defaults are for networks that ultralytics saved.

    Attributes:
        modules: names in checkpoints of the family's own project -> the classes that stand for them.
        owns: (every name in a checkpoint) -> whether it is of that project. Such a file is never run, trusted or not.
        check_names: (file, names that stand for nothing) -> None. Raises `DistillError` that says what the file is.
        adopt: (file, network, the checkpoint's content) -> None. Gives the network this family's head if its last layer
            is one in another form; leaves every other network alone.
        portable: (head) -> the form in which ultralytics can load it without this project.
        train_args: (the checkpoint's content) -> how it was trained, `imgsz` above all.
    """

    modules: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    owns: Callable[[tuple[str, ...]], bool] = lambda names: False
    check_names: Callable[[Path, list[str]], None] = lambda path, names: None
    adopt: Callable[[Path, Any, dict[str, Any]], None] = lambda path, model, content: None
    portable: Callable[[Any], nn.Module] = lambda head: head
    train_args: Callable[[dict[str, Any]], Any] = lambda content: content.get("train_args")


@dataclass(frozen=True)
class Family:
    """A family of detectors, which share a head. Everything else is the same for every YOLO.

    Attributes:
        title: what messages call its networks.
        owns: (last layer of a network) -> whether it is this family's head. Exact types, so that a subclass that computes
            something else is not taken for it.
        outputs: (head, what the network returned in train mode) -> what losses read.
        label_terms: (model, its outputs, batch) -> the head's own loss on labels by name, means per image.
        sensitivity: (head, what the network returned in train mode) -> the scalar that `prune` back-propagates.
        entry: path in the head of the convolution that reads level {level}.
        gives: what it has of what a loss may ask for: "dist", "objectness", "softmax".
        area_resize: whether images shrink by averaging areas, as in the family's own validation, or by interpolation.
        evaluation: how mAP is measured.
        checkpoints: how checkpoints are read and written.
        prepare_export: (head) -> None. Makes the head give what the code expects that such a network is deployed with.
        native: the format of the family's own project; None if that is ultralytics.
        untrainable: why no network of it is trained from scratch, as what follows the file's name; empty if one can be.
    """

    title: str
    owns: Callable[[nn.Module], bool]
    outputs: Callable[[Any, Any], Outputs]
    label_terms: Callable[[Any, Outputs, Mapping[str, Any]], dict[str, Tensor]]
    sensitivity: Callable[[Any, Any], Tensor]
    entry: str
    gives: frozenset[str]
    area_resize: bool = False
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    prepare_export: Callable[[Any], None] = lambda head: None
    native: NativeFormat | None = None
    untrainable: str = ""
