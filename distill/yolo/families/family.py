"""What a family of detectors declares: everything in which one family differs from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from distill.losses.context import Outputs
from distill.yolo.tasks.detect import DETECT
from distill.yolo.tasks.task import Task


@dataclass(frozen=True)
class NativeFormat:
    """A checkpoint for the family's own project, written beside the one that ultralytics reads."""

    file: str  # its name in the run folder
    save: Callable[..., None]  # (model, path, *, names: class names by id, imgsz) -> None
    about: str  # what the report says of the file, after its name
    commands: tuple[str, ...]  # shell lines that use it, with {file}, {data} and {imgsz} to fill in


@dataclass(frozen=True)
class Evaluation:
    """How the family's own project measures mAP. The defaults are those of ultralytics' `yolo val`."""

    nms_iou: float = 0.7  # two boxes of a class that overlap by more than this are one
    clip_boxes: bool = False  # whether boxes are cut off where their image ends
    # (hits (detections, thresholds), confidence, predicted class, label class) -> AP (classes, thresholds); None for
    # ultralytics' own.
    average_precision: Callable[[NDArray, NDArray, NDArray, NDArray], NDArray] | None = None
    # (head in eval mode, its raw outputs) -> boxes that need no NMS, (B, k, 6): x1 y1 x2 y2 in input pixels, score, class; None
    # if all boxes need it.
    without_nms: Callable[[Any, Any], Tensor] | None = None


@dataclass(frozen=True)
class Checkpoints:
    """How the family's checkpoints are read and written. The defaults are for networks that ultralytics saved."""

    # Names in checkpoints of the family's own project -> the classes that stand for them.
    modules: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    # (every name in a checkpoint) -> whether it is of that project. Such a file is never run, trusted or not.
    owns: Callable[[tuple[str, ...]], bool] = lambda names: False
    # (file, its names that stand for nothing) -> None. Raises `DistillError` that says what the file is.
    check_names: Callable[[Path, list[str]], None] = lambda path, names: None
    # (file, network, the checkpoint's content) -> None. Gives the network this family's head if its last layer is one in
    # another form, and the content its `train_args`; leaves every other network alone.
    adopt: Callable[[Path, Any, dict[str, Any]], None] = lambda path, model, content: None
    # (head) -> the form in which ultralytics can load it without this project.
    portable: Callable[[Any], nn.Module] = lambda head: head
    # (what a network of the family's own project gives in eval mode) -> what it gives here.
    served: Callable[[Tensor], Tensor] = lambda gave: gave


@dataclass(frozen=True)
class Family:
    """A family of detectors, which share a head. Everything else is the same for every YOLO."""

    title: str  # what messages call its networks
    # (last layer of a network) -> whether it is this family's head. Compare exact types: a subclass may compute something
    # else.
    owns: Callable[[nn.Module], bool]
    outputs: Callable[[Any, Any], Outputs]  # (head, what the network returned in train mode) -> what losses read
    # (model, its outputs, batch) -> the head's own loss on labels by name, means per image.
    label_terms: Callable[[Any, Outputs, Mapping[str, Any]], dict[str, Tensor]]
    # (head, what the network returned in train mode) -> the scalar that `prune` back-propagates.
    sensitivity: Callable[[Any, Any], Tensor]
    entry: str  # path in the head of the convolution that reads level {level}
    # (head) -> what it has of what a loss may ask for: "dist", "objectness", "softmax".
    gives: Callable[[Any], frozenset[str]]
    # (head, head) -> whether their outputs compare as they are, if classes and grid are the same.
    alike: Callable[[Any, Any], bool]
    by_cell: Callable[[Outputs], Outputs]  # the outputs as one box to a cell, with class scores and nothing beside
    reorder: Callable[[Any, Sequence[int]], None]  # (head, order) -> None. Its class i becomes what was class order[i].
    task: Task = DETECT
    area_resize: bool = False  # whether images shrink by averaging areas, or by interpolation as in ultralytics
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    # (head) -> None. Makes the head give what the code expects that such a network is deployed with.
    prepare_export: Callable[[Any], None] = lambda head: None
    # Modules of the head that make its second branch, which `outputs` gives beside the first.
    second: tuple[str, ...] = ()
    # (head, its inputs) -> what it returns in train mode, with a gradient to each input.
    through: Callable[[Any, Sequence[Tensor]], Any] = lambda head, features: head(list(features))
    native: NativeFormat | None = None  # None if the family's own project is ultralytics
    # Why none is trained from scratch, to follow the file's name in a message; empty if one can be.
    untrainable: str = ""
