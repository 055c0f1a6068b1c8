"""What a cut must save: FLOPs, parameters or channels. Another resource is one more entry of `BUDGETS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prune.graph.graph import ChannelGraph, Layer


class LayerChange(NamedTuple):
    """A layer, and its numbers of inputs and outputs before and after a step."""

    layer: Layer
    before: tuple[int, int]
    after: tuple[int, int]


class Change(NamedTuple):
    """One step of a cut.

    Attributes:
        layers: Those that lose channels.
        channels: How many go.
        norm_channels: How many with a BatchNorm's scale.
        parameter_channels: How many with a value of a parameter.
        product_flops: What products of heads take less.
    """

    layers: list[LayerChange]
    channels: int
    norm_channels: int
    parameter_channels: int = 0
    product_flops: int = 0


@dataclass(frozen=True)
class Budget:
    """A resource that layers, channels and BatchNorms take.

    Attributes:
        total: What the full model takes.
        layer: (layer, number of inputs, number of outputs) -> what the layer takes.
        channel: What a channel takes by itself.
        norm: What a BatchNorm with a scale takes for a channel.
        parameter: What a parameter takes for a channel.
        product: What a FLOP of a product of heads takes.
    """

    total: float
    layer: Callable[[Layer, int, int], float] = lambda layer, inputs, outputs: 0
    channel: int = 0
    norm: int = 0
    parameter: int = 0
    product: int = 0

    def saved(self, change: Change) -> float:
        """How much a step saves."""
        layers = sum(self.layer(layer, *before) - self.layer(layer, *after) for layer, before, after in change.layers)
        layers += self.parameter * change.parameter_channels + self.product * change.product_flops
        return layers + self.channel * change.channels + self.norm * change.norm_channels


# FLOPs are those at the size that the graph was traced at; parameters are the whole model's.
BUDGETS: Mapping[str, Callable[[ChannelGraph], Budget]] = {
    "flops": lambda graph: Budget(graph.flops(), Layer.flops, product=1),
    "params": lambda graph: Budget(sum(p.numel() for p in graph.model.parameters()), Layer.params, norm=2, parameter=1),
    "ratio": lambda graph: Budget(len(graph.group_of), channel=1),
}
