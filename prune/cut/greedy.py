"""The greedy loop: what is cheapest per unit saved goes first, until the budget is met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from prune.cut.budget import Budget, Change, LayerChange
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph, Layer
from prune.importance.base import Importance

WINDOW = 0.01  # a budget is met from below within this fraction of it, if the rounding of widths allows it
ROUNDING = 1e-9  # channels: 20 * (1 - 0.95) is a little more than the one that it should be


class Step(NamedTuple):
    """A bundle's next allowed width: what it costs, what it saves, how many channels each group loses."""

    cost: float
    saved: float
    channels: int


class Use(NamedTuple):
    """A layer that has a group's channels, and how often it has each as input and as output."""

    layer: Layer
    inputs: int
    outputs: int


class Cutter:
    """A cut in progress. A step takes one bundle to its next allowed width.

    Args:
        graph: What is cut.
        scores: What its channels cost; told of every removal.
        budget: What a cut must save.
        round_to, protect, max_ratio: As in `prune.make_plan`.

    Attributes:
        kept: Channel ids that are left.
        steps: Per group, the number of channels that widths are a multiple of.
        left: Of the budget's resource.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Importance,
        budget: Budget,
        round_to: int,
        protect: Sequence[str],
        max_ratio: float,
    ) -> None:
        self.graph, self.scores, self.budget = graph, scores, budget
        self.kept: set[int] = set(graph.group_of)
        self.left = budget.total
        self.alive = [torch.ones(len(g.channels), dtype=torch.bool) for g in graph.groups]
        self.width = [len(g.channels) for g in graph.groups]
        self.counts = {layer.name: (len(layer.inputs), len(layer.outputs)) for layer in graph.layers}
        self.uses = [_uses(graph, g.channels[0]) for g in graph.groups]  # all of a group are used alike
        self.steps = [_step(uses, round_to) for uses in self.uses]
        self.infinite = [self._infinite(i) for i in range(len(graph.groups))]
        self.limit = [self._narrowest(i, math.ceil(w * (1 - max_ratio) - ROUNDING)) for i, w in enumerate(self.width)]
        self.floor = [max(limit, self._narrowest(i, self.infinite[i])) for i, limit in enumerate(self.limit)]
        scaled = [norm.channels for norm in graph.norms if norm.affine]
        self.norms = [sum(channels.count(g.channels[0]) for channels in scaled) for g in graph.groups]
        scaling = [parameter.channels for parameter in graph.parameters]
        self.parameters = [sum(channels.count(g.channels[0]) for channels in scaling) for g in graph.groups]
        self.products = [sum(p.flops * p.channels.count(g.channels[0]) for p in graph.products) for g in graph.groups]
        self.bundles = [bundle for bundle in graph.bundles if not any(self._protected(i, protect) for i in bundle)]
        self.neighbours = self._neighbours()

    def _infinite(self, index: int) -> int:
        """How many channels of a group have an infinite cost: they stay."""
        costs = self.scores.cost(index)
        if costs.isnan().any():
            name = self.graph.groups[index].name
            raise PruneError(f"the cost of channels of '{name}' is NaN: look for NaN in the images and in the weights")
        return int(costs.isinf().sum())

    def _narrowest(self, index: int, least: int) -> int:
        """The width of a group that may not have fewer than `least` channels, and is never emptied."""
        step = self.steps[index]
        return min(self.width[index], math.ceil(max(1, least) / step) * step)

    def _protected(self, index: int, patterns: Sequence[str]) -> bool:
        names = [layer.name for layer in self.graph.producers[index]]
        return any(matches(name, pattern) for name in names for pattern in patterns)

    def _neighbours(self) -> list[set[int]]:
        """Per group, the bundles whose next step changes when the group shrinks: those that share a layer with it."""
        by_layer: dict[str, set[int]] = {}
        for b, bundle in enumerate(self.bundles):
            for use in (use for i in bundle for use in self.uses[i]):
                by_layer.setdefault(use.layer.name, set()).add(b)
        return [set().union(*(by_layer.get(use.layer.name, set()) for use in uses)) for uses in self.uses]

    def _next(self, bundle: tuple[int, ...]) -> Step | None:
        """The bundle's next step; None if it may not lose any channel."""
        width = min(self.width[i] for i in bundle)
        step = math.lcm(*(self.steps[i] for i in bundle))
        count = width % step or min(step, width)
        if any(self.width[i] - count < self.floor[i] for i in bundle):
            return None
        # The cheapest channels of each group, as if the others had not yet made up for them.
        cost = sum(torch.topk(self._costs(i), count, largest=False).values.sum().item() for i in bundle)
        return Step(cost, self.budget.saved(self._change(dict.fromkeys(bundle, count))), count)

    def _change(self, lost: Mapping[int, int]) -> Change:
        """What losing channels does: group -> how many."""
        changes: dict[str, LayerChange] = {}
        for i, count in lost.items():
            for layer, inputs, outputs in self.uses[i]:
                before = self.counts[layer.name]
                after = changes[layer.name].after if layer.name in changes else before
                after = after[0] - inputs * count, after[1] - outputs * count
                changes[layer.name] = LayerChange(layer, before, after)
        norm_channels = sum(self.norms[i] * count for i, count in lost.items())
        parameter_channels = sum(self.parameters[i] * count for i, count in lost.items())
        product_flops = sum(self.products[i] * count for i, count in lost.items())
        return Change(list(changes.values()), sum(lost.values()), norm_channels, parameter_channels, product_flops)

    def _costs(self, index: int) -> torch.Tensor:
        return self.scores.cost(index).masked_fill(~self.alive[index], torch.inf)

    def least(self, floor: Sequence[int] | None = None) -> float:
        """What is left when every bundle is as narrow as it may become; `floor`: of each group, if not `self.floor`."""
        floor = floor or self.floor
        lost: dict[int, int] = {}
        for bundle in self.bundles:
            narrowest = max(floor[i] for i in bundle)  # of equal widths, the widest floor stops all
            lost |= {i: max(0, self.width[i] - narrowest) for i in bundle}
        return self.left - self.budget.saved(self._change(lost))

    def what_is_infinite(self) -> str:
        """The channels that stay for their infinite cost, and why it is infinite."""
        groups = [i for bundle in self.bundles for i in bundle if self.infinite[i]]
        first, more = self.graph.groups[groups[0]].name, len(groups) - 1
        of = f"'{first}'" + (f" and {more} other group{'s' * (more > 1)}" if more else "")
        count, total = sum(self.infinite[i] for i in groups), sum(self.width)
        return f"{count} of {total} channels, those of {of}, have an infinite cost and stay: {self.scores.infinite}"

    def cut_until(self, goal: float) -> Iterator[int]:
        """Cut until no more than `goal` is left; yields each percent of the way."""
        percent = 0
        steps: dict[int, Step] = {}
        stale = set(range(len(self.bundles)))
        while self.left > goal:
            for b in stale:
                if step := self._next(self.bundles[b]):
                    steps[b] = step
                else:
                    steps.pop(b, None)
            if not steps:
                left = self.left / self.budget.total
                raise PruneError(f"nothing is left to cut, and {left:.3f} of the model is")
            best = _best(steps, self.left - goal, WINDOW * goal)
            stale = self._remove(self.bundles[best], steps[best].channels)
            way = int(100 * min(1.0, (self.budget.total - self.left) / (self.budget.total - goal)))
            yield from range(percent + 1, way + 1)
            percent = way

    def _remove(self, bundle: tuple[int, ...], count: int) -> set[int]:
        """Take the cheapest channels of each group of the bundle; the bundles whose next step changes."""
        stale: set[int] = set()
        change = self._change(dict.fromkeys(bundle, count))
        self.left -= self.budget.saved(change)
        self.counts |= {layer.name: after for layer, _, after in change.layers}
        for i in bundle:
            for _ in range(count):  # one at a time: each removal changes what the next one costs
                best = int(self._costs(i).argmin())
                self.scores.remove(i, best)
                self.alive[i][best] = False
                self.kept.discard(self.graph.groups[i].channels[best])
            self.width[i] -= count
            stale |= self.neighbours[i]
        return stale


def _best(steps: dict[int, Step], excess: float, window: float) -> int:
    """The cheapest step per unit saved; near the end, of those that do not overshoot the budget by more than `window`."""
    fitting = {b: step for b, step in steps.items() if step.saved <= excess + window}
    if not fitting:  # the rounding of widths forbids it: overshoot as little as possible
        return min(steps, key=lambda b: steps[b].saved)
    return min(fitting, key=lambda b: fitting[b].cost / max(fitting[b].saved, 1e-9))


def _uses(graph: ChannelGraph, channel: int) -> list[Use]:
    uses = [Use(layer, layer.inputs.count(channel), layer.outputs.count(channel)) for layer in graph.layers]
    return [use for use in uses if use.inputs or use.outputs]


def _step(uses: list[Use], round_to: int) -> int:
    """How many channels of a group make the widths of layers a multiple of `round_to`: a head, say, has many outputs."""
    alike = math.gcd(*(count for use in uses for count in (use.inputs, use.outputs) if count))
    return round_to // math.gcd(round_to, alike)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of `protect` names this module, or one that it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")
