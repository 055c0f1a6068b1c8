"""What a task declares: everything in which the data and the figures of one task differ from another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.yolo.data.rows import Format
from distill.yolo.upstream import DetectionModel, Validator


@dataclass(frozen=True)
class Task:
    """A task of ultralytics' networks. Everything else is the same for all of them."""

    name: str  # as ultralytics calls it
    title: str  # what messages call its networks
    network: type[DetectionModel]  # their class
    validator: type[Validator]  # ultralytics' own
    rows: Format  # what a line of a label file holds
    # What the validator measures beside the boxes, in the names of figures; None if it measures boxes alone.
    beside: str | None = None
    # (what the validator predicts of an image) -> its boxes, (n, 4) as x1 y1 x2 y2.
    corners: Callable[[dict[str, Tensor]], Tensor] = lambda predicted: predicted["bboxes"]
    # (what the validator predicts of an image) -> the same as labels.
    as_labels: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda predicted: predicted
    # (head) -> what a data.yaml must say for it beside classes.
    keys: Callable[[Any], dict[str, Any]] = lambda head: {}
