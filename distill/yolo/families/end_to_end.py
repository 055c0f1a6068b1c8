"""ultralytics' heads that also work without NMS (YOLOv10, YOLO26): two branches of a Detect head on the same features.

`one2many` learns to see an object at many cells, and needs NMS; `one2one` learns to see it at one. `yolo predict`, `val` and
`export` take the former, or with `nms=False` the latter, so both are cut, repaired and taught. In training, features reach
`one2one` detached: its labels do not move what is before the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from distill.losses.context import Outputs
from distill.yolo.families import ultralytics_dfl as one_branch
from distill.yolo.families.family import Evaluation, Family
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.upstream import Detect, v10Detect

MANY, ONE = "one2many", "one2one"
SECOND = ("one2one_cv2", "one2one_cv3")  # the modules of the branch without NMS; cv2 and cv3 are those of the other


def two_branches(single: Family, kinds: tuple[type[nn.Module], ...], title: str, second: tuple[str, ...]) -> Family:
    """The family of heads with two branches, each of which is read as the head of another family.

    Args:
        single: that family.
        kinds: the classes of the heads.
        title: of the new family.
        second: modules of such a head that make its second branch, and those that are used in training alone.
    """

    def owns(head: nn.Module) -> bool:  # with both branches: fusing drops one of them
        parts = (getattr(head, each, None) for each in ("cv2", *SECOND))
        return type(head) in kinds and None not in parts

    def outputs(head: Any, raw: Any) -> Outputs:
        many, one = (single.outputs(head, raw[name]) for name in (MANY, ONE))
        return replace(many, raw=raw, beside=(replace(one, raw=raw, neck=many.neck),))

    def sensitivity(head: Any, raw: Any) -> Tensor:  # drawn by itself for each branch, so that squared gradients add up
        return single.sensitivity(head, raw[MANY]) + single.sensitivity(head, raw[ONE])

    return replace(
        single,
        title=title,
        owns=owns,
        outputs=outputs,
        # ultralytics sums both branches. Their weights move from `one2many` to `one2one` as the training loop calls `update` of
        # the model's `criterion`.
        label_terms=one_branch.label_terms,
        sensitivity=sensitivity,
        reorder=reorder,
        second=second,
        through=through,
    )


def through(head: Any, features: Sequence[Tensor]) -> dict[str, Any]:
    """What both branches make of features, each with its gradient to them. Of a head for masks, the prototypes are left out."""
    return {
        MANY: head.forward_head(list(features), **head.one2many),
        ONE: head.forward_head(list(features), **head.one2one),
    }


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


END_TO_END = replace(
    two_branches(DFL, (Detect, v10Detect), "ultralytics' YOLOv10 and YOLO26", SECOND),
    evaluation=Evaluation(without_nms=without_nms),
)
