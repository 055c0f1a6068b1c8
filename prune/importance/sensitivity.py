"""How much the outputs feel each layer, channel by channel and position by position."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prune.errors import PruneError
from prune.importance.base import Progress, Sensitivity
from prune.importance.statistics import backward, seeded
from prune.program.interpret import Program
from prune.program.patches import capped, reading, sample_positions

POSITIONS = 8192  # sampled per batch, of each call of a layer


@dataclass
class Felt:
    """What a pass forward and back over the images has found.

    Attributes:
        channels: Layer -> squared gradient of each output channel, (C_out,), summed over positions and calls, mean over
            images. A layer is missing where no gradient reaches it, or only zeros, as behind a rounding.
        weights: (batch, number of the node that calls a layer) -> weights of its sampled positions: squared gradient,
            summed over channels, scaled to mean 1 over all positions of all calls of the layer in the batch, and capped.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def feel(
    program: Program,
    layers: Collection[str],
    batches: list[Tensor],
    sensitivity: Sensitivity,
    seed: int = 0,
    progress: Progress | None = None,
    label: str = "sensitivity",
) -> Felt:
    """Run every batch forward and back. The random state of the caller is left as it was.

    Args:
        program: Of a raw copy, at the shape of any of the batches.
        layers: Paths of the layers that are asked for.
        batches: Images, on any device.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        seed: Of the noise and of the sampled positions.
        progress: Called as progress(batches, label, total).
        label: What is being done.

    Raises:
        PruneError: A gradient is not finite.
    """
    found = Felt()
    device = next(program.model.parameters()).device
    with seeded(device, seed):
        for index, batch in enumerate(batches if progress is None else progress(batches, label, len(batches))):
            squares: dict[str, dict[int, list[Tensor]]] = {}  # layer -> call -> per pass, of every position

            def watch(part: Program, node: Node, _: dict[Node, Any], squares: dict = squares) -> Any:
                name = part.layer(node)
                if name is None or name not in layers:
                    return None
                dim, calls = reading(node).dim, squares.setdefault(name, {})
                return lambda gradient: look(name, dim, calls.setdefault(part.number[node], []), gradient)

            def look(name: str, dim: int, into: list[Tensor], gradient: Tensor) -> None:
                squared = gradient.float().square()
                over = [d for d in range(squared.dim()) if d != dim % squared.dim()]
                channels = squared.sum(over).cpu()
                found.channels[name] = found.channels[name] + channels if name in found.channels else channels
                into.append(squared.sum(dim).flatten())

            backward(program, batch.to(device, torch.float32), sensitivity, watch)
            for calls in squares.values():
                each = {number: torch.cat(parts) for number, parts in calls.items()}
                if each:
                    weights = capped(torch.cat(list(each.values()))).split([len(w) for w in each.values()])
                    for number, weight in zip(each, weights, strict=True):
                        positions = sample_positions(len(weight), POSITIONS, seed + index)
                        found.weights[index, number] = weight[positions.to(weight.device)]
    images = sum(map(len, batches))
    found.channels = {name: channels / images for name, channels in found.channels.items() if channels.any()}
    for name, channels in found.channels.items():
        if not channels.isfinite().all():
            raise PruneError(f"the gradient at '{name}' is not finite: look for NaN in the images and in the weights")
    return found
