"""Losses and teachers as a recipe names them: weights, options, and when in the training a loss counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

ORIGINAL = "original"  # the name of the teacher that is the network of `model`
FADES = ("none", "linear", "cosine")
# What stands beside a loss's options in a recipe and is none of them.
RESERVED = ("weight", "warmup", "until", "fade", "features")
# Columns that exist already: the sum, a penalty, and the terms of the labels, of either kind of head.
TAKEN = frozenset(
    "loss labels penalty box_loss cls_loss dfl_loss l1_loss seg_loss pose_loss kobj_loss angle_loss rle_loss sem_loss box obj cls epoch lr "  # noqa: SIM905
    "map50 map50_95 beside_map50 beside_map50_95".split()
)


def half_cosine(share: float) -> float:
    """Falls from 1 at share 0 to 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Ramp:
    """When in a training a loss counts, and with how much of its weight.

    It rises in a line from 0 over the share `warmup` and ends at the share `until`: at once, or falling from the end of
    the warm-up on, as `fade` says. `progress` is the share of the training that is done, 0 to 1.
    """

    warmup: float = 0.0  # shares of the training; below `until`
    until: float = 1.0
    fade: str = "none"  # one of FADES

    @property
    def lasts(self) -> bool:
        """Whether it goes on to the end of the training."""
        return self.until >= 1

    def over(self, progress: float) -> bool:
        """Whether the loss has ended."""
        return not self.lasts and progress >= self.until

    def at(self, progress: float) -> float:
        """The factor of the weight, 0 to 1."""
        if self.over(progress):
            return 0.0
        if progress < self.warmup:
            return progress / self.warmup
        share = min(1.0, (progress - self.warmup) / (self.until - self.warmup))
        if self.fade == "linear":
            return 1 - share
        return half_cosine(share) if self.fade == "cosine" else 1.0


ALWAYS = Ramp()


@dataclass(frozen=True)
class LossSpec:
    """One loss of a recipe.

    Attributes:
        name: a built-in name, `/absolute/file.py:function` or `package.module:function`.
        weight: its factor in the sum. A loss of weight 0 is left out when a recipe is read, but for those that would join by
            themselves: see `distill.losses.registry.joined`.
        options: the function's keyword arguments.
        ramp: when in the training it counts.
        features: where it reads features, in place of `distill.features`; None for those.
    """

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    ramp: Ramp = ALWAYS
    features: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The name without its file or module, as columns and messages show it."""
        return self.name.rpartition(":")[2]


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher of a recipe.

    Attributes:
        network: `original`, or the path of a checkpoint.
        weight: the factor of all its losses, above 0.
        losses: its own; None for those of `distill.losses`.
    """

    network: str
    weight: float = 1.0
    losses: tuple[LossSpec, ...] | None = None
