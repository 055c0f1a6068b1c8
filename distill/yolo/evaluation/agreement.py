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
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.machine.progress import Bar
from distill.results.quality import Beside, Curves
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.evaluate import SURE, Boxes, EvalSettings, Known, evaluate, in_shares, predict

CONFIDENCE = SURE
PERFECT = 0.995  # AP without any error: both validators let precision fall to 0 over the last of 100 steps of recall


@dataclass(frozen=True)
class Reference:
    """What the teacher sees."""

    data: DataSet  # the val images, with its boxes as labels
    boxes: dict[str, int]  # class name -> number of boxes, for each class that it sees
    settings: EvalSettings  # how the images were shown to it; a student is measured with the same
    objects: Known = field(default_factory=dict, repr=False)  # masks and the like on each image, if the task has some


@dataclass(frozen=True)
class Agreement:
    """AP against the teacher's boxes as a share of the highest possible: 1 for the teacher itself. None if it sees none."""

    agreement50_95: float | None  # mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes that it sees
    agreement50: float | None  # at IoU 0.5
    agreement_per_class: dict[str, float]  # class name -> its agreement50_95
    curves: Curves | None = field(default=None, compare=False)  # against the teacher's boxes
    beside: Beside | None = None  # the same of what the task has beside boxes


NONE = Agreement(None, None, {})


def predict_reference(
    teacher: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None
) -> Reference:
    """Run the teacher on the val images.

    Args: as for `evaluate`; the labels of the data are not read.
    """
    names: Mapping[int, str] = teacher.names  # type: ignore[assignment]
    sure: dict[str, NDArray[np.float32]] = {}
    objects: dict[str, dict[str, Tensor]] = {}
    for batch, predicted in predict(teacher, data, settings, bar=bar):
        for (file, boxes), found in zip(in_shares(batch, predicted, data.task), predicted, strict=True):
            counts = (boxes[:, 4] >= CONFIDENCE) & (boxes[:, 2:4] > 0).all(1)  # a box in the padding has no area
            sure[file] = boxes[counts]
            if data.task.rows.strict:  # boxes alone are kept as labels
                labels = data.task.as_labels(found)
                objects[file] = {key: value[torch.from_numpy(counts).to(value.device)] for key, value in labels.items()}
    records = tuple(_labelled(record, sure[record["im_file"]], not objects) for record in data.records["val"])
    classes, numbers = np.unique(np.concatenate([boxes[:, 5] for boxes in sure.values()]), return_counts=True)
    seen = {names[int(cls)]: int(count) for cls, count in zip(classes, numbers, strict=True)}
    shown = replace(data, labelled=True, names=dict(names), records={"val": records})
    return Reference(shown, seen, settings, objects)


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
    metrics = evaluate(student, reference.data, reference.settings, bar=bar, seen=seen, known=reference.objects)
    means, beside = _shares(metrics.map50_95, metrics.map50, metrics.per_class, reference), metrics.beside
    if beside is not None:
        beside = Beside(beside.name, *_shares(beside.map50_95, beside.map50, beside.per_class, reference))
    return Agreement(*means, metrics.curves, beside)


def _labelled(record: dict[str, Any], boxes: NDArray[np.float32], known: bool) -> dict[str, Any]:
    """An image's record with boxes as its labels; without labels, if all that is on it is kept beside."""
    labels = boxes if known else boxes[:0]
    return {**record, "cls": labels[:, 5:], "bboxes": labels[:, :4], "segments": [], "keypoints": None}


def _shares(
    ap50_95: float, ap50: float, per_class: Mapping[str, float], reference: Reference
) -> tuple[float, float, dict[str, float]]:
    """Average precision as shares of the highest possible: the two means, and of each class that the teacher sees."""
    return _share(ap50_95), _share(ap50), {name: _share(per_class.get(name, 0.0)) for name in reference.boxes}


def _share(ap: float) -> float:
    return min(1.0, ap / PERFECT)
