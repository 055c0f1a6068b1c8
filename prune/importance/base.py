"""What an importance is, and those that look at the weights alone. See `obs` for the default.

An importance of your own is a function, or a class, that is called with the graph and a `Context`. A function gives the
costs of each group's channels:

    def spread(graph, context):
        modules = dict(graph.model.named_modules())
        weights = {layer: modules[layer.name].weight.detach() for layer in graph.layers}
        return prune.per_group(graph, ((layer.outputs, w.flatten(1).std(1)) for layer, w in weights.items()))

    scores = prune.score(graph, spread)

Costs that change while channels go need a subclass of `Importance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph, Channels
from prune.importance.statistics import Progress, Sensitivity, as_batches
from prune.program.geometry import matrix_of


class Importance:
    """Costs of channels, while some of them go. Subclasses define `cost`, and the rest if a removal changes costs.

    Attributes:
        infinite: Why a channel has an infinite cost, and what to do about it, for messages.
    """

    infinite = "this importance asks for it"

    def cost(self, group: int) -> Tensor:
        """Cost of losing each channel of group number `group` now: (channels,), on the CPU.

        Infinite for a channel that has to stay; anything for a removed one.
        """
        raise NotImplementedError

    def remove(self, group: int, channel: int) -> None:
        """Channel number `channel` of the group is gone: update the costs of the rest."""

    def fresh(self) -> Importance:
        """A copy in which nothing has been removed yet. The object itself will do if `remove` changes nothing."""
        return self


class StaticImportance(Importance):
    """Costs that do not depend on what else is cut: group index -> (channels,)."""

    def __init__(self, costs: Mapping[int, Tensor] | Sequence[Tensor], infinite: str = Importance.infinite) -> None:
        self._costs, self.infinite = costs, infinite

    def __repr__(self) -> str:
        values = self._costs.values() if isinstance(self._costs, Mapping) else self._costs
        return f"{type(self).__name__}({len(self._costs)} groups, {sum(map(len, values)):,} channels)"

    def cost(self, group: int) -> Tensor:
        """See `Importance`."""
        return self._costs[group]


@dataclass(frozen=True)
class Context:
    """What an importance may look at beside the graph.

    Attributes:
        name: Of the importance, for messages.
        images: As given to `prune.score`.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        seed: Of all that is random.
        progress: Called as progress(iterable, label, total, unit); returns what to iterate over.
    """

    name: str
    images: Tensor | Iterable[Tensor] | None = field(repr=False)
    sensitivity: Sensitivity
    seed: int
    progress: Progress

    @cached_property
    def batches(self) -> list[Tensor]:
        """The images as batches (N, C, H, W), on any device; a PruneError if there are none."""
        if self.images is None:
            raise PruneError(f"importance '{self.name}' needs images: pass batches=")
        return as_batches(self.images)


def bn_scale(graph: ChannelGraph, _: Context) -> StaticImportance:
    """Mean |gamma| of the BatchNorms on a channel (network slimming, Liu et al. 2017, arXiv:1708.06519)."""
    modules: dict[str, Any] = dict(graph.model.named_modules())
    scales = {norm: modules[norm.name].weight.detach().abs() for norm in graph.norms if norm.affine}
    total = per_group(graph, ((norm.channels, scale) for norm, scale in scales.items()))
    count = per_group(graph, ((norm.channels, torch.ones(len(norm.channels))) for norm in scales))
    if not any(c.any() for c in count):
        raise PruneError("bn_scale needs BatchNorm layers with scales, and this model has none: use l1 or obs")
    # A group with no BatchNorm has no scale to go by: it stays.
    return StaticImportance(
        [torch.where(c > 0, t / c.clamp(min=1), torch.inf) for t, c in zip(total, count, strict=True)],
        "no BatchNorm with scales follows them, and bn_scale goes by nothing else (use l1 or obs)",
    )


def l1(graph: ChannelGraph, _: Context) -> StaticImportance:
    """L1 norm of the filters that produce a channel (Li et al. 2017, arXiv:1608.08710), relative to the layer's mean."""
    modules: dict[str, Any] = dict(graph.model.named_modules())
    norms = {layer: matrix_of(modules[layer.name]).abs().flatten(1).sum(1) for layer in graph.layers}
    relative = ((layer.outputs, norm / norm.mean().clamp(min=1e-12)) for layer, norm in norms.items())
    return StaticImportance(per_group(graph, relative))


def random(graph: ChannelGraph, context: Context) -> StaticImportance:
    """A seeded uniform draw per channel: the floor that every importance must beat."""
    generator = torch.Generator().manual_seed(context.seed)
    return StaticImportance({g.index: torch.rand(len(g.channels), generator=generator) for g in graph.groups})


def per_group(graph: ChannelGraph, values: Iterable[tuple[Channels, Tensor]]) -> list[Tensor]:
    """Values of layers' channels as costs of groups.

    Args:
        graph: From `prune.trace`.
        values: Pairs of a layer's `outputs` or `inputs` (or a BatchNorm's `channels`) and a value for each, (channels,).

    Raises:
        PruneError: There are more or fewer values than channels.

    Returns:
        Per group, the sum of all values that are given to each of its channels, float32 (channels,), on the CPU.
    """
    sums = [torch.zeros(len(group.channels)) for group in graph.groups]
    for channels, each in values:
        if len(each) != len(channels):  # the weight of a transposed convolution has its inputs first
            raise PruneError(f"{len(each)} values are given for {len(channels)} channels of a layer: give one for each")
        each = each.float().cpu()
        for group, (places, columns) in places_in(graph, channels).items():
            sums[group].index_add_(0, places, each[columns])
    return sums


def places_in(graph: ChannelGraph, channels: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
    """Group -> (place in the group, position in `channels`) of every channel listed that belongs to a group."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for position, channel in enumerate(channels):
        if channel in graph.group_of:
            pairs.setdefault(graph.group_of[channel], []).append((graph.place_of[channel], position))
    return {group: tuple(torch.tensor(pairs[group]).unbind(1)) for group in pairs}  # type: ignore[misc]
