"""Planning a deep cut in rounds: cut a part of the way, repair, measure the costs again, cut on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune.cut.plan import CutOptions, PrunePlan, check_budget, cut_until, make_cutter
from prune.cut.surgery import apply
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.graph.trace import trace
from prune.importance.base import Importance
from prune.importance.score import FROM_WEIGHTS, Scorer, score
from prune.importance.statistics import Progress, Sensitivity
from prune.keywords import public
from prune.recovery.repair import repair

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11; no version imports it when it runs


@public(more=CutOptions.__annotations__)
def plan_in_rounds(
    graph: ChannelGraph,
    importance: str | Scorer = "obs",
    *,
    images: Tensor | Iterable[Tensor] | None = None,
    rounds: int = 1,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[CutOptions],
) -> PrunePlan:
    """What `make_plan` makes of `score`, but a part of the way at a time, with `repair` in between.

    Costs are only valid near the network they were measured on, so a deep cut measures them again. The shares kept after
    each round form a geometric row. An importance that looks at weights alone (`bn_scale`, `l1`, `random`), and any
    without images, takes one round.

    Args:
        graph: Of the full model, from `prune.trace`.
        importance: As for `prune.score`.
        images: As `batches` of `prune.score`.
        rounds: How many, 1 or more.
        sensitivity: As for `prune.score`.
        seed: Of the first round; each has its own.
        progress: As for `prune.score`.
        options: As for `make_plan`; of the full model.

    Returns:
        The plan for the full model.

    Raises:
        PruneError: As `score` and `make_plan` do; fewer rounds than 1.
    """
    if rounds < 1:
        raise PruneError(f"rounds={rounds} must be 1 or more")
    check_budget(graph, **options)  # before the work
    batches = images if images is None or isinstance(images, Tensor) else list(images)
    once = batches is None or importance in FROM_WEIGHTS or isinstance(importance, Importance)
    shared: dict[str, Any] = {"sensitivity": sensitivity, "progress": progress}
    scores = score(graph, importance, batches=batches, seed=seed, **shared)
    cutter, goal = make_cutter(graph, scores.fresh(), **options)
    total = cutter.budget.total
    for finished in range(1, 1 if once else rounds):
        plan = cut_until(cutter, total * (goal / total) ** (finished / rounds), progress)
        student = apply(graph.model, plan, adapter=graph.adapter)
        assert batches is not None
        repair(student, graph.model, plan, batches, seed=seed, adapter=graph.adapter, **shared)
        example = torch.zeros(graph.input_shape, device=next(student.parameters()).device)
        narrow = trace(student, example, adapter=graph.adapter)
        scores = score(narrow, importance, batches=batches, seed=seed + finished, **shared)
        cutter.scores = MappedScores(scores.fresh(), graph, narrow, plan)
    return cut_until(cutter, goal, progress)


class MappedScores(Importance):
    """The importance of a narrower network's channels, under the full network's groups and places."""

    def __init__(self, scores: Importance, graph: ChannelGraph, narrow: ChannelGraph, plan: PrunePlan) -> None:
        self.scores = scores
        # Per group of the full network: place -> (group, place) in the narrow one.
        self.mapped: list[dict[int, tuple[int, int]]] = [{} for _ in graph.groups]
        for layer in graph.layers:
            left = (layer.outputs[i] for i in plan.keep[layer.name])
            for full, channel in zip(left, narrow.layer(layer.name).outputs, strict=True):
                if full in graph.group_of and channel in narrow.group_of:
                    target = narrow.group_of[channel], narrow.place_of[channel]
                    self.mapped[graph.group_of[full]][graph.place_of[full]] = target
        self.width = [len(group.channels) for group in graph.groups]

    def cost(self, group: int) -> Tensor:
        """Infinite for what the narrow network has lost, or has to keep."""
        costs = torch.full((self.width[group],), torch.inf)
        mapped = self.mapped[group]
        for narrow in {target for target, _ in mapped.values()}:
            places = [place for place, (target, _) in mapped.items() if target == narrow]
            costs[places] = self.scores.cost(narrow).cpu()[[mapped[place][1] for place in places]]
        return costs

    def remove(self, group: int, channel: int) -> None:
        """See `Importance`."""
        self.scores.remove(*self.mapped[group][channel])
