"""Network slimming: train with an L1 penalty on the BatchNorm scales, so that channels give themselves up.

Liu et al. 2017, arXiv:1708.06519. Scales of channels that can only be cut together are penalised together, by the L2 norm
over them (group lasso, Yuan & Lin 2006): pushing one summand of a residual to zero alone would win nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import places_in

NEAR_ZERO = 1e-2  # a scale this small passes on a hundredth of a normalised channel


class Penalty:
    """`penalty(model, progress)` is the term to add to the loss.

    Args:
        graph: Of the model that is trained, or of one with its structure.
        strength: Factor of the sum of scales at the start. It falls linearly to a tenth at the end, so that the channels
            that are left recover.

    Raises:
        PruneError: The model has no BatchNorm with scales.
    """

    def __init__(self, graph: ChannelGraph, strength: float) -> None:
        self.graph, self.strength = graph, strength
        if not any(norm.affine for norm in graph.norms):
            raise PruneError("sparsify needs BatchNorm layers with scales, and this model has none")

    def __call__(self, model: nn.Module, progress: float = 0.0) -> Tensor:
        """A scalar: strength times the sum of coupled scales. `progress` is 0 at the start of training and 1 at its end."""
        total = sum(scale.sum() for scale in coupled_scales(self.graph, model))
        return self.strength * (1 - 0.9 * progress) * total  # type: ignore[return-value]


def coupled_scales(graph: ChannelGraph, model: nn.Module) -> list[Tensor]:
    """Per group, the L2 norm of each channel's BatchNorm scales, (channels,); 0 if it has no BatchNorm."""
    modules: dict[str, Any] = dict(model.named_modules())
    device = next(model.parameters()).device
    squares = [torch.zeros(len(group.channels), device=device) for group in graph.groups]
    for norm in (norm for norm in graph.norms if norm.affine):
        square = modules[norm.name].weight.float().square()
        for group, (places, columns) in places_in(graph, norm.channels).items():
            squares[group] = squares[group].index_add(0, places.to(device), square[columns.to(device)])
    return [(square + 1e-12).sqrt() for square in squares]  # the root's slope at 0 is infinite


def near_zero(graph: ChannelGraph, model: nn.Module) -> dict[str, int]:
    """How many prunable channels have scales (`channels`), and of how many they are `near_zero`."""
    scaled = {channel for norm in graph.norms if norm.affine for channel in norm.channels}
    with torch.no_grad():
        pairs = zip(graph.groups, coupled_scales(graph, model), strict=True)
    scales = torch.cat([scale.cpu()[[channel in scaled for channel in group.channels]] for group, scale in pairs])
    return {"channels": len(scales), "near_zero": int((scales < NEAR_ZERO).sum())}
