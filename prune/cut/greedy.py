"""The greedy loop: what is cheapest per unit saved goes first, until the budget is met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph, Layer
from prune.importance.base import Costs

WINDOW = 0.01  # a budget is met from below within this fraction of it, where the rounding of widths allows it
ROUNDING = 1e-9  # channels: 20 * (1 - 0.95) is a little more than the one that it should be


class Cutter:
    """A cut in progress. A step takes one bundle to its next allowed width.

    Args:
        graph: What is cut.
        scores: What its channels cost; learns of every removal.
        unit: What a budget counts: "flops", "params" or, for channels, "ratio".
        round_to, protect, max_ratio: As in `make_plan`.

    Attributes:
        kept: Channel ids that are left.
        total, now: Of the unit, in the whole model and in what is left.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Costs,
        unit: str,
        round_to: int,
        protect: Sequence[str],
        max_ratio: float,
    ) -> None:
        self.scores: Costs = scores
        self.graph, self.unit, self.round_to = graph, unit, round_to
        self.kept: set[int] = set(graph.group_of)
        self.alive = [torch.ones(len(g.channels), dtype=torch.bool) for g in graph.groups]
        self.width = [len(g.channels) for g in graph.groups]
        self.counts = {layer.name: [len(layer.inputs), len(layer.outputs)] for layer in graph.layers}
        self.floor = [self._floor(i, max_ratio) for i in range(len(graph.groups))]
        self.touch = [_uses(graph, g.channels[0]) for g in graph.groups]  # all of a group are used alike
        prunable = [all(not self._protected(i, protect) for i in bundle) for bundle in graph.bundles]
        self.bundles = [bundle for bundle, free in zip(graph.bundles, prunable, strict=True) if free]
        self.total = float({"flops": graph.flops, "params": self._all_params, "ratio": self._channels}[unit]())
        self.now = self.total
        self.neighbours = self._neighbours()

    def _all_params(self) -> int:
        return sum(p.numel() for p in self.graph.model.parameters())

    def _channels(self) -> int:
        return len(self.graph.group_of)

    def _floor(self, index: int, max_ratio: float) -> int:
        """As narrow as a group may become. A channel of infinite cost stays."""
        width, costs = self.width[index], self.scores.cost(index)
        if costs.isnan().any():
            name = self.graph.groups[index].name
            raise PruneError(f"the cost of channels of '{name}' is NaN: look for NaN in the images and in the weights")
        least = max(1, math.ceil(width * (1 - max_ratio) - ROUNDING), int(costs.isinf().sum()))
        return min(width, math.ceil(least / self.round_to) * self.round_to)

    def _protected(self, index: int, patterns: Sequence[str]) -> bool:
        names = [layer.name for layer in self.graph.producers[index]]
        return any(matches(name, pattern) for name in names for pattern in patterns)

    def _neighbours(self) -> list[set[int]]:
        """Per group, the bundles whose next step changes when the group shrinks: those that share a layer with it."""
        by_layer: dict[str, set[int]] = {}
        for b, bundle in enumerate(self.bundles):
            for i in bundle:
                for layer, _, _ in self.touch[i]:
                    by_layer.setdefault(layer.name, set()).add(b)
        return [set().union(*(by_layer.get(layer.name, set()) for layer, _, _ in uses)) for uses in self.touch]

    def _step(self, bundle: tuple[int, ...]) -> int:
        """How many channels each group of the bundle loses next; 0 when it may not lose any."""
        width = min(self.width[i] for i in bundle)
        step = width % self.round_to or min(self.round_to, width)
        return step if all(self.width[i] - step >= self.floor[i] for i in bundle) else 0

    def _saved(self, bundle: tuple[int, ...], step: int) -> float:
        """What losing `step` channels in each group of the bundle saves."""
        if self.unit == "ratio":
            return step * len(bundle)
        change: dict[str, tuple[Layer, int, int]] = {}
        for i in bundle:
            for layer, n_in, n_out in self.touch[i]:
                _, a, b = change.get(layer.name, (layer, 0, 0))
                change[layer.name] = (layer, a + n_in * step, b + n_out * step)
        count = Layer.flops if self.unit == "flops" else Layer.params
        saved = 0
        for layer, a, b in change.values():
            n_in, n_out = self.counts[layer.name]
            saved += count(layer, n_in, n_out) - count(layer, n_in - a, n_out - b)
        if self.unit == "params":
            saved += sum(2 * step * self._norms(i) for i in bundle)
        return saved

    def _norms(self, index: int) -> int:
        first = self.graph.groups[index].channels[0]
        return sum(norm.channels.count(first) for norm in self.graph.norms if norm.affine)

    def _costs(self, index: int) -> torch.Tensor:
        return self.scores.cost(index).masked_fill(~self.alive[index], torch.inf)

    def _cost(self, bundle: tuple[int, ...], step: int) -> float:
        """Cost of the `step` cheapest channels of each group: what is known before the others have made up for them."""
        return sum(torch.topk(self._costs(i), step, largest=False).values.sum().item() for i in bundle)

    def least(self) -> float:
        """What is left when every bundle is as narrow as it may become."""
        kept = set(self.graph.group_of)
        for bundle in self.bundles:
            narrowest = max(self.floor[i] for i in bundle)  # of equal widths, the widest floor stops all
            for i in bundle:
                kept -= set(self.graph.groups[i].channels[narrowest:])
        if self.unit == "ratio":
            return float(len(kept))
        kept |= self.graph.staying
        if self.unit == "flops":
            return float(self.graph.flops(kept))
        return float(self._all_params() - self.graph.params() + self.graph.params(kept))

    def until(self, budget: float) -> Iterator[int]:
        """Cut until no more than `budget` is left; yields each percent of the way."""
        percent = 0
        steps: dict[int, tuple[float, float, int]] = {}
        stale = set(range(len(self.bundles)))
        while self.now > budget:
            for b in stale:
                bundle = self.bundles[b]
                if step := self._step(bundle):
                    steps[b] = (self._cost(bundle, step), self._saved(bundle, step), step)
                else:
                    steps.pop(b, None)
            if not steps:
                raise PruneError(f"nothing is left to cut, and {self.now / self.total:.3f} of the model is")
            best = self._best(steps, self.now - budget, WINDOW * budget)
            stale = self._remove(self.bundles[best], steps[best][2])
            way = int(100 * min(1.0, (self.total - self.now) / (self.total - budget)))
            yield from range(percent + 1, way + 1)
            percent = way

    def _best(self, steps: dict[int, tuple[float, float, int]], excess: float, window: float) -> int:
        """The cheapest step per unit saved; near the end, of those that do not overshoot the budget by more than 1%."""
        fitting = {b: s for b, s in steps.items() if s[1] <= excess + window}
        if not fitting:  # the rounding of widths forbids it: overshoot as little as possible
            return min(steps, key=lambda b: steps[b][1])
        return min(fitting, key=lambda b: fitting[b][0] / max(fitting[b][1], 1e-9))

    def _remove(self, bundle: tuple[int, ...], count: int) -> set[int]:
        stale: set[int] = set()
        saved = self._saved(bundle, count)
        for i in bundle:
            for _ in range(count):  # one at a time: each removal changes what the next one costs
                best = int(self._costs(i).argmin())
                self.scores.remove(i, best)
                self.alive[i][best] = False
                self.kept.discard(self.graph.groups[i].channels[best])
            self.width[i] -= count
            for layer, n_in, n_out in self.touch[i]:
                self.counts[layer.name][0] -= n_in * count
                self.counts[layer.name][1] -= n_out * count
            stale |= self.neighbours[i]
        self.now -= saved
        return stale


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of `protect` names this module, or one that it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _uses(graph: ChannelGraph, channel: int) -> list[tuple[Layer, int, int]]:
    """The layers that a channel enters or leaves, with how often it stands in their inputs and outputs."""
    counted = ((layer, layer.inputs.count(channel), layer.outputs.count(channel)) for layer in graph.layers)
    return [(layer, n_in, n_out) for layer, n_in, n_out in counted if n_in or n_out]
