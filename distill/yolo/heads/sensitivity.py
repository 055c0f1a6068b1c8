"""How much a YOLO's outputs feel a change, without labels: the scalar that `prune.score` and `prune.repair` back-propagate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from distill.yolo.heads.families import head_of


def sensitivity_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """The sensitivity that belongs to a detector's head, as a function of its raw outputs."""
    return partial(head_of(model).sensitivity, cast(Any, model).model[-1])
