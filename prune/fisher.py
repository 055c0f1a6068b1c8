"""Fisher pruning: what the outputs feel of a gate on a channel, to first order."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from prune.graph import ChannelGraph
from prune.importance import Progress, Sensitivity, StaticImportance, places_in, weighted_layers
from prune.statistics import as_batches, gaussian, gradients


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
    gates: dict[int, list[Tensor]] = {}  # image -> per group, the derivative by each channel's gate
    costs = [torch.zeros(len(g.channels)) for g in graph.groups]
    places = {layer.name: places_in(graph, layer.inputs) for layer in graph.layers}

    def visit(index: int, name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        weight = module.weight.detach()  # type: ignore[union-attr, operator]
        if isinstance(module, nn.Linear):
            grad = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        else:
            grad = conv2d_weight(
                x,
                weight.shape,
                gradient,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,  # type: ignore[arg-type]
            )
        product = weight * grad
        per_input = product.unflatten(0, (getattr(module, "groups", 1), -1)).sum(1)  # (groups, C_in / groups, ...)
        per_input = per_input.flatten(2).sum(2) if per_input.dim() > 2 else per_input
        gate = gates.setdefault(index, [torch.zeros_like(c) for c in costs])
        for group, (where, columns) in places[name].items():
            gate[group].index_add_(0, where, per_input.flatten().float().cpu()[columns])

    singles = [image for batch in as_batches(batches) for image in batch.split(1)]
    gradients(
        graph.model, weighted_layers(graph), singles, sensitivity or gaussian, visit, seed, progress, "importance"
    )
    for gate in gates.values():
        for cost, derivative in zip(costs, gate, strict=True):
            cost += derivative.square() / len(gates)
    return StaticImportance(dict(enumerate(costs)))
