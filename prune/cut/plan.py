"""Costs and a budget -> a PrunePlan: which channels every layer keeps, as plain data."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from prune.cut.greedy import Cutter, matches
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import Importance, Progress, StaticImportance
from prune.program.owners import stores_width

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11; no version imports it when it runs


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
        parts: Module path -> new width of each part of a chunk or split in its forward, of modules that store it as `c`.
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
            indices = {key: {k: tuple(map(index, v)) for k, v in data[key].items()} for key in ("keep", "keep_inputs")}
            parts = {owner: index(width) for owner, width in data["parts"].items()}
            return PrunePlan(
                **{**data, **indices, "parts": parts, "groups": tuple(Width(**width) for width in data["groups"])}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruneError(f"not a prune plan: {error}") from error


class Budget(TypedDict, total=False):
    """What may be left, and what a cut must keep to. The defaults are those of `cutter`.

    Attributes:
        flops: FLOPs to keep, as a fraction of the model's, in (0, 1).
        params: Parameters to keep, as a fraction, in (0, 1).
        ratio: Pruning ratio: the fraction of the prunable channels to cut, in (0, 1). Exactly one of the three.
        round_to: Widths are multiples of this; 1 for none. Default 8.
        protect: Patterns (`model.0*`), or one, of layers whose output channels all stay; each must name a module of the
            model. Default none.
        max_ratio: No group loses more than this fraction of its channels, in (0, 1). Default 0.95.
    """

    flops: float | None
    params: float | None
    ratio: float | None
    round_to: int
    protect: Sequence[str] | str
    max_ratio: float


def make_plan(
    graph: ChannelGraph, scores: Importance, *, progress: Progress | None = None, **budget: Unpack[Budget]
) -> PrunePlan:
    """Cut the channels that cost least per FLOP (or parameter, or channel) saved, until the budget is met.

    Widths end on multiples of `round_to` where the group had at least that many channels: channels leave a group in
    steps that reach the next multiple. No layer is ever emptied.

    Args:
        graph: From `prune.trace`.
        scores: From `prune.score`; left as it was.
        progress: Called as progress(iterable, label, total), with a hundred items.
        budget: See `Budget`: one of `flops`, `params` and `ratio`, and what the cut must keep to.

    Raises:
        PruneError: The budget or a limit is out of range, a pattern of `protect` names nothing, or the budget cannot be
            met within `protect`, `max_ratio` and `round_to`.
    """
    cut, goal = cutter(graph, scores.fresh(), **budget)
    return cut_until(cut, goal, progress)


def check_budget(graph: ChannelGraph, **budget: Unpack[Budget]) -> None:
    """Raise what `make_plan` would raise for these arguments, without an importance: before hours of other work."""
    costs = {group.index: torch.zeros(len(group.channels)) for group in graph.groups}
    cutter(graph, StaticImportance(costs), **budget)


def keep_all(graph: ChannelGraph) -> PrunePlan:
    """The plan that cuts nothing."""
    return plan_from_channels(graph, graph.group_of)


def plan_from_channels(graph: ChannelGraph, kept: Iterable[int]) -> PrunePlan:
    """The plan that keeps the given channel ids of `graph` (frozen ones always stay)."""
    kept = graph.staying.union(kept)

    def indices(channels: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(channels) if c in kept)

    keep = {layer.name: indices(layer.outputs) for layer in graph.layers}
    keep |= {norm.name: indices(norm.channels) for norm in graph.norms}
    keep_inputs = {layer.name: indices(layer.inputs) for layer in graph.layers}
    modules = dict(graph.model.named_modules())
    stored = [split for split in graph.splits if stores_width(modules[split.owner], len(split.parts[0]))]
    parts = {split.owner: len(indices(split.parts[0])) for split in stored}
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


def cut_until(cut: Cutter, goal: float, progress: Progress | None) -> PrunePlan:
    """Go on cutting until no more than `goal` is left; the plan of what is kept then."""
    percents = cut.until(goal)
    for _ in percents if progress is None else progress(percents, "plan", 100):
        pass
    return plan_from_channels(cut.graph, cut.kept)


def cutter(
    graph: ChannelGraph,
    scores: Importance,
    flops: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    round_to: int = 8,
    protect: Sequence[str] | str = (),
    max_ratio: float = 0.95,
) -> tuple[Cutter, float]:
    """The greedy loop, ready to go, and what it may leave; every argument checked."""
    given = {k: v for k, v in (("flops", flops), ("params", params), ("ratio", ratio)) if v is not None}
    if len(given) != 1:
        raise PruneError(f"give exactly one budget of flops, params or ratio, not {len(given)}")
    ((unit, value),) = given.items()
    if not 0 < value < 1:
        raise PruneError(f"{unit}={value:g} is no budget: it must be between 0 and 1")
    if round_to < 1:
        raise PruneError(f"round_to={round_to} must be 1 or more")
    if not 0 < max_ratio < 1:  # written so that NaN fails
        raise PruneError(f"max_ratio={max_ratio:g} must be above 0 and below 1: the most of a layer that may go")
    patterns = (protect,) if isinstance(protect, str) else tuple(protect)
    _check_patterns(graph, patterns)
    cut = Cutter(graph, scores, unit, round_to, patterns, max_ratio)
    budget = cut.total * (1 - value if unit == "ratio" else value)
    least = cut.least()  # what is infinitely dear stays too
    if least > budget:
        raise PruneError(
            f"{unit}={value:g} cannot be met: {least / cut.total:.3f} of the model is left when every layer is as narrow "
            f"as protect, max_ratio={max_ratio:g} and round_to={round_to} allow"
        )
    return cut, budget


def _check_patterns(graph: ChannelGraph, patterns: Sequence[str]) -> None:
    """Raise where one names no layer, or none but BatchNorms: what was to be protected would be cut."""
    modules = {name: module for name, module in graph.model.named_modules() if name}
    for pattern in patterns:
        named = [module for name, module in modules.items() if matches(name, pattern)]
        if named and not all(isinstance(module, _BatchNorm) for module in named):
            continue
        close = difflib.get_close_matches(pattern, list(modules), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"its layers are named like '{graph.layers[0].name}'"
        if named:
            hint = "name the convolution before that BatchNorm"
        raise PruneError(f"protect='{pattern}' matches no layer of {type(graph.model).__name__}: {hint}")
