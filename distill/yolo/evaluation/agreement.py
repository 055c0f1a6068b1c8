"""Agreement with the teacher: the figure for images that nobody has labelled.

The teacher's own confident boxes serve as labels, and the student is measured against them as against any labels, by
`distill.yolo.evaluation.evaluate`. The teacher against itself gives exactly 1: its confident boxes rank before all its
others, and boxes ranked after the last label cost nothing. (One exception: an original YOLOv5 that is sure of a box in the
padding around an image. That box is no label for anybody, and stays a false alarm.)

Agreement measures what mAP measures: places, classes, and the order of the scores, but not how high these are. Images on
which the teacher sees nothing count too: a box there is a false alarm, which takes a rank before boxes that are right.
It has two limits. The student must not rank high a box that the teacher scored just below the threshold. And if the
teacher is wrong, the student agrees by being wrong: agreement is no accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distill.machine.progress import Bar
from distill.results.quality import Curves
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.evaluate import SURE, Boxes, EvalSettings, detect, evaluate

CONFIDENCE = SURE
PERFECT = 0.995  # AP without any error: both validators let precision fall to 0 over the last of 100 steps of recall


@dataclass(frozen=True)
class Reference:
    """What the teacher sees."""

    data: DataSet  # the val images, with its boxes as labels
    boxes: dict[str, int]  # class name -> number of boxes, for each class that it sees
    settings: EvalSettings  # how the images were shown to it; a student is measured with the same


@dataclass(frozen=True)
class Agreement:
    """AP against the teacher's boxes as a share of the highest possible: 1 for the teacher itself. None if it sees none."""

    agreement50_95: float | None  # mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes that it sees
    agreement50: float | None  # at IoU 0.5
    agreement_per_class: dict[str, float]  # class name -> its agreement50_95
    curves: Curves | None = field(default=None, compare=False)  # against the teacher's boxes


NONE = Agreement(None, None, {})


def predict_reference(
    teacher: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None
) -> Reference:
    """Run the teacher on the val images.

    Args: as for `evaluate`; the labels of the data are not read.
    """
    names: Mapping[int, str] = teacher.names  # type: ignore[assignment]
    predicted = detect(teacher, data, settings, bar=bar)
    records = tuple(_labelled(record, predicted[record["im_file"]]) for record in data.records["val"])
    classes, counts = np.unique(np.concatenate([record["cls"] for record in records]), return_counts=True)
    boxes = {names[int(cls)]: int(count) for cls, count in zip(classes, counts, strict=True)}
    return Reference(replace(data, labelled=True, names=dict(names), records={"val": records}), boxes, settings)


def measure(
    student: nn.Module, reference: Reference, *, bar: Bar | None = None, seen: Boxes | None = None
) -> Agreement:
    """Measure a network against what the teacher sees.

    Args:
        student: an ultralytics DetectionModel with the teacher's classes.
        reference: what `predict_reference` gave.
        bar: as for `evaluate`.
        seen: as for `evaluate`.
    """
    if not reference.boxes:
        return NONE
    metrics = evaluate(student, reference.data, reference.settings, bar=bar, seen=seen)
    shares = {name: _share(metrics.per_class.get(name, 0.0)) for name in reference.boxes}
    return Agreement(_share(metrics.map50_95), _share(metrics.map50), shares, metrics.curves)


def _labelled(record: dict[str, Any], boxes: NDArray[np.float32]) -> dict[str, Any]:
    """An image's record with the confident ones of the boxes on it as labels."""
    in_image = (boxes[:, 2:4] > 0).all(1)  # a box in the padding has no area there
    sure = boxes[(boxes[:, 4] >= CONFIDENCE) & in_image]
    return {**record, "cls": sure[:, 5:], "bboxes": sure[:, :4], "segments": []}


def _share(ap: float) -> float:
    return min(1.0, ap / PERFECT)
