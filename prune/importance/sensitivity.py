"""Sensitivity of the outputs to each layer, per channel and per position."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prune.errors import PruneError
from prune.importance.statistics import Progress, Sensitivity, backward_with_taps, no_progress, seeded
from prune.program.geometry import capped, geometry_of, sample_positions
from prune.program.interpret import Program

POSITIONS = 8192  # sampled per batch, of each call of a layer

Weights = dict[tuple[int, int], Tensor]  # (batch, number of the node) -> (sampled positions,)


@dataclass
class OutputSensitivity:
    """Squared gradients of the outputs by the outputs of each layer.

    Attributes:
        channels: Layer -> squared gradient of each output channel, (C_out,), summed over positions and calls, mean over
            images. A layer is missing if no gradient reaches it, or only zeros, as behind a rounding.
        weights: (batch, number of the node that calls a layer) -> weights of its sampled positions: squared gradient,
            summed over channels, scaled to mean 1 over all positions of all calls of the layer in the batch, and capped.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


def measure_sensitivity(
    program: Program,
    layers: Collection[str],
    batches: list[Tensor],
    sensitivity: Sensitivity,
    seed: int = 0,
    progress: Progress = no_progress,
    label: str = "sensitivity",
) -> OutputSensitivity:
    """Run every batch forward and back. The random state of the caller is left as it was.

    Args:
        program: Of a raw copy, at the shape of any of the batches.
        layers: Paths of the layers to measure.
        batches: Images (N, C, H, W), on any device.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        seed: Of the noise and of the sampled positions.
        progress: Called as progress(batches, label, total).
        label: What is being done.

    Raises:
        PruneError: A gradient is not finite.
    """
    result = OutputSensitivity()
    device = next(program.model.parameters()).device
    with seeded(device, seed):
        for index, batch in enumerate(progress(batches, label, len(batches))):
            squares: dict[str, dict[int, list[Tensor]]] = {}  # layer -> call -> per pass, of every position

            def tap(part: Program, node: Node, _: dict[Node, Any], squares: dict = squares) -> Any:
                name = part.layer(node)
                if name is None or name not in layers:
                    return None
                dim, calls = geometry_of(node).dim, squares.setdefault(name, {})
                return lambda gradient: add(name, dim, calls.setdefault(part.number[node], []), gradient)

            def add(name: str, dim: int, call: list[Tensor], gradient: Tensor) -> None:
                squared = gradient.float().square()
                channels = squared.sum([d for d in range(squared.dim()) if d != dim % squared.dim()]).cpu()
                result.channels[name] = result.channels[name] + channels if name in result.channels else channels
                call.append(squared.sum(dim).flatten())

            backward_with_taps(program, batch.to(device, torch.float32), sensitivity, tap)
            for calls in filter(None, squares.values()):
                each = {number: torch.cat(parts) for number, parts in calls.items()}
                weights = capped(torch.cat(list(each.values()))).split([len(w) for w in each.values()])
                for number, weight in zip(each, weights, strict=True):
                    positions = sample_positions(len(weight), POSITIONS, seed + index)
                    result.weights[index, number] = weight[positions.to(weight.device)]
    images = sum(map(len, batches))
    result.channels = {name: channels / images for name, channels in result.channels.items() if channels.any()}
    for name, channels in result.channels.items():
        if not channels.isfinite().all():
            raise PruneError(f"the gradient at '{name}' is not finite: look for NaN in the images and in the weights")
    return result
