"""How far a network sees what its teacher sees: the figure for images that nobody has labelled.

The teacher's own confident boxes serve as labels, and the student is measured against them as against any labels, by
`distill.yolo.evaluation.evaluate`. The teacher against itself gives exactly 1: of each class its confident boxes come before all
others, and those after the last box that there is to find cost nothing. (Unless an original YOLOv5 is sure of a box that lies
wholly in the padding around an image: that is no label for anybody, and stays a false alarm.)

What counts is what counts in mAP: places, classes, and the order of the scores, but not how high these are. Images on
which the teacher sees nothing count too, for a box there is a false alarm, and takes a rank before boxes that are right.
Two limits. A box that the teacher has scored just below the threshold is one that the student must not rank high. And
where the teacher is wrong the student agrees by being wrong: it is no accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.evaluate import Bar, detect, evaluate

CONFIDENCE = 0.25  # what `yolo predict` and detect.py show of a network, unless told otherwise
PERFECT = 0.995  # AP of who finds everything and nothing else: both validators' curves fall to 0 at recall 1, and the
# trapezoid over the last of 100 steps with it


@dataclass(frozen=True)
class Reference:
    """What the teacher sees.

    Attributes:
        data: the val images, with its boxes as labels.
        boxes: class name -> how many of them there are, for each class that it sees.
    """

    data: DataSet
    boxes: dict[str, int]


@dataclass(frozen=True)
class Agreement:
    """AP against the teacher's boxes as a share of the best there can be: 1 for the teacher itself.

    Attributes:
        agreement50_95: mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes that the teacher sees; None
            where it sees nothing at all.
        agreement50: at IoU 0.5.
        agreement_per_class: class name -> its agreement50_95.
    """

    agreement50_95: float | None
    agreement50: float | None
    agreement_per_class: dict[str, float]


NONE = Agreement(None, None, {})


def look(
    teacher: nn.Module,
    data: DataSet,
    *,
    imgsz: int,
    batch: int = 16,
    device: str | torch.device = "cpu",
    bar: Bar | None = None,
) -> Reference:
    """See what the teacher sees on the val images.

    Args:
        teacher: an ultralytics DetectionModel with its `names`.
        data: labels are not needed, and not looked at.
        imgsz, batch, device, bar: as in `evaluate`, which must get the same to give a teacher 1.
    """
    names: Mapping[int, str] = teacher.names  # type: ignore[assignment]
    found = detect(teacher, data, imgsz=imgsz, batch=batch, device=device, bar=bar)
    records = tuple(_labelled(record, found[record["im_file"]]) for record in data.records["val"])
    classes, counts = np.unique(np.concatenate([record["cls"] for record in records]), return_counts=True)
    boxes = {names[int(cls)]: int(count) for cls, count in zip(classes, counts, strict=True)}
    return Reference(replace(data, labelled=True, names=dict(names), records={"val": records}), boxes)


def measure(
    student: nn.Module,
    reference: Reference,
    *,
    imgsz: int,
    batch: int = 16,
    device: str | torch.device = "cpu",
    bar: Bar | None = None,
) -> Agreement:
    """Measure a network against what the teacher sees; arguments as in `look`."""
    if not reference.boxes:
        return NONE
    found = evaluate(student, reference.data, imgsz=imgsz, batch=batch, device=device, bar=bar)
    shares = {name: _share(found.per_class.get(name, 0.0)) for name in reference.boxes}
    return Agreement(_share(found.map50_95), _share(found.map50), shares)


def _labelled(record: dict[str, Any], found: np.ndarray) -> dict[str, Any]:
    """An image's record with the confident ones of the boxes found on it."""
    in_image = (found[:, 2:4] > 0).all(1)  # a box in the padding has no area there
    sure = found[(found[:, 4] >= CONFIDENCE) & in_image]
    return {**record, "cls": sure[:, 5:], "bboxes": sure[:, :4], "segments": []}


def _share(ap: float) -> float:
    return min(1.0, ap / PERFECT)
