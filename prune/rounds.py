"""Planning a deep cut in rounds: cut a part of it, mend what is left, and ask that what to cut next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from prune.graph import ChannelGraph
from prune.importance import Importance, Progress, Sensitivity, StaticImportance
from prune.plan import PrunePlan, cutter, plan_from_channels
from prune.repair import repair
from prune.score import FROM_OUTPUTS, score
from prune.surgery import apply
from prune.trace import trace


def plan_in_rounds(
    graph: ChannelGraph,
    name: str = "obs",
    *,
    images: Tensor | Iterable[Tensor] | None = None,
    rounds: int = 1,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **budget: Any,
) -> PrunePlan:
    """What `make_plan` makes of `score`, but a part of the way at a time, with `repair` in between.

    Costs are true of small steps from the network that they were measured on, and one that has lost most of its channels
    is another. The shares kept after each round form a geometric row. An importance that looks at weights alone
    (`bn_scale`, `l1`, `random`) takes one round, and so needs no images.

    Args:
        graph: Of the full model, from `prune.trace`.
        name: Of the importance, see `prune.score`.
        images: See `prune.score` and `prune.repair`.
        rounds: How many.
        sensitivity: Raw outputs -> scalar, see `prune.statistics`.
        seed: Of the first round; each has its own.
        progress: Called as progress(iterable, label, total).
        budget: What `make_plan` takes: `flops`, `params` or `ratio`; `round_to`, `protect`, `max_ratio`.

    Returns:
        The plan for the full model.

    Raises:
        PruneError: As `score` and `make_plan` do.
    """
    costs = {group.index: torch.zeros(len(group.channels)) for group in graph.groups}
    cut, goal = cutter(graph, StaticImportance(costs), **budget)  # which says at once where the budget cannot be met
    count = rounds if name in FROM_OUTPUTS else 1
    batches = images if images is None or isinstance(images, Tensor) else list(images)
    options: dict[str, Any] = {"sensitivity": sensitivity, "progress": progress}
    cut.scores = score(graph, name, batches=batches, seed=seed, **options).fresh()
    for done in range(1, count + 1):
        percents = cut.until(cut.total * (goal / cut.total) ** (done / count) if done < count else goal)
        for _ in percents if progress is None else progress(percents, "plan", 100):
            pass
        plan = plan_from_channels(graph, cut.kept)
        if done < count:
            student = apply(graph.model, plan)
            assert batches is not None  # `score` asked for them
            repair(student, graph.model, plan, batches, seed=seed, **options)
            device = next(student.parameters()).device
            narrow = trace(student, torch.zeros(graph.input_shape, device=device))
            found = score(narrow, name, batches=batches, seed=seed + done, **options).fresh()
            cut.scores = _Carried(found, graph, narrow, plan)
    return plan


class _Carried:
    """The importance of a narrower network's channels, asked for by the full network's groups and places."""

    def __init__(self, scores: Importance, graph: ChannelGraph, narrow: ChannelGraph, plan: PrunePlan) -> None:
        self.scores = scores
        self.at: list[dict[int, tuple[int, int]]] = [{} for _ in graph.groups]  # per group: place -> (group, place)
        for layer in graph.layers:
            left = (layer.outputs[i] for i in plan.keep[layer.name])
            for full, channel in zip(left, narrow.layer(layer.name).outputs, strict=True):
                if full in graph.group_of and channel in narrow.group_of:
                    there = narrow.group_of[channel], narrow.place_of[channel]
                    self.at[graph.group_of[full]][graph.place_of[full]] = there
        self.width = [len(group.channels) for group in graph.groups]

    def cost(self, group: int) -> Tensor:
        """Infinite for what the narrow network has lost, or has to keep."""
        costs = torch.full((self.width[group],), torch.inf)
        for there in {found for found, _ in self.at[group].values()}:
            places = [place for place, (found, _) in self.at[group].items() if found == there]
            costs[places] = self.scores.cost(there).cpu()[[self.at[group][place][1] for place in places]]
        return costs

    def remove(self, group: int, channel: int) -> None:
        self.scores.remove(*self.at[group][channel])
