"""Fisher pruning: what the outputs feel of a gate on a channel, to first order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.grad import conv2d_weight

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import Progress, Sensitivity, StaticImportance, places_in
from prune.importance.statistics import UNREACHED, as_batches, backward, device_of, gaussian, seeded
from prune.program.interpret import Program
from prune.program.patches import Reading, reading
from prune.program.raw import raw_copy


def fisher(
    graph: ChannelGraph,
    batches: Tensor | Iterable[Tensor],
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StaticImportance:
    """Fisher pruning: the expected squared derivative of the outputs' distance by a gate on the channel.

    A gate on channel j inside a layer that reads it scales that layer's weights W_j, so its derivative is
    <W_j, dW_j>, one image at a time (Theis et al. 2018, arXiv:1801.05787; Liu et al. 2021, arXiv:2108.00708).
    """
    device = device_of(graph.model)
    images = [image for batch in as_batches(batches) for image in batch.split(1)]
    program = Program(raw_copy(graph.model), images[0].to(device, torch.float32))
    costs, gates = [torch.zeros(len(g.channels)) for g in graph.groups], _Gates(graph)
    with seeded(device, seed):
        for image in images if progress is None else progress(images, "importance", len(images)):
            gates.derivatives = [torch.zeros_like(cost) for cost in costs]
            backward(program, image.to(device, torch.float32), sensitivity or gaussian, gates.watch)
            for cost, derivative in zip(costs, gates.derivatives, strict=True):
                cost += derivative.square() / len(images)
    if not gates.reached:
        raise PruneError(UNREACHED)
    for name in gates.places.keys() - gates.reached:  # nobody knows what it is worth: what it reads stays
        for group, (where, _) in gates.places[name].items():
            costs[group][where] = torch.inf
    return StaticImportance(dict(enumerate(costs)))


class _Gates:
    """A gate on every channel, in all layers that read it.

    Attributes:
        places: Layer -> where the channels that it reads stand, see `places_in`.
        derivatives: Per group, of the outputs' distance by each channel's gate, (channels,).
        reached: Layers that a gradient other than zero came to.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.places = {
            layer.name: places_in(graph, layer.inputs) for layer in graph.layers if layer.kind != "depthwise"
        }
        self.derivatives: list[Tensor] = []
        self.reached: set[str] = set()

    def watch(self, program: Program, node: Node, values: dict[Node, Any]) -> Callable[[Tensor], None] | None:
        """See `prune.importance.statistics.backward`."""
        name = program.layer(node)
        if name is None or name not in self.places:
            return None
        x, weight = (values[used].detach() for used in node.all_input_nodes[:2])
        return partial(self._add, name, reading(node), x, weight)

    def _add(self, name: str, layer: Reading, x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        if gradient.any():
            self.reached.add(name)
        per_input = _per_input(layer, x, weight, gradient)
        for group, (where, columns) in self.places[name].items():
            self.derivatives[group].index_add_(0, where, per_input[columns])


def _per_input(layer: Reading, x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """<W_j, dW_j> of every input channel j of a layer, (C_in,)."""
    if layer.dim == -1:
        grad = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    else:
        left, right, top, bottom = layer.padding
        around = (top, left) if (left, top) == (right, bottom) else (0, 0)
        grad = conv2d_weight(
            x if any(around) else layer.padded(x),
            weight.shape,
            gradient,
            layer.stride,
            around,
            layer.dilation,
            layer.groups,
        )
    product = (weight * grad).unflatten(0, (layer.groups, -1)).sum(1)  # (groups, C_in / groups, ...)
    return (product.flatten(2).sum(2) if product.dim() > 2 else product).flatten().float().cpu()
