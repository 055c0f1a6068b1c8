"""What losing a channel costs, from the weights alone. One interface for every importance; see `obs` for the default.

An importance is an object with `cost(group)`, the cost of losing each channel of a group, and `remove(group, channel)`,
which tells it that a channel is gone. For the ones here nothing changes then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph

Sensitivity = Callable[[Any], Tensor]  # raw outputs -> scalar, see prune.importance.statistics
Progress = Callable[[Iterable, str, int], Iterable]


class Costs(Protocol):
    """What channels cost while some of them go."""

    def cost(self, group: int) -> Tensor:
        """Cost of losing each channel of the group now, shape (channels,); removed ones may hold anything."""
        ...

    def remove(self, group: int, channel: int) -> None:
        """Channel number `channel` of the group is gone: update the costs of the rest."""
        ...


class Importance(Costs, Protocol):
    """What `make_plan` needs of an importance."""

    def fresh(self) -> Importance:
        """A copy in which nothing has been removed yet."""
        ...


class StaticImportance:
    """Costs that do not depend on what else is cut."""

    def __init__(self, costs: Mapping[int, Tensor]) -> None:
        self._costs = dict(costs)

    def cost(self, group: int) -> Tensor:
        return self._costs[group]

    def remove(self, group: int, channel: int) -> None:
        """Nothing changes."""

    def fresh(self) -> StaticImportance:
        return self


def bn_scale(graph: ChannelGraph) -> StaticImportance:
    """Mean |gamma| of the BatchNorms on a channel (network slimming, Liu et al. 2017, arXiv:1708.06519)."""
    modules = dict(graph.model.named_modules())
    total, count = _zeros(graph), _zeros(graph)
    for norm in graph.norms:
        if norm.affine:
            _add(graph, total, norm.channels, modules[norm.name].weight.detach().abs())
            _add(graph, count, norm.channels, torch.ones(len(norm.channels)))
    if not any(c.any() for c in count):
        raise PruneError("bn_scale needs BatchNorm layers with scales, and this model has none: use l1 or obs")
    # A group with no BatchNorm has no scale to go by: it stays.
    return StaticImportance(
        {i: torch.where(c > 0, t / c.clamp(min=1), torch.inf) for i, (t, c) in enumerate(zip(total, count))}
    )


def l1(graph: ChannelGraph) -> StaticImportance:
    """L1 norm of the filters that produce a channel (Li et al. 2017, arXiv:1608.08710), relative to the layer's mean."""
    modules = dict(graph.model.named_modules())
    total = _zeros(graph)
    for layer in graph.layers:
        norms = modules[layer.name].weight.detach().abs().flatten(1).sum(1)
        _add(graph, total, layer.outputs, norms / norms.mean().clamp(min=1e-12))
    return StaticImportance(dict(enumerate(total)))


def random(graph: ChannelGraph, seed: int = 0) -> StaticImportance:
    """A seeded uniform draw per channel: the floor that every importance must beat."""
    generator = torch.Generator().manual_seed(seed)
    return StaticImportance({g.index: torch.rand(len(g.channels), generator=generator) for g in graph.groups})


def _zeros(graph: ChannelGraph) -> list[Tensor]:
    return [torch.zeros(len(g.channels)) for g in graph.groups]


def _add(graph: ChannelGraph, into: list[Tensor], channels: tuple[int, ...], values: Tensor) -> None:
    """Add a value per channel of a layer to the channels' places in their groups."""
    values = values.float().cpu()
    for group, (places, columns) in places_in(graph, channels).items():
        into[group].index_add_(0, places, values[columns])


def places_in(graph: ChannelGraph, channels: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
    """Group -> (place in the group, position in `channels`) of every channel listed that belongs to a group."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for position, channel in enumerate(channels):
        group = graph.group_of.get(channel)
        if group is not None:
            places, columns = found.setdefault(group, ([], []))
            places.append(graph.place_of[channel])
            columns.append(position)
    return {g: (torch.tensor(places), torch.tensor(columns)) for g, (places, columns) in found.items()}


def weighted_layers(graph: ChannelGraph) -> dict[str, nn.Module]:
    """Path -> module of the layers that mix channels: what statistics are collected for."""
    modules = dict(graph.model.named_modules())
    return {layer.name: modules[layer.name] for layer in graph.layers if layer.kind != "depthwise"}
