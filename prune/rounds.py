"""Planning a deep cut in rounds: cut a part of it, mend what is left, and ask that what to cut next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune.cut.plan import Budget, PrunePlan, check_budget, cut_until, cutter
from prune.cut.surgery import apply
from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.graph.trace import trace
from prune.importance.base import Importance, Progress, Sensitivity
from prune.importance.score import FROM_OUTPUTS, score
from prune.recovery.repair import repair

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11; no version imports it when it runs


def plan_in_rounds(
    graph: ChannelGraph,
    name: str = "obs",
    *,
    images: Tensor | Iterable[Tensor] | None = None,
    rounds: int = 1,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **budget: Unpack[Budget],
) -> PrunePlan:
    """What `make_plan` makes of `score`, but a part of the way at a time, with `repair` in between.

    Costs are true of small steps from the network that they were measured on, and one that has lost most of its channels
    is another. The shares kept after each round form a geometric row. An importance that looks at weights alone
    (`bn_scale`, `l1`, `random`) takes one round, and so needs no images.

    Args:
        graph: Of the full model, from `prune.trace`.
        name: Of the importance, see `prune.score`.
        images: See `prune.score` and `prune.repair`.
        rounds: How many, 1 or more.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        seed: Of the first round; each has its own.
        progress: Called as progress(iterable, label, total).
        budget: As for `make_plan`; of the full model.

    Returns:
        The plan for the full model.

    Raises:
        PruneError: As `score` and `make_plan` do; no round at all.
    """
    if rounds < 1:
        raise PruneError(f"rounds={rounds} must be 1 or more")
    check_budget(graph, **budget)  # before the work
    count = rounds if name in FROM_OUTPUTS else 1
    batches = images if images is None or isinstance(images, Tensor) else list(images)
    options: dict[str, Any] = {"sensitivity": sensitivity, "progress": progress}
    cut, goal = cutter(graph, score(graph, name, batches=batches, seed=seed, **options).fresh(), **budget)
    for done in range(1, count + 1):
        left = cut.total * (goal / cut.total) ** (done / count) if done < count else goal
        plan = cut_until(cut, left, progress)
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
