"""Losses that hold a student to its teacher, for recipes and for any training loop.

Every built-in loss is a function of tensors, a mean per image:

    from distill.losses import anchor_quality, box_iou, feature_pkd
    loss = box_iou(student_boxes, teacher_boxes, anchor_quality(teacher_scores)) + feature_pkd(student_map, teacher_map)

A recipe names losses, and a run calls each with a `LossContext`. Your own, `my_losses.py:my_kd`, is

- a function `my_kd(ctx, **options)` that returns a scalar tensor,
- a torch Module made with its options and called with ctx; its parameters train beside the student,
- or, if its layers depend on the networks or it cannot serve every teacher, a `LossModule`.

Its attribute `reads`, such as `("scores", "model.4")`, says what it reads, and at which modules it looks.
"""

# ruff: noqa: F401 - what users import from here
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill.losses.registry import BUILTIN, NEEDS, LossRow, build, describe, fitting, joined, resolve
from distill.losses.spec import LossSpec, Ramp

if TYPE_CHECKING:
    from distill.losses.angle import angle_sin
    from distill.losses.base import FromContext, Loss, LossModule, Networks, WeightedLoss
    from distill.losses.box import box_bckd, box_giou, box_iou, box_l1, dfl_kl
    from distill.losses.context import LossContext, Outputs, anchor_quality
    from distill.losses.feature import feature_at, feature_cwd, feature_fgd, feature_pkd
    from distill.losses.keypoint import keypoint_oks
    from distill.losses.logit import objectness_bce, score_bce, score_dist
    from distill.losses.mask import mask_bce
    from distill.losses.masked import FeatureMGD, feature_mgd
    from distill.losses.softmax import dist, dkd, kl, nkd

# These and the built-in losses are imported when first asked for: they need torch, and a recipe that names losses does not.
_LAZY = {
    "base": ("FromContext", "Loss", "LossModule", "Networks", "WeightedLoss"),
    "context": ("LossContext", "Outputs", "anchor_quality"),
    "masked": ("FeatureMGD",),
}


def __getattr__(name: str) -> Any:
    home = BUILTIN.get(name) or next((f"{__name__}.{module}" for module, names in _LAZY.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)
