"""What a cut must save: FLOPs, parameters or channels. Another resource is one more class and a name in `BUDGETS`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from prune.graph.graph import ChannelGraph, Layer


class LayerChange(NamedTuple):
    """A layer, and its numbers of inputs and outputs before and after a step."""

    layer: Layer
    before: tuple[int, int]
    after: tuple[int, int]


class Change(NamedTuple):
    """One step of a cut: layers that lose channels, how many channels go, and how many with a BatchNorm's scale."""

    layers: list[LayerChange]
    channels: int
    norm_channels: int


class Budget:
    """Counts one resource of a graph. `total` is what the full model takes."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.total = float(self.of(graph.group_of.keys()))

    def goal(self, value: float) -> float:
        """How much may be left if the user asks for `value`: that fraction."""
        return self.total * value

    def of(self, kept: Collection[int]) -> float:
        """How much is left with the `kept` channel ids of groups; all other channels stay."""
        raise NotImplementedError

    def saved(self, change: Change) -> float:
        """How much a step saves."""
        raise NotImplementedError


class FlopsBudget(Budget):
    """FLOPs per image, at the size that the graph was traced at."""

    def of(self, kept: Collection[int]) -> float:
        """See `Budget`."""
        return self.graph.flops(self.graph.staying.union(kept))

    def saved(self, change: Change) -> float:
        """See `Budget`."""
        return sum(layer.flops(*before) - layer.flops(*after) for layer, before, after in change.layers)


class ParamsBudget(Budget):
    """Parameters of the whole model, those included that no layer of the graph has."""

    def of(self, kept: Collection[int]) -> float:
        """See `Budget`."""
        rest = sum(p.numel() for p in self.graph.model.parameters()) - self.graph.params()
        return rest + self.graph.params(self.graph.staying.union(kept))

    def saved(self, change: Change) -> float:
        """See `Budget`."""
        weights = sum(layer.params(*before) - layer.params(*after) for layer, before, after in change.layers)
        return weights + 2 * change.norm_channels


class ChannelBudget(Budget):
    """Prunable channels. The value asked for is the pruning ratio: the fraction that goes."""

    def goal(self, value: float) -> float:
        """See `Budget`."""
        return self.total * (1 - value)

    def of(self, kept: Collection[int]) -> float:
        """See `Budget`."""
        return len(kept)

    def saved(self, change: Change) -> float:
        """See `Budget`."""
        return change.channels


BUDGETS: Mapping[str, type[Budget]] = {"flops": FlopsBudget, "params": ParamsBudget, "ratio": ChannelBudget}
