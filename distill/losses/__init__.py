"""Losses that hold a student to its teacher: those shipped here, and a user's own by `file.py:name`.

A loss is a function f(ctx, **options) -> scalar tensor, or a torch Module made with its options and called with ctx
(for a loss that learns something). `ctx` is a `LossContext`. A Module whose layers depend on the networks, or that
cannot serve every teacher, derives from `LossModule`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill.losses.registry import BUILTIN, NEEDS, LossRow, build, describe, fitting, resolve
from distill.losses.spec import LossSpec, Ramp

if TYPE_CHECKING:
    from distill.losses.base import Loss, LossModule, Networks, WeightedLoss
    from distill.losses.context import LossContext, Outputs

# Imported when first asked for: they need torch, and naming the losses of a recipe does not.
_LAZY = dict.fromkeys(("Loss", "LossModule", "Networks", "WeightedLoss"), "base") | dict.fromkeys(
    ("LossContext", "Outputs"), "context"
)

__all__ = [
    "BUILTIN",
    "NEEDS",
    "Loss",
    "LossContext",
    "LossModule",
    "LossRow",
    "LossSpec",
    "Networks",
    "Outputs",
    "Ramp",
    "WeightedLoss",
    "build",
    "describe",
    "fitting",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
