"""Which channels of a network live and die together, as plain data.

An *atom* is one channel of one tensor; a *channel* here is a set of atoms that must be kept or cut together (the two
summands of a residual, say). A *group* is a set of channels that the same layers produce: its members are
interchangeable, so a group is what has a width. `prune.trace` builds the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from prune.adapter import PLAIN, Adapter

Channels = tuple[int, ...]
LISTED = 30  # rows, at most, of what is printed


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that ran in the trace.

    Attributes:
        name: Path of the module, as in `model.named_modules()`.
        kind: "conv", "depthwise", "grouped" (transposed convolutions too) or "linear".
        inputs: Channel id of every input channel (with repeats where a concat repeats a tensor).
        outputs: Channel id of every output channel.
        kernel: Elements of the kernel, kh * kw; 1 for linear.
        positions: Output positions per image, h * w (tokens for linear), summed over calls; of a transposed
            convolution its input's.
        groups: Convolution groups.
        bias: Whether it has a bias.
        share: Of its FLOPs, what counts: see `Adapter.shares`.
    """

    name: str
    kind: str
    inputs: Channels
    outputs: Channels
    kernel: int
    positions: int
    groups: int
    bias: bool
    share: float = 1.0

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {self.kind}, {len(self.inputs)} -> {len(self.outputs)} channels)"

    def flops(self, inputs: int, outputs: int) -> int:
        """FLOPs per image (two per multiply-add) with that many input and output channels."""
        per_output = 1 if self.kind == "depthwise" else inputs // self.groups
        return int(2 * self.share * self.kernel * self.positions * per_output * outputs)

    def params(self, inputs: int, outputs: int) -> int:
        """Parameters with that many input and output channels."""
        per_output = 1 if self.kind == "depthwise" else inputs // self.groups
        return outputs * (self.kernel * per_output + self.bias)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm: its path and the channel ids that it normalises."""

    name: str
    channels: Channels
    affine: bool

    def __repr__(self) -> str:
        return f"Norm({self.name!r}, {len(self.channels)} channels)"


@dataclass(frozen=True)
class ChannelParameter:
    """A parameter with a value for each channel, as a LayerScale's: its path and the channel ids."""

    name: str
    channels: Channels

    def __repr__(self) -> str:
        return f"ChannelParameter({self.name!r}, {len(self.channels)} channels)"


@dataclass(frozen=True)
class Product:
    """A product of matrices, of one pair for each of these channel ids: what it takes for each, in FLOPs per image."""

    channels: Channels
    flops: int


@dataclass(frozen=True)
class StoredNumber:
    """A whole number that the module at `path` stores, as that of its heads: it keeps the share that the channels keep."""

    path: str
    name: str
    value: int
    channels: Channels

    def left(self, kept: Collection[int]) -> int:
        """The number if these channels are kept."""
        return self.value * _count(self.channels, kept) // len(self.channels)


@dataclass(frozen=True)
class Group:
    """Channels that share producers and readers. `name` is the first layer that produces them."""

    index: int
    name: str
    channels: Channels

    def __repr__(self) -> str:
        return f"Group({self.index}, {self.name!r}, {len(self.channels)} channels)"


@dataclass(frozen=True)
class Split:
    """A chunk or split in the forward of the module `owner`: the parts, of channel ids, must stay equally wide.

    `stored` if the module stores their width.
    """

    owner: str
    stored: bool
    parts: tuple[Channels, ...]

    def __repr__(self) -> str:
        return f"Split({self.owner!r}, {len(self.parts)} parts of {len(self.parts[0])} channels)"


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of one model, traced at one input shape.

    Attributes:
        model: The traced module itself (not a copy).
        input_shape: Shape of the example input, (N, C, H, W).
        layers: Layers in execution order, but for those that surgery cannot cut: `frozen` says why.
        norms: BatchNorms.
        groups: Groups that may be cut.
        splits: Parts that must keep equal widths.
        frozen: Layer name -> reason, for layers with output channels that may not be cut.
        adapter: What `prune` was told about the model.
        whole_flops: FLOPs per image of all that is no layer here: layers that surgery cannot cut, matrix products.
        parameters: Parameters that are cut with the channels that they are multiplied with or added to.
        products: Matrix products of heads.
        numbers: What modules store and surgery has to change: the number of heads, say.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    groups: tuple[Group, ...]
    splits: tuple[Split, ...]
    frozen: Mapping[str, str]
    adapter: Adapter = PLAIN
    whole_flops: int = 0
    parameters: tuple[ChannelParameter, ...] = ()
    products: tuple[Product, ...] = ()
    numbers: tuple[StoredNumber, ...] = ()

    def __repr__(self) -> str:
        channels, params = len(self.group_of), sum(p.numel() for p in self.model.parameters())
        return (
            f"ChannelGraph({len(self.groups)} groups, {channels:,} channels, {params / 1e6:.2f} M parameters, "
            f"{self.flops() / 1e9:.2f} GFLOPs)"
        )

    def __str__(self) -> str:
        """The groups, the layers that are frozen, counted by reason, and the whole."""
        lines = [f"{len(group.channels):>6} channels of {group.name}" for group in self.groups[:LISTED]]
        more = len(self.groups) - LISTED
        lines += [f"       and {more} groups more: graph.groups"] if more > 0 else []
        reasons = Counter(self.frozen.values()).most_common(LISTED)
        lines += [f"{count:>6} layers frozen: {reason}" for reason, count in reasons]
        return "\n".join([*lines, repr(self)])

    def layer(self, name: str) -> Layer:
        """The layer at this path."""
        return {layer.name: layer for layer in self.layers}[name]

    @cached_property
    def group_of(self) -> dict[int, int]:
        """Channel id -> index of its group; frozen channels are absent."""
        return {c: g.index for g in self.groups for c in g.channels}

    @cached_property
    def staying(self) -> frozenset[int]:
        """Every channel that is in no group."""
        used = [layer.inputs + layer.outputs for layer in self.layers] + [norm.channels for norm in self.norms]
        used += [parameter.channels for parameter in self.parameters] + [each.channels for each in self.products]
        used += [number.channels for number in self.numbers]
        return frozenset().union(*used) - self.group_of.keys()

    @cached_property
    def place_of(self) -> dict[int, int]:
        """Channel id -> its place in its group."""
        return {c: place for g in self.groups for place, c in enumerate(g.channels)}

    @cached_property
    def readers(self) -> list[list[Layer]]:
        """Per group, the layers that mix its channels (every kind but depthwise) as inputs."""
        return self._touching(lambda layer: layer.inputs if layer.kind != "depthwise" else ())

    @cached_property
    def producers(self) -> list[list[Layer]]:
        """Per group, the layers whose output it is."""
        return self._touching(lambda layer: layer.outputs)

    def _touching(self, side: Callable[[Layer], Channels]) -> list[list[Layer]]:
        layers: list[list[Layer]] = [[] for _ in self.groups]
        for layer in self.layers:
            for index in {self.group_of[c] for c in side(layer) if c in self.group_of}:
                layers[index].append(layer)
        return layers

    @cached_property
    def bundles(self) -> list[tuple[int, ...]]:
        """Groups tied by splits: all of a bundle lose equally many channels. Most bundles hold one group."""
        bundles = {i: {i} for i in range(len(self.groups))}  # group -> its bundle, shared by all in it
        for split in self.splits:
            tied = [bundles[self.group_of[part[0]]] for part in split.parts if part[0] in self.group_of]
            joined = set().union(*tied)
            bundles |= dict.fromkeys(joined, joined)
        return [tuple(sorted(bundle)) for i, bundle in bundles.items() if i == min(bundle)]

    def flops(self, kept: Collection[int] | None = None) -> int:
        """FLOPs per image as torch's `FlopCounterMode` counts them (two per multiply-add), with the `kept` channels or with all."""
        products = sum(product.flops * _count(product.channels, kept) for product in self.products)
        return self.whole_flops + products + sum(layer.flops(*_counts(layer, kept)) for layer in self.layers)

    def params(self, kept: Collection[int] | None = None) -> int:
        """Parameters of the traced layers and BatchNorms, and those of `parameters`, with the `kept` channels or with all."""
        weights = sum(layer.params(*_counts(layer, kept)) for layer in self.layers)
        weights += sum(_count(parameter.channels, kept) for parameter in self.parameters)
        return weights + sum(2 * _count(norm.channels, kept) for norm in self.norms if norm.affine)


def _counts(layer: Layer, kept: Collection[int] | None) -> tuple[int, int]:
    return _count(layer.inputs, kept), _count(layer.outputs, kept)


def _count(channels: Channels, kept: Collection[int] | None) -> int:
    return len(channels) if kept is None else sum(c in kept for c in channels)
