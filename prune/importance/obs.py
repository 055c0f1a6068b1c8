"""The default importance: structured Optimal Brain Surgeon.

OBS asks what is left of the error after the other channels have made up for the one that goes (Hassibi & Stork 1992;
for blocks of transformers ZipLM, arXiv:2302.04089, and OSSCAR, arXiv:2403.12983).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph, Layer
from prune.importance.base import Context, Importance, places_in
from prune.importance.covariance import CovarianceBlock
from prune.importance.statistics import POSITIONS, UNKNOWN, UNREACHED, Weights, device_of, measure_sensitivity, passes
from prune.program.geometry import geometry_of, input_rows, matrix_of, sample_positions
from prune.program.interpret import Program
from prune.program.raw import raw_copy

MAX_COLUMNS = 2304  # side of the largest covariance block: 256 channels of a 3x3 convolution, 21 MB


@dataclass
class LayerStatistics:
    """A layer's covariance blocks, and the sensitivity of its output channels.

    Attributes:
        layer: The layer.
        blocks: Of type CovarianceBlock; DowndatedInverse while a plan is made.
        sensitivity: (C_out,) see `OutputSensitivity.channels`; None if no gradient reaches the layer.
        places: Group -> (block, places in the group, columns in the block).
    """

    layer: Layer
    blocks: list[Any]
    sensitivity: Tensor | None = None
    places: dict[int, list[tuple[int, Tensor, Tensor]]] = field(default_factory=dict)

    def working(self) -> LayerStatistics:
        """A copy to make a plan with. The inverses are made here."""
        sensitivity = None if self.sensitivity is None else self.sensitivity.clone()
        return LayerStatistics(self.layer, [block.inverted() for block in self.blocks], sensitivity, self.places)


class OBS(Importance):
    """Structured Optimal Brain Surgeon on label-free sensitivities.

    For a layer that reads channel j, with H the weighted covariance of its inputs, W its weights and F_o the sensitivity
    of its output o, losing j costs sum_o F_o W_oj ((H^-1)_jj)^-1 W_oj^T, on the k*k columns of j; summed over every layer
    that reads j. `remove` applies the block Schur update to H^-1 and W of the readers, and stops counting the row of j in
    its producers.

    Memory: float32 n*n per layer with n = C_in * kh * kw, block-diagonal over the input channels past n = 2304. The
    statistics are kept, and a plan in progress takes as much again.
    """

    infinite = UNKNOWN

    def __init__(self, graph: ChannelGraph, statistics: dict[str, LayerStatistics], working: bool = False) -> None:
        self.graph, self.statistics, self.working = graph, statistics, working
        self.alive = [torch.ones(len(g.channels), dtype=torch.bool) for g in graph.groups]
        self.cache: dict[tuple[str, int], Tensor] = {}

    def __repr__(self) -> str:
        return f"OBS({len(self.graph.groups)} groups, {len(self.graph.group_of):,} channels)"

    def fresh(self) -> OBS:
        """A working copy."""
        return OBS(self.graph, {name: s.working() for name, s in self.statistics.items()}, working=True)

    def cost(self, group: int) -> Tensor:
        """See `Importance`."""
        if not self.working:
            return self.fresh().cost(group)
        total = torch.zeros(len(self.graph.groups[group].channels))
        for layer in self.graph.readers[group]:
            key = (layer.name, group)
            if key not in self.cache:
                self.cache[key] = self._cost(self.statistics[layer.name], group)
            total += self.cache[key]
        return total

    def _cost(self, statistics: LayerStatistics, group: int) -> Tensor:
        if statistics.sensitivity is None:  # its worth is unknown: what it reads stays
            return torch.full((len(self.alive[group]),), torch.inf)
        cost = torch.zeros(len(self.alive[group]))
        for block, places, columns in statistics.places[group]:
            left = self.alive[group][places]
            cost.index_add_(0, places[left], statistics.blocks[block].cost(columns[left], statistics.sensitivity))
        return cost

    def remove(self, group: int, channel: int) -> None:
        """See `Importance`."""
        self.alive[group][channel] = False
        for layer in self.graph.readers[group]:
            statistics = self.statistics[layer.name]
            for block, places, columns in statistics.places[group]:
                for row in (places == channel).nonzero()[:, 0]:
                    statistics.blocks[block].drop(columns[row])
            self._forget(layer.name)
        for layer in self.graph.producers[group]:
            sensitivity = self.statistics[layer.name].sensitivity if layer.name in self.statistics else None
            if sensitivity is not None:
                removed = self.graph.groups[group].channels[channel]
                sensitivity[[i for i, c in enumerate(layer.outputs) if c == removed]] = 0
                self._forget(layer.name)

    def _forget(self, layer: str) -> None:
        for group in self.statistics[layer].places:
            self.cache.pop((layer, group), None)


def obs(graph: ChannelGraph, context: Context) -> OBS:
    """Collect the statistics of the OBS importance: a pass forward and back over the images, and one more forward.

    A batch whose activations do not fit `prune.importance.statistics.MEMORY` runs in parts; sums are those of the batch.
    """
    modules: dict[str, Any] = dict(graph.model.named_modules())
    mixing = [layer for layer in graph.layers if layer.kind != "depthwise"]
    images, device = context.batches, device_of(graph.model)
    program = Program(raw_copy(graph.model, graph.adapter), images[0].to(device, torch.float32), graph.adapter)
    names = [layer.name for layer in mixing]
    sensitivity = measure_sensitivity(
        program, names, images, context.sensitivity, context.seed, context.progress, "importance"
    )
    if not sensitivity.channels:
        raise PruneError(UNREACHED)
    statistics = {layer.name: _empty(graph, layer, matrix_of(modules[layer.name])) for layer in mixing}
    for name, channels in sensitivity.channels.items():
        statistics[name].sensitivity = channels
    for index, batch in enumerate(images):
        _collect(statistics, program, batch.to(device, torch.float32), sensitivity.weights, index, context.seed)
    return OBS(graph, statistics)


def _collect(
    statistics: dict[str, LayerStatistics], program: Program, batch: Tensor, all_weights: Weights, index: int, seed: int
) -> None:
    """Add what the layers read at the sampled positions of batch number `index`."""
    first = 0  # image of the pass
    for images in passes(program, batch):
        part = program.at(images)

        def add(node: Node, value: Any, values: dict[Node, Any], part: Program = part, first: int = first) -> Any:
            weights = all_weights.get((index, part.number[node]))
            if weights is not None:
                layer, x = geometry_of(node), values[node.all_input_nodes[0]]
                here = layer.positions(value)
                before = here * first // part.images
                positions = sample_positions(here * len(batch) // part.images, POSITIONS, seed + index)
                inside = (positions >= before) & (positions < before + here)
                positions, weights = (positions[inside] - before).to(value.device), weights[inside.to(value.device)]
                rows = input_rows(x, value.shape, layer, positions).float()
                for block in statistics[part.layer(node)].blocks:  # type: ignore[index]
                    block.add(rows, weights)
            return value

        with torch.no_grad():
            part.run(images, add)
        first += len(images)


def _empty(graph: ChannelGraph, layer: Layer, weight: Tensor) -> LayerStatistics:
    weight = weight.detach().float().flatten(1).cpu()
    rows, columns = weight.shape[0] // layer.groups, weight.shape[1]  # per convolution group
    widest = layer.kernel * max(1, MAX_COLUMNS // layer.kernel)  # blocks hold whole channels
    blocks = []
    for g in range(layer.groups):
        outputs = slice(g * rows, (g + 1) * rows)
        for start in range(0, columns, widest):
            end = min(columns, start + widest)
            span, n = (g * columns + start, g * columns + end), end - start
            blocks.append(CovarianceBlock(span, outputs, weight[outputs, start:end], torch.zeros(n, n), torch.zeros(n)))
    statistics = LayerStatistics(layer, blocks)
    for group, (places, positions) in places_in(graph, layer.inputs).items():
        statistics.places[group] = list(_columns(places, positions, blocks, layer.kernel))
    return statistics


def _columns(
    places: Tensor, positions: Tensor, blocks: list[CovarianceBlock], kernel: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per block and per number of columns: the channels of a group that have so many columns there, and the columns."""
    for index, block in enumerate(blocks):
        first, last = block.columns[0] // kernel, block.columns[1] // kernel
        inside = (positions >= first) & (positions < last)
        by_place: dict[int, list[int]] = {}
        for place, position in zip(places[inside].tolist(), positions[inside].tolist(), strict=True):
            start = (position - first) * kernel
            by_place.setdefault(place, []).extend(range(start, start + kernel))
        for width in sorted({len(c) for c in by_place.values()}):
            same = {p: c for p, c in by_place.items() if len(c) == width}
            yield index, torch.tensor(list(same)), torch.tensor(list(same.values()))
