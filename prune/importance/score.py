"""Importance by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance import base as importance
from prune.importance.base import Importance, Progress, Sensitivity
from prune.importance.fisher import fisher
from prune.importance.obs import obs

FROM_WEIGHTS: dict[str, Callable[..., Importance]] = {
    "bn_scale": importance.bn_scale,
    "l1": importance.l1,
    "random": importance.random,
}
FROM_OUTPUTS: dict[str, Callable[..., Importance]] = {"obs": obs, "fisher": fisher}
IMPORTANCES = (*FROM_OUTPUTS, *FROM_WEIGHTS)


def score(
    graph: ChannelGraph,
    name: str = "obs",
    *,
    batches: Tensor | Iterable[Tensor] | None = None,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Importance:
    """What losing each channel costs.

    Args:
        graph: From `prune.trace`.
        name: `obs` (structured Optimal Brain Surgeon), `fisher`, `bn_scale`, `l1` or `random`.
        batches: Images, a (N, C, H, W) tensor or an iterable of such batches. `obs` and `fisher` need them; no labels.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`; by default every output counts the same.
        seed: Of the noise, the sampled positions and `random`.
        progress: Called as progress(iterable, label, total); returns what to iterate over.

    Raises:
        PruneError: Unknown name, images are missing, or weights that are not float32.
    """
    if name in FROM_OUTPUTS:
        if batches is None:
            raise PruneError(f"importance '{name}' needs images: pass batches=")
        return FROM_OUTPUTS[name](graph, batches, sensitivity, seed, progress)
    if name not in FROM_WEIGHTS:
        raise PruneError(f"unknown importance '{name}': choose from {', '.join(IMPORTANCES)}")
    options: dict[str, Any] = {"seed": seed} if name == "random" else {}
    return FROM_WEIGHTS[name](graph, **options)
