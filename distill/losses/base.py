"""What a loss is to a run: anything that turns a context into a scalar, or a `LossModule` if it has needs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.context import LossContext
from distill.losses.selection import ALL
from distill.losses.spec import ALWAYS, ORIGINAL, Ramp

# What a loss may say that it reads, as the context calls it. Any other word is a point of features: "neck" or a module's path.
OF_TASKS = ("masks", "keypoints", "angles")
PREDICTED = frozenset({"scores", "objectness", "boxes", "dist", *OF_TASKS})  # those of a head
READABLE = (*sorted(PREDICTED), "quality", "features", "targets", "images")


class Loss(Protocol):
    """A loss: any callable that takes the context of a batch and returns a scalar tensor, a mean per image.

    A function with its options bound is one, a plain `torch.nn.Module` is one (its parameters train beside the
    student), and nothing else of the object is ever called.

    An attribute `reads`, such as `("scores", "model.4")`, says what it reads: words of `READABLE`, and points of features
    that it takes whatever the recipe says. Without one it may read anything.
    """

    def __call__(self, ctx: LossContext, /) -> Tensor:
        """The value for one batch."""


@dataclass(frozen=True)
class Networks:
    """What `LossModule.setup` gets.

    Attributes:
        student: the network to train.
        teacher: the frozen original, in eval mode.
        channels: of each pair that `LossContext.features()` gives.
    """

    student: nn.Module = field(repr=False)
    teacher: nn.Module = field(repr=False)
    channels: tuple[int, ...]


class LossModule(nn.Module):
    """Base of a loss whose layers depend on the networks, or that cannot serve every network.

    A recipe makes it with its options, `MyLoss(**options)`. A run asks `supports` before it writes anything, calls
    `setup` once for each training, before an optimizer exists, and then the module with the context of each batch.
    """

    reads: Sequence[str] | None = None

    def supports(self, teacher: nn.Module) -> str | None:
        """Why the loss cannot serve this teacher or its pruned students, in words; None if it can."""
        return None

    def setup(self, networks: Networks) -> None:
        """Make the layers, anew at each call; leave both networks as they are."""

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(ctx)")


@dataclass(frozen=True)
class FromContext:
    """A function of tensors as a loss: `loss(ctx, **options)` takes the function's tensors out of the context.

    Attributes:
        function: takes tensors by position and its options by keyword only.
        inputs: yields the tensors, once or once per feature; the loss is the mean over them.
        reads: what these are, words of `READABLE`.
        needs: what it reads that not every head has, a key of `distill.losses.NEEDS`.
        narrow: (context, options) -> the context without the anchors that do not count.
        selects: the teacher's quality weighs its anchors, so it takes the option `anchors`: "all", or "kept" for those
            alone whose boxes the teacher's NMS keeps.
    """

    function: Callable[..., Tensor]
    inputs: Callable[[LossContext], Iterable[tuple[Any, ...]]]
    reads: tuple[str, ...]
    needs: str | None = None
    narrow: Callable[[LossContext, Mapping[str, Any]], LossContext] = lambda ctx, options: ctx
    selects: bool = False

    def __call__(self, ctx: LossContext, *, anchors: str = ALL, **options: Any) -> Tensor:
        """The value for one batch."""
        ctx = ctx if anchors == ALL else ctx.at_anchors(anchors)
        ctx = self.narrow(ctx, options)
        return torch.stack([self.function(*tensors, **options) for tensors in self.inputs(ctx)]).mean()


@dataclass(frozen=True)
class WeightedLoss:
    """A loss as a run uses it: `weight_at(progress) * call(ctx)` joins the sum under `name`.

    `teacher` names the one that the context is of. `features` are its own points, in place of those of the recipe.
    """

    name: str
    weight: float
    call: Loss
    ramp: Ramp = ALWAYS
    teacher: str = ORIGINAL

    features: tuple[str, ...] | None = None

    def points(self, features: Sequence[str]) -> tuple[str, ...]:
        """Where it reads features, if the recipe names `features`: nowhere, if it says that it reads none."""
        reads = reads_of(self.call)
        given = features if self.features is None else self.features
        return tuple(dict.fromkeys([*(given if reads is None or "features" in reads else ()), *points_in(reads)]))

    @property
    def by_branch(self) -> bool:
        """Whether it may look at what a head predicts, and so at each branch of it; features are the same for all of them."""
        reads = reads_of(self.call)
        return reads is None or not PREDICTED.isdisjoint(reads)

    def weight_at(self, progress: float) -> float:
        """Its factor in the sum when a part `progress`, 0 to 1, of the training is over."""
        return self.weight * self.ramp.at(progress)


def reads_of(loss: Callable[..., Any]) -> tuple[str, ...] | None:
    """What a loss says that it reads; None if it says nothing.

    Raises:
        DistillError: its attribute `reads` is no list of words.
    """
    while isinstance(loss, partial):
        loss = loss.func
    reads = getattr(loss, "reads", None)
    if reads is None:
        return None
    words = (reads,) if isinstance(reads, str) else reads
    if not isinstance(words, (tuple, list, set, frozenset)) or not all(isinstance(word, str) for word in words):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise DistillError(f"loss '{name}': its `reads` is a list of words, as in ('scores', 'model.4'), not {reads!r}")
    return tuple(words)


def points_in(reads: Sequence[str] | None) -> tuple[str, ...]:
    """The points of features in what a loss says that it reads."""
    return tuple(word for word in reads or () if word not in READABLE)


def points_of(losses: Iterable[WeightedLoss], features: Sequence[str]) -> tuple[str, ...]:
    """Where the losses of a recipe read features. `features`: `distill.features`.

    Raises:
        DistillError: a loss that reads features has no point.
    """
    points: dict[str, None] = {}
    for loss in losses:
        own = loss.points(features)
        if not own and "features" in (reads_of(loss.call) or ()):
            mend = "distill.features is empty: give distill.features=[neck]"
            raise DistillError(f"loss '{loss.name}' reads features, and {mend}")
        points |= dict.fromkeys(own)
    return tuple(points)
