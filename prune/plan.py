"""Costs and a budget -> a PrunePlan: which channels every layer keeps, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from prune.errors import PruneError
from prune.graph import ChannelGraph, Layer
from prune.importance import Importance, Progress

WINDOW = 0.01  # a budget is met from below within this fraction of it, where the rounding of widths allows it


@dataclass(frozen=True)
class Width:
    """One group's channels before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class PrunePlan:
    """What to keep. Plain data: `to_json` and `from_json` lose nothing.

    Attributes:
        keep: Module path -> kept output channels (ascending), for every layer and BatchNorm that changes.
        keep_inputs: Module path -> kept input channels, for every layer that changes.
        parts: Module path -> new width of each part of a chunk or split in that module's forward.
        groups: Width of every group before and after.
        flops_before, flops_after: FLOPs per image of the traced layers, two per multiply-add.
        params_before, params_after: Parameters of the whole model.
    """

    keep: Mapping[str, tuple[int, ...]]
    keep_inputs: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, int]
    groups: tuple[Width, ...]
    flops_before: int
    flops_after: int
    params_before: int
    params_after: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and integers."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> PrunePlan:
        """The plan that `to_json` wrote.

        Raises:
            PruneError: The text is not a plan.
        """
        try:
            data = json.loads(text)
            indices = {key: {k: tuple(v) for k, v in data[key].items()} for key in ("keep", "keep_inputs")}
            return PrunePlan(**{**data, **indices, "groups": tuple(Width(**width) for width in data["groups"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruneError(f"not a prune plan: {error}") from error


def make_plan(
    graph: ChannelGraph,
    scores: Importance,
    *,
    flops: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    round_to: int = 8,
    protect: Sequence[str] = (),
    max_ratio: float = 0.95,
    progress: Progress | None = None,
) -> PrunePlan:
    """Cut the channels that cost least per FLOP (or parameter, or channel) saved, until the budget is met.

    Widths end on multiples of `round_to` where the group had at least that many channels: channels leave a group in
    steps that reach the next multiple. No layer is ever emptied.

    Args:
        graph: From `prune.trace`.
        scores: From `prune.score`; left as it was.
        flops: FLOPs to keep, as a fraction of the model's, in (0, 1).
        params: Parameters to keep, as a fraction, in (0, 1).
        ratio: Pruning ratio: the fraction of the prunable channels to cut, in (0, 1). Exactly one of the three.
        round_to: Widths are multiples of this; 1 for none.
        protect: Patterns (`model.0*`) of layers whose output channels all stay.
        max_ratio: No group loses more than this fraction of its channels.
        progress: Called as progress(iterable, label, total), with a hundred items.

    Raises:
        PruneError: The budget is out of range, or cannot be met within `protect`, `max_ratio` and `round_to`.
    """
    given = {k: v for k, v in (("flops", flops), ("params", params), ("ratio", ratio)) if v is not None}
    if len(given) != 1:
        raise PruneError(f"give exactly one budget of flops, params or ratio, not {len(given)}")
    ((name, value),) = given.items()
    if not 0 < value < 1:
        raise PruneError(f"{name}={value:g} is no budget: it must be between 0 and 1")
    if round_to < 1:
        raise PruneError(f"round_to={round_to} must be 1 or more")
    cut = _Cutter(graph, scores.fresh(), name, round_to, protect, max_ratio)
    percents = cut.until(cut.total * (1 - value if name == "ratio" else value), f"{name}={value:g}")
    for _ in percents if progress is None else progress(percents, "plan", 100):
        pass
    return plan_from_channels(graph, cut.kept)


def keep_all(graph: ChannelGraph) -> PrunePlan:
    """The plan that cuts nothing."""
    return plan_from_channels(graph, graph.group_of)


def plan_from_channels(graph: ChannelGraph, kept: Iterable[int]) -> PrunePlan:
    """The plan that keeps the given channel ids of `graph` (frozen ones always stay)."""
    kept = set(kept) | {c for layer in graph.layers for c in layer.inputs + layer.outputs if c not in graph.group_of}

    def indices(channels: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(channels) if c in kept)

    keep = {layer.name: indices(layer.outputs) for layer in graph.layers}
    keep |= {norm.name: indices(norm.channels) for norm in graph.norms}
    keep_inputs = {layer.name: indices(layer.inputs) for layer in graph.layers}
    parts = {split.owner: len(indices(split.parts[0])) for split in graph.splits}
    total = sum(p.numel() for p in graph.model.parameters())
    return PrunePlan(
        keep=keep,
        keep_inputs=keep_inputs,
        parts=parts,
        groups=tuple(Width(g.name, len(g.channels), len(indices(g.channels))) for g in graph.groups),
        flops_before=graph.flops(),
        flops_after=graph.flops(kept),
        params_before=total,
        params_after=total - graph.params() + graph.params(kept),
    )


class _Cutter:
    """The greedy loop. A step takes one bundle to its next allowed width; the cheapest step per unit saved goes first."""

    def __init__(self, graph, scores, unit, round_to, protect, max_ratio) -> None:
        self.graph, self.scores, self.unit, self.round_to = graph, scores, unit, round_to
        self.kept: set[int] = set(graph.group_of)
        self.alive = [torch.ones(len(g.channels), dtype=torch.bool) for g in graph.groups]
        self.width = [len(g.channels) for g in graph.groups]
        self.counts = {layer.name: [len(layer.inputs), len(layer.outputs)] for layer in graph.layers}
        self.floor = [self._floor(len(g.channels), max_ratio) for g in graph.groups]
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

    def _floor(self, width: int, max_ratio: float) -> int:
        least = max(1, math.ceil(width * (1 - max_ratio)))
        return min(width, math.ceil(least / self.round_to) * self.round_to)

    def _protected(self, index: int, patterns: Sequence[str]) -> bool:
        names = [layer.name for layer in self.graph.producers[index]]
        return any(fnmatchcase(name, p) or fnmatchcase(name, p + ".*") for name in names for p in patterns)

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

    def until(self, budget: float, asked: str) -> Iterator[int]:
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
                raise PruneError(
                    f"{asked} cannot be met: {self.now / self.total:.3f} of the model is left when every layer is as "
                    f"narrow as protect, max_ratio and round_to={self.round_to} allow"
                )
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


def _uses(graph: ChannelGraph, channel: int) -> list[tuple[Layer, int, int]]:
    """The layers that a channel enters or leaves, with how often it stands in their inputs and outputs."""
    counted = ((layer, layer.inputs.count(channel), layer.outputs.count(channel)) for layer in graph.layers)
    return [(layer, n_in, n_out) for layer, n_in, n_out in counted if n_in or n_out]
