"""Rules of what has weights for each channel: convolutions, linear layers, normalizations, PReLU."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from prune.graph.graph import Layer
from prune.graph.tracker import ChannelTracker, Vector, shape_of
from prune.program.operators import operator_name, where


def convolution(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Reads the channels of its input and makes new ones; a depthwise convolution hands them through."""
    x, weight = node.args[:2]
    width, groups = shape_of(node)[1], node.args[6] if len(node.args) > 6 else 1
    atoms = tracker.entering(node, x, 1)
    kind = "conv" if groups == 1 else "depthwise" if groups == width == len(atoms) else "grouped"
    counted = x if operator_name(node) == "conv_transpose2d" else node  # what has a position for each kernel
    sizes = {"kernel": prod(shape_of(weight)[2:]), "positions": _positions(tracker, counted, 1), "groups": groups}
    outputs = _layer(tracker, node, kind, atoms, width, sizes)
    if kind == "grouped":  # equally many per group: the i-th channels of all groups go together
        tracker.atoms.tie(atoms, groups)
        tracker.atoms.tie(outputs, groups)
    return Vector(1, outputs)


def linear(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Reads the last dimension and makes a new one."""
    dim = len(shape_of(node)) - 1
    atoms = tracker.entering(node, node.args[0], dim)
    sizes = {"kernel": 1, "positions": _positions(tracker, node, dim), "groups": 1}
    return Vector(dim, _layer(tracker, node, "linear", atoms, shape_of(node.args[1])[0], sizes))


def _positions(tracker: ChannelTracker, value: Any, dim: int) -> int:
    """Positions per image, of images that may be folded into several of the first dimension, as windows are."""
    shape = shape_of(value)
    return prod(shape) // shape[dim] // tracker.images


def _layer(
    tracker: ChannelTracker, node: Any, kind: str, inputs: list[int], width: int, sizes: dict[str, Any]
) -> list[int]:
    """Note a layer; its output atoms."""
    name, obstacle = tracker.owners.layer(node, operator_name(node))
    bias = len(node.args) > 2 and node.args[2] is not None
    layer = Layer(name, kind, tuple(inputs), (), bias=bias, **sizes)
    if obstacle is not None:
        outputs = inputs if kind == "depthwise" else tracker.atoms.fresh(width, ("whole",))
        tracker.atoms.freeze([*inputs, *outputs], obstacle)
        tracker.keep_whole(node, name, obstacle)
        return outputs
    if first := tracker.layers.get(name):  # one module called twice: both calls read and write the same weights
        tracker.atoms.unite(first.inputs, inputs)
        tracker.layers[name] = replace(first, positions=first.positions + layer.positions)
        return list(first.outputs)
    outputs = inputs if kind == "depthwise" else tracker.atoms.fresh(width, ("layer", len(tracker.layers)))
    tracker.layers[name] = replace(layer, outputs=tuple(outputs))
    return outputs


def batch_norm(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Normalises each channel by itself."""
    vector = tracker.vector(node.args[0])
    if vector is None:
        return None
    name, obstacle = tracker.owners.layer(node, "batch_norm")
    if obstacle is None and vector.dim != 1:  # a linear layer's channels stand last, and this one normalizes its tokens
        obstacle = f"'{name}' normalizes another dimension than that of the channels"
    if obstacle is not None:
        tracker.keep_whole(node, name, obstacle)
        return vector
    if name in tracker.norms:
        tracker.atoms.unite(tracker.norms[name][0], vector.atoms)
    tracker.norms[name] = (vector.atoms, node.args[1] is not None)
    return vector


def prelu(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A slope for each channel, or one for all."""
    x, weight = node.args
    vector, slopes = tracker.vector(x), tracker.vector(weight)
    if vector is None or prod(shape_of(weight)) == 1:
        return vector
    if slopes is None or vector.dim != 1:
        return tracker.give_up(node, f"the slopes {where(node)} cannot be cut")
    tracker.atoms.unite(vector.atoms, slopes.atoms)
    return vector


def group_norm(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Normalises groups of channels, each by itself: whole groups may go."""
    x, groups = node.args[:2]
    vector, (name, module) = tracker.vector(x), tracker.owners.module(node)
    affine = [tracker.vector(value) for value in node.args[2:4]]
    own = {f"{name}.weight", f"{name}.bias"} <= tracker.parameters.keys() and isinstance(module, nn.GroupNorm)
    if vector is None or groups == 1 or vector.dim != 1 or None in affine or len(affine) < 2 or not own:
        return tracker.give_up(node, f"channels are normalized together {where(node)}")
    size = len(vector.atoms) // groups
    for start in range(0, len(vector.atoms), size):
        first, *others = vector.atoms[start : start + size]
        tracker.atoms.unite([first] * len(others), others)
    for parameter in filter(None, affine):
        tracker.atoms.unite(vector.atoms, parameter.atoms)
    return vector


def layer_norm(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A mean over the channels changes if some of them go: they stay, and are followed on."""
    vector, rank = tracker.vector(node.args[0]), len(shape_of(node))
    if vector is not None and vector.dim < rank - len(node.args[1]):
        return vector  # over other dimensions alone
    reason = f"layer_norm {where(node)} takes a mean over the channels, which would be another one without some of them"
    if vector is not None:
        tracker.atoms.freeze(vector.atoms, reason, decisive=True)
    return vector
