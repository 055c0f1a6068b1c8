"""Costs and a budget -> a PrunePlan: which channels every layer keeps, as plain data."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from prune.cut.budget import BUDGETS
from prune.cut.greedy import Cutter, matches
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import Importance, StaticImportance
from prune.importance.statistics import Progress, no_progress
from prune.keywords import public

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11; no version imports it when it runs

_LOG = logging.getLogger(__name__)


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
        keep: Module path -> kept output channels (ascending), for every layer and BatchNorm that changes, and
            path of a parameter with a value for each channel -> kept values.
        keep_inputs: Module path -> kept input channels, for every layer that changes.
        parts: Module path -> new width of each part of a chunk or split in its forward, if the module stores that width.
        groups: Width of every group before and after.
        flops_before, flops_after: FLOPs per image of the traced layers, two per multiply-add.
        params_before, params_after: Parameters of the whole model.
        numbers: Path of a whole number that a module stores (`model.10.attn.num_heads`) -> its value after the cut.
    """

    keep: Mapping[str, tuple[int, ...]]
    keep_inputs: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, int]
    groups: tuple[Width, ...]
    flops_before: int
    flops_after: int
    params_before: int
    params_after: int
    numbers: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """What is left, in a line."""
        flops, params = self.flops_after / self.flops_before, self.params_after / self.params_before
        before, after = sum(group.before for group in self.groups), sum(group.after for group in self.groups)
        return (
            f"{self.flops_after / 1e9:.2f} of {self.flops_before / 1e9:.2f} GFLOPs ({flops:.1%}), "
            f"{self.params_after / 1e6:.2f} of {self.params_before / 1e6:.2f} M parameters ({params:.1%}), "
            f"{after} of {before} channels"
        )

    def __repr__(self) -> str:
        return f"PrunePlan({self.describe()})"

    def __str__(self) -> str:
        """The channels of every group before and after, and what is left."""
        rows = [("channels of", "before", "after"), *((g.name, str(g.before), str(g.after)) for g in self.groups)]
        width = max(len(name) for name, *_ in rows)
        return "\n".join([*(f"{n:<{width}}  {b:>6}  {a:>6}" for n, b, a in rows), self.describe()])

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and integers."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """JSON text that `from_json` reads."""
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
            numbers = {path: index(value) for path, value in data.get("numbers", {}).items()}
            groups = tuple(Width(**width) for width in data["groups"])
            return PrunePlan(**{**data, **indices, "parts": parts, "groups": groups, "numbers": numbers})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruneError(f"not a prune plan: {error}") from error


class CutOptions(TypedDict, total=False):
    """How much to cut, and within which limits. Exactly one of the first three. Defaults are those of `make_cutter`.

    Attributes:
        flops: FLOPs to keep, as a fraction of the model's, in (0, 1).
        params: Parameters to keep, as a fraction, in (0, 1).
        ratio: Pruning ratio: the fraction of the prunable channels to cut, in (0, 1).
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


@public(more=CutOptions.__annotations__)
def make_plan(
    graph: ChannelGraph, scores: Importance, *, progress: Progress | None = None, **options: Unpack[CutOptions]
) -> PrunePlan:
    """Cut the channels that cost least per FLOP (or parameter, or channel) saved, until the budget is met.

    Widths end on multiples of `round_to` if the group had at least that many channels: channels leave a group in steps
    that reach the next multiple. No layer is ever emptied.

    Args:
        graph: From `prune.trace`.
        scores: From `prune.score`; left as it was.
        progress: Called as progress(iterable, label, total, unit), with a hundred items.
        options: See `CutOptions`: one of `flops`, `params` and `ratio`, and the limits of the cut.

    Raises:
        PruneError: The budget or a limit is out of range, a pattern of `protect` names nothing, or the budget cannot be
            met within `protect`, `max_ratio` and `round_to`.
    """
    cutter, goal = make_cutter(graph, scores.fresh(), **options)
    return cut_until(cutter, goal, progress)


@public(more=CutOptions.__annotations__)
def check_budget(graph: ChannelGraph, **options: Unpack[CutOptions]) -> None:
    """Raise what `make_plan` would raise for these options, without an importance: before hours of other work."""
    make_cutter(graph, StaticImportance([torch.zeros(len(group.channels)) for group in graph.groups]), **options)


@public()
def keep_all(graph: ChannelGraph) -> PrunePlan:
    """The plan that cuts nothing."""
    return plan_from_channels(graph, graph.group_of)


def plan_from_channels(graph: ChannelGraph, kept: Collection[int]) -> PrunePlan:
    """The plan that keeps these channel ids of `graph`; frozen ones always stay."""
    kept = graph.staying.union(kept)

    def indices(channels: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(channels) if c in kept)

    total = sum(p.numel() for p in graph.model.parameters())
    return PrunePlan(
        keep={layer.name: indices(layer.outputs) for layer in graph.layers}
        | {norm.name: indices(norm.channels) for norm in graph.norms}
        | {parameter.name: indices(parameter.channels) for parameter in graph.parameters},
        keep_inputs={layer.name: indices(layer.inputs) for layer in graph.layers},
        parts={split.owner: len(indices(split.parts[0])) for split in graph.splits if split.stored},
        groups=tuple(Width(g.name, len(g.channels), len(indices(g.channels))) for g in graph.groups),
        flops_before=graph.flops(),
        flops_after=graph.flops(kept),
        params_before=total,
        params_after=total - graph.params() + graph.params(kept),
        numbers={f"{number.path}.{number.name}": number.left(kept) for number in graph.numbers},
    )


def cut_until(cutter: Cutter, goal: float, progress: Progress | None) -> PrunePlan:
    """Go on cutting until no more than `goal` is left; the plan of what is kept then."""
    for _ in (progress or no_progress)(cutter.cut_until(goal), "plan", 100, "%"):
        pass
    plan = plan_from_channels(cutter.graph, cutter.kept)
    widths = ", ".join(f"{group.name} {group.before} -> {group.after}" for group in plan.groups)
    _LOG.debug("%.4g of %.4g FLOPs are left: %s", plan.flops_after, plan.flops_before, widths)
    return plan


def make_cutter(
    graph: ChannelGraph,
    scores: Importance,
    *,
    flops: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    round_to: int = 8,
    protect: Sequence[str] | str = (),
    max_ratio: float = 0.95,
) -> tuple[Cutter, float]:
    """The greedy loop, ready to go, and how much it may leave; every option is checked, as `make_plan` says."""
    asked = {k: v for k, v in (("flops", flops), ("params", params), ("ratio", ratio)) if v is not None}
    if len(asked) != 1:
        raise PruneError(f"give exactly one budget of flops, params or ratio, not {len(asked)}")
    ((unit, value),) = asked.items()
    if not 0 < value < 1:
        raise PruneError(f"{unit}={value:g} is no budget: it must be between 0 and 1")
    if round_to < 1:
        raise PruneError(f"round_to={round_to} must be 1 or more")
    if not 0 < max_ratio < 1:  # written so that NaN fails
        raise PruneError(f"max_ratio={max_ratio:g} must be above 0 and below 1: the most of a layer that may go")
    patterns = (protect,) if isinstance(protect, str) else tuple(protect)
    _check_patterns(graph, patterns)
    budget = BUDGETS[unit](graph)
    goal = budget.total * (1 - value if unit == "ratio" else value)
    cutter = Cutter(graph, scores, budget, round_to, patterns, max_ratio)
    asking, least, limited = f"{unit}={value:g}", cutter.least(), cutter.least(cutter.limit)
    if limited > goal:
        raise PruneError(
            f"{asking} cannot be met: {limited / budget.total:.3f} of the model is left when every layer is as "
            f"narrow as protect, max_ratio={max_ratio:g} and round_to={round_to} allow"
        )
    if least > goal:
        raise PruneError(
            f"{asking} cannot be met: {least / budget.total:.3f} of the model is left, for {cutter.what_is_infinite()}"
        )
    return cutter, goal


def _check_patterns(graph: ChannelGraph, patterns: Sequence[str]) -> None:
    """Raise if one names no layer, or none but BatchNorms: what was to be protected would be cut."""
    modules = {name: module for name, module in graph.model.named_modules() if name}
    for pattern in patterns:
        named = [module for name, module in modules.items() if matches(name, pattern)]
        if not all(isinstance(module, _BatchNorm) for module in named):
            continue
        close = difflib.get_close_matches(pattern, list(modules), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"its layers are named like '{graph.layers[0].name}'"
        if named:
            hint = "name the convolution before that BatchNorm"
        raise PruneError(f"protect='{pattern}' matches no layer of {type(graph.model).__name__}: {hint}")
