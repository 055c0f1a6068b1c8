"""Importance by name, or your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import Context, Importance, StaticImportance, bn_scale, l1, random
from prune.importance.fisher import fisher
from prune.importance.obs import obs
from prune.importance.statistics import Progress, Sensitivity, gaussian, no_progress
from prune.keywords import public

Scorer = Callable[[ChannelGraph, Context], Importance | Mapping[int, Tensor] | Sequence[Tensor]]

IMPORTANCES: Mapping[str, Scorer] = {"obs": obs, "fisher": fisher, "bn_scale": bn_scale, "l1": l1, "random": random}
FROM_WEIGHTS = ("bn_scale", "l1", "random")  # need no images, and no second look at a narrower network


@public()
def score(
    graph: ChannelGraph,
    importance: str | Scorer | Importance = "obs",
    *,
    batches: Tensor | Iterable[Tensor] | None = None,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Importance:
    """What losing each channel costs.

    Args:
        graph: From `prune.trace`.
        importance: `obs` (structured Optimal Brain Surgeon), `fisher`, `bn_scale`, `l1` or `random`; or your own: a
            function or class that is called as importance(graph, context), see `prune.importance.base`. It returns an
            `Importance`, or the costs per group. An `Importance` itself is returned as it is.
        batches: Images, a (N, C, H, W) tensor or an iterable of such batches. `obs` and `fisher` need them; no labels.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`; by default every output counts the same.
        seed: Of the noise, the sampled positions and `random`.
        progress: Called as progress(iterable, label, total, unit); returns what to iterate over.

    Raises:
        PruneError: Unknown name, images are missing, weights that are not float32, or costs that do not fit the groups.
    """
    if isinstance(importance, Importance):
        return importance
    name = importance if isinstance(importance, str) else getattr(importance, "__name__", type(importance).__name__)
    scorer = IMPORTANCES.get(importance) if isinstance(importance, str) else importance
    if scorer is None:
        raise PruneError(f"unknown importance '{name}': choose from {', '.join(IMPORTANCES)}")
    if not callable(scorer):
        raise PruneError(f"importance is a {name}: give a name, a function of (graph, context), or an Importance")
    costs = scorer(graph, Context(name, batches, sensitivity or gaussian, seed, progress or no_progress))
    return costs if isinstance(costs, Importance) else _checked(graph, name, costs)


def _checked(graph: ChannelGraph, name: str, costs: Any) -> StaticImportance:
    """Costs that a function returned, one for each channel of each group."""
    if not isinstance(costs, (Mapping, Sequence)):
        kind = type(costs).__name__
        raise PruneError(f"importance '{name}' returned a {kind}: return an Importance, or the costs of each group")
    per_group = costs if isinstance(costs, Mapping) else dict(enumerate(costs))
    for group in graph.groups:
        shape = getattr(per_group.get(group.index), "shape", None)
        if shape != (len(group.channels),):
            have = "nothing" if shape is None else f"a tensor of shape {tuple(shape)}"
            raise PruneError(
                f"importance '{name}' gave {have} for group {group.index} ('{group.name}'): give ({len(group.channels)},)"
            )
    return StaticImportance({group: cost.detach().float().cpu() for group, cost in per_group.items()})
