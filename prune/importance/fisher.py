"""Fisher pruning: the outputs' sensitivity to a gate on a channel, to first order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.grad import conv2d_weight

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph
from prune.importance.base import Context, StaticImportance, per_group, places_in
from prune.importance.statistics import UNKNOWN, UNREACHED, backward_with_taps, device_of, seeded
from prune.program.geometry import LayerGeometry, as_convolution, geometry_of
from prune.program.interpret import Program
from prune.program.operators import operator_name
from prune.program.raw import raw_copy


def fisher(graph: ChannelGraph, context: Context) -> StaticImportance:
    """Fisher pruning: the expected squared derivative of the outputs' distance by a gate on the channel.

    A gate on channel j inside a layer that reads it scales that layer's weights W_j, so its derivative is
    <W_j, dW_j>, one image at a time (Theis et al. 2018, arXiv:1801.05787; Liu et al. 2021, arXiv:2108.00708).
    """
    images = [image for batch in context.batches for image in batch.split(1)]
    device = device_of(graph.model)
    program = Program(raw_copy(graph.model, graph.adapter), images[0].to(device, torch.float32), graph.adapter)
    places = {layer.name: places_in(graph, layer.inputs) for layer in graph.layers if layer.kind != "depthwise"}
    costs = per_group(graph, ())  # zeros
    derivatives = per_group(graph, ())  # of one image's distance, by each channel's gate
    reached: set[str] = set()  # layers that a gradient other than zero came to

    def tap(program: Program, node: Node, values: dict[Node, Any]) -> Callable[[Tensor], None] | None:
        name = program.layer(node)
        if name is None or name not in places:
            return None
        x, weight = (values[used].detach() for used in node.all_input_nodes[:2])
        layer = geometry_of(node)
        weight = as_convolution(weight, layer.groups) if operator_name(node) == "conv_transpose2d" else weight
        return partial(add, name, layer, x, weight)

    def add(name: str, layer: LayerGeometry, x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        if gradient.any():
            reached.add(name)
        per_input = _per_input(layer, x, weight, gradient)
        for group, (channels, columns) in places[name].items():
            derivatives[group].index_add_(0, channels, per_input[columns])

    with seeded(device, context.seed):
        for image in context.progress(images, "importance", len(images), "images"):
            backward_with_taps(program, image.to(device, torch.float32), context.sensitivity, tap)
            for cost, derivative in zip(costs, derivatives, strict=True):
                cost += derivative.square() / len(images)
                derivative.zero_()
    if not reached:
        raise PruneError(UNREACHED)
    unknown = [item for name in places.keys() - reached for item in places[name].items()]
    for group, (channels, _) in unknown:  # what a layer of unknown worth reads stays
        costs[group][channels] = torch.inf
    return StaticImportance(costs, UNKNOWN)


def _per_input(layer: LayerGeometry, x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """<W_j, dW_j> of every input channel j of a layer, (C_in,)."""
    if layer.dim == -1:
        grad = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    else:
        left, right, top, bottom = layer.padding
        even = (left, top) == (right, bottom) and min(left, top) >= 0 and layer.spacing == (1, 1)
        padding = (top, left) if even else (0, 0)
        x = x if any(padding) else layer.padded(x)
        grad = conv2d_weight(x, weight.shape, gradient, layer.stride, padding, layer.dilation, layer.groups)
    product = (weight * grad).unflatten(0, (layer.groups, -1)).sum(1)  # (groups, C_in / groups, ...)
    return (product.flatten(2).sum(2) if product.dim() > 2 else product).flatten().float().cpu()
