"""Average precision as the original YOLOv5's val.py integrates it, where ultralytics has changed since.

Both interpolate the precision-recall curve at 101 recalls. From the last detection the original goes down in a straight
line to precision 0 at recall 1; ultralytics 8.4 falls to 0 at once, which gives a little less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RECALLS = np.linspace(0, 1, 101)
_EPS = 1e-16  # the original's; it keeps a recall of 1 at 1


def average_precision(hits: NDArray, confidence: NDArray, predicted: NDArray, labelled: NDArray) -> NDArray:
    """AP of every class that has labels.

    Args:
        hits: (detections, thresholds), whether a detection is matched to a label at each IoU threshold.
        confidence: (detections,).
        predicted: (detections,) class of each detection.
        labelled: (labels,) class of each label.

    Returns:
        (classes, thresholds), classes in ascending order.
    """
    order = np.argsort(-confidence)
    hits, predicted = hits[order], predicted[order]
    classes, counts = np.unique(labelled, return_counts=True)
    result = np.zeros((len(classes), hits.shape[1]))
    for row, (cls, count) in enumerate(zip(classes, counts, strict=True)):
        right = hits[predicted == cls].cumsum(0)
        if len(right):
            precision = right / np.arange(1, len(right) + 1)[:, None]
            recall = right / (count + _EPS)
            result[row] = [_area(r, p) for r, p in zip(recall.T, precision.T, strict=True)]
    return result


def _area(recall: NDArray, precision: NDArray) -> float:
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([1.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    height = np.interp(_RECALLS, recall, envelope)
    return float(((height[1:] + height[:-1]) / 2 * np.diff(_RECALLS)).sum())
