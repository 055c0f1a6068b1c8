"""ultralytics' heads that also work without NMS (YOLOv10, YOLO26): two branches of a Detect head on the same features.

`one2many` learns to see an object at many cells, and needs NMS; `one2one` learns to see it at one. `yolo predict`, `val` and
`export` take the former, or with `nms=False` the latter, so both are cut, repaired and taught. In training, features reach
`one2one` detached: its labels do not move what is before the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from distill.losses.context import Outputs
from distill.yolo.families import ultralytics_dfl as one_branch
from distill.yolo.families.family import Evaluation, Family
from distill.yolo.families.views import without_distributions
from distill.yolo.upstream import Detect, v10Detect

MANY, ONE = "one2many", "one2one"
SECOND = ("one2one_cv2", "one2one_cv3")  # the modules of the branch without NMS; cv2 and cv3 are those of the other


def owns(head: nn.Module) -> bool:
    """Whether a last layer is this head, with both branches: fusing drops one of them."""
    return type(head) in (Detect, v10Detect) and None not in (getattr(head, each, None) for each in ("cv2", *SECOND))


def outputs(head: Any, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode: `one2many`, and `one2one` beside it."""
    many, one = (one_branch.outputs(head, raw[name]) for name in (MANY, ONE))
    return replace(many, raw=raw, beside=(replace(one, raw=raw, neck=many.neck),))


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The loss of ultralytics on labels, both branches in one sum.

    Their weights move from `one2many` to `one2one` as the training loop calls `update` of the model's `criterion`.
    """
    return one_branch.label_terms(model, outputs, batch)


def through(head: Any, features: Sequence[Tensor]) -> dict[str, Any]:
    """What both branches make of features, each with its gradient to them."""
    return {
        MANY: head.forward_head(list(features), **head.one2many),
        ONE: head.forward_head(list(features), **head.one2one),
    }


def sensitivity(head: Any, raw: Any) -> Tensor:
    """Noise on both branches, drawn by itself for each, so that squared gradients add up."""
    return one_branch.sensitivity(head, raw[MANY]) + one_branch.sensitivity(head, raw[ONE])


def without_nms(head: Any, raw: Any) -> Tensor:
    """What `yolo val nms=False` measures: (B, k, 6), x1 y1 x2 y2 in input pixels, score and class of the best k anchors.

    Args:
        head: in eval mode.
        raw: what it gave beside its boxes.
    """
    head.end2end = True
    try:
        return head(list(raw[MANY]["feats"]))[0]
    finally:
        head.end2end = False


def reorder(head: Any, order: Sequence[int]) -> None:
    """Put the classes of both branches into another order: class i is what was class order[i]."""
    one_branch.reorder_classes((*head.cv3, *head.one2one_cv3), order)


END_TO_END = Family(
    title="ultralytics' YOLOv10 and YOLO26",
    owns=owns,
    outputs=outputs,
    label_terms=label_terms,
    sensitivity=sensitivity,
    entry=one_branch.ENTRY,  # all that read a level read the same channels of it
    gives=one_branch.gives,
    alike=one_branch.alike,
    by_cell=without_distributions,
    reorder=reorder,
    evaluation=Evaluation(without_nms=without_nms),
    second=SECOND,
    through=through,
)
