"""How channels pass through each operator: one rule per operator, in a table.

A rule is a function `rule(tracker, node)`. It reads the channels of the operator's arguments (`tracker.vector`) and
returns those of its value: a `Vector`, or None if they cannot be followed, in which case it has frozen the arguments'
channels (`tracker.give_up`). An operator without a rule freezes what enters it, and the graph says so.

`register` adds a rule to the table. `Adapter.rules` holds rules for one family of models, and for it alone.

    def roll(tracker, node):  # torch.roll keeps channels where they are, unless it rolls along them
        vector = tracker.vector(node.args[0])
        dims = [dim % node.meta["val"].dim() for dim in (node.args[2] if len(node.args) > 2 else [])]
        if vector is None or not dims or vector.dim in dims:
            return tracker.give_up(node, "channels are rolled")
        return vector

    prune.rules.register("roll", roll)                                # torch.ops.aten.roll
    prune.rules.register(torch.ops.mylib.scale, prune.rules.pointwise)  # each value from the one at its place
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prune.adapter import Adapter
from prune.graph.graph import Layer
from prune.graph.tracker import ChannelTracker, Vector
from prune.program.operators import module_path, operator_name, plain_name, where, within

# Rules take a node as Any: torch's type of its arguments is recursive, and mypy takes minutes over it.
Rule = Callable[[ChannelTracker, Node], Vector | None]

_REGISTERED: dict[str, Rule] = {}


def register(operator: Any, rule: Rule) -> None:
    """Set the rule of an operator, for every trace from now on; `unregister` takes it back.

    Args:
        operator: `torch.ops.mylib.scale` or "mylib::scale"; "roll" for an operator of torch's own. A rule stands for
            all overloads and for the in-place variant.
        rule: See the top of this module. `pointwise` and `spatial` serve many operators as they are.
    """
    _REGISTERED[plain_name(operator)] = rule


def unregister(operator: Any) -> None:
    """The operator has its built-in rule again, or none."""
    _REGISTERED.pop(plain_name(operator), None)


def rule_of(node: Node, adapter: Adapter) -> Rule | None:
    """The rule of a node's operator: the adapter's, a registered one, or a built-in one; None if there is none."""
    own = {plain_name(operator): rule for operator, rule in adapter.rules.items()}
    return {**RULES, **_REGISTERED, **own}.get(operator_name(node))


def follow(tracker: ChannelTracker, node: Node) -> None:
    """Note the channels of a node's value, by the rule of its operator."""
    rule = rule_of(node, tracker.adapter)
    if rule is None or not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
        rule = _unknown
    tracker.vectors[node] = rule(tracker, node)


def _unknown(tracker: ChannelTracker, node: Any) -> Vector | None:
    return tracker.give_up(node, f"{str(node.target).removeprefix('aten.')} {where(node)} has no rule")


def pointwise(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Each value comes from the one at its place, as with an activation or a copy."""
    if len(node.all_input_nodes) > 1:  # clamp and pow may take a tensor, with a value for each channel
        return _unknown(tracker, node)
    return tracker.vector(node.all_input_nodes[0])  # the first argument of 2 ** x is a number


def spatial(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Each channel passes by itself, and changes size over the last two dimensions, as in pooling."""
    x = node.args[0]
    vector = tracker.vector(x)
    if vector is not None and vector.dim >= x.meta["val"].dim() - 2:  # a linear layer's channels stand last
        return tracker.give_up(node, f"channels are resized {where(node)}")
    return vector


def conv2d(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Reads the channels of its input and makes new ones; a depthwise convolution hands them through."""
    x, weight = node.args[:2]
    shape, groups = _shape(weight), node.args[6] if len(node.args) > 6 else 1
    atoms = tracker.entering(node, x, 1)
    kind = "conv" if groups == 1 else "depthwise" if groups == shape[0] == len(atoms) else "grouped"
    sizes = {"kernel": prod(shape[2:]), "positions": prod(_shape(node)[2:]), "groups": groups}
    outputs = _layer(tracker, node, kind, atoms, shape[0], sizes)
    if kind == "grouped":  # equally many per group: the i-th channels of all groups go together
        tracker.atoms.tie(atoms, groups)
        tracker.atoms.tie(outputs, groups)
    return Vector(1, outputs)


def linear(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Reads the last dimension and makes a new one."""
    dim = len(_shape(node)) - 1
    atoms = tracker.entering(node, node.args[0], dim)
    sizes = {"kernel": 1, "positions": prod(_shape(node)[1:-1]), "groups": 1}
    return Vector(dim, _layer(tracker, node, "linear", atoms, _shape(node.args[1])[0], sizes))


def _layer(
    tracker: ChannelTracker, node: Any, kind: str, inputs: list[int], width: int, sizes: dict[str, Any]
) -> list[int]:
    """Note a layer; its output atoms."""
    name, obstacle = tracker.owners.layer(node, operator_name(node))
    bias = len(node.args) > 2 and node.args[2] is not None
    layer = Layer(name, kind, tuple(inputs), (), bias=bias, **sizes)
    if obstacle is not None:
        tracker.whole_flops += layer.flops(len(inputs), width)
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


def padding(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Adds values on some sides; channels that it adds stay."""
    vector, amounts = tracker.vector(node.args[0]), list(node.args[1])
    if vector is None:
        return None
    place = 2 * (len(_shape(node)) - 1 - vector.dim)  # amounts are (before, after), from the last dimension on
    before, after = (*amounts, 0, 0)[place : place + 2] if place < len(amounts) else (0, 0)
    if before == after == 0:
        return vector
    if min(before, after) < 0 or (len(node.args) > 2 and node.args[2] in ("reflect", "replicate", "circular")):
        return tracker.give_up(node, f"channels are padded {where(node)}")
    added = tracker.atoms.fresh(before + after, ("padding",))
    tracker.atoms.freeze(added, f"channels are padded {where(node)}")  # as many are added whatever is cut
    return Vector(vector.dim, [*added[:before], *vector.atoms, *added[before:]])


def arithmetic(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Two tensors, or one and a number, element by element: operands of the same width are cut alike."""
    operands = [value for value in node.args[:2] if isinstance(value, Node)]
    if len(operands) == 1:
        return tracker.vector(operands[0])
    rank = len(_shape(node))
    sides = {value: vector for value in operands if (vector := tracker.vector(value)) is not None}
    dims = {v.dim + rank - len(_shape(n)) for n, v in sides.items()}  # broadcasting aligns shapes from the right
    if len(dims) != 1:
        return tracker.give_up(node, f"the operands {where(node)} do not line up") if dims else None
    (dim,) = dims
    width = _shape(node)[dim]
    whole = [v for v in (tracker.vector(n) for n in operands) if v is not None and len(v.atoms) == width]
    for value in operands:  # something without channels, as wide as they are: a constant cannot be cut with them
        offset = dim - rank + len(_shape(value))
        if value not in sides and offset >= 0 and _shape(value)[offset] == width != 1:
            return tracker.give_up(node, f"a tensor {where(node)} cannot be followed")
    for vector in sides.values():
        if len(vector.atoms) != width:  # one channel broadcast over all of them must stay
            tracker.atoms.freeze(vector.atoms, f"it is broadcast {where(node)}")
    if len(whole) == 2:
        tracker.atoms.unite(whole[0].atoms, whole[1].atoms)
    return Vector(dim, whole[0].atoms)


def cat(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Concatenates the channels, or, along another dimension, unites them."""
    parts = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else 0
    vectors = [v for n in parts if (v := tracker.vector(n)) is not None]
    if len(vectors) < len(parts) or len({v.dim for v in vectors}) != 1:
        return tracker.give_up(node, f"a tensor concatenated {where(node)} cannot be followed")
    if dim % len(_shape(node)) == vectors[0].dim:
        return Vector(vectors[0].dim, [atom for v in vectors for atom in v.atoms])
    for vector in vectors[1:]:
        tracker.atoms.unite(vectors[0].atoms, vector.atoms)
    return vectors[0]


def split(tracker: ChannelTracker, node: Any) -> None:
    """Cuts the channels into parts. Equal parts stay equal, if the width of a part is no fixed number."""
    x, dim = node.args[0], node.args[2] if len(node.args) > 2 else 0
    vector, shapes = tracker.vector(x), [value.shape for value in node.meta["val"]]
    if vector is None:
        return
    if dim % len(shapes[0]) != vector.dim:
        tracker.lists[node] = [vector] * len(shapes)
        return
    sizes = [shape[vector.dim] for shape in shapes]
    parts = [vector.atoms[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    owner, module = tracker.owners.module(node)
    stored = tracker.adapter.stores(module, sizes[0])
    if len(set(sizes)) > 1:
        tracker.freeze(x, f"unequal split {where(node)}")
    elif operator_name(node) != "chunk" and not (stored and tracker.adapter.reads_width(module)):
        tracker.freeze(x, f"split at a fixed width {where(node)}")
    else:
        tracker.add_split(owner, stored, parts)
    tracker.lists[node] = [Vector(vector.dim, part) for part in parts]


def getitem(tracker: ChannelTracker, node: Any) -> Vector | None:
    """One of several tensors; the value and the places of a pooling have the same channels."""
    source, index = node.args
    return tracker.lists[source][index] if source in tracker.lists else tracker.vector(source)


def slicing(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A range of positions: a range of channels is a fixed one."""
    vector = tracker.vector(node.args[0])
    dim, start, end, step = (list(node.args[1:]) + [0, None, None, 1][len(node.args) - 1 :])[:4]
    if vector is None or dim % len(_shape(node)) != vector.dim:
        return vector
    atoms = vector.atoms[slice(start, end, step)]
    if len(atoms) < len(vector.atoms):
        tracker.freeze(node.args[0], f"sliced at fixed positions {where(node)}")
    return Vector(vector.dim, atoms)


def reduction(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A mean, sum or maximum over dimensions other than that of the channels."""
    vector = tracker.vector(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else None
    rank = len(_shape(node.args[0]))
    if vector is None or dims is None or vector.dim in [d % rank for d in dims]:
        return tracker.give_up(node, f"channels are reduced {where(node)}")
    keepdim = len(node.args) > 2 and node.args[2]
    return Vector(vector.dim - (0 if keepdim else sum(d % rank < vector.dim for d in dims)), vector.atoms)


def view(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Another shape: dimensions behind the channels may be merged or split, or merged into the channels."""
    vector = tracker.vector(node.args[0])
    if vector is None:
        _keep_entering(tracker, node)
        return None
    dim, atoms = vector
    old, new = _shape(node.args[0]), _shape(node)
    if old[: dim + 1] == new[: dim + 1]:  # only what stands after the channels is merged or split
        return vector
    if old[:dim] == new[:dim] and len(new) == dim + 1:  # (B, C, H, W) -> (B, C*H*W): one atom feeds H*W columns
        return Vector(dim, [atom for atom in atoms for _ in range(prod(old[dim + 1 :]))])
    return tracker.give_up(node, f"channels are reshaped {where(node)}")


def _keep_entering(tracker: ChannelTracker, node: Any) -> None:
    """Freeze what enters the module of a view whose input cannot be followed.

    Attention takes the shape of that view from what enters it (`B, C, H, W = x.shape`), which a trace does not show. If
    x were cut, the shape would not fit any more.
    """
    owner = module_path(node)
    for inner in node.graph.nodes:
        if inner is node:
            return
        if within(inner, owner):
            for value in inner.all_input_nodes:
                if not within(value, owner):
                    tracker.freeze(value, f"a tensor {where(node)} may be given its shape")


def _shape(node: Any) -> torch.Size:
    return node.meta["val"].shape


def _named(rule: Rule, operators: str) -> dict[str, Rule]:
    return dict.fromkeys(operators.split(), rule)


RULES: Mapping[str, Rule] = {
    **_named(conv2d, "conv2d"),
    **_named(linear, "linear"),
    **_named(batch_norm, "batch_norm"),
    **_named(pointwise, "silu relu relu6 leaky_relu hardswish hardsigmoid hardtanh sigmoid tanh gelu mish elu selu"),
    **_named(pointwise, "softplus clamp exp sqrt neg abs pow rsqrt dropout feature_dropout alpha_dropout"),
    **_named(pointwise, "clone contiguous detach to _to_copy alias"),
    **_named(spatial, "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d"),
    **_named(spatial, "upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d"),
    **_named(spatial, "reflection_pad2d replication_pad2d"),
    **_named(padding, "pad constant_pad_nd"),
    **_named(arithmetic, "add sub rsub mul div maximum minimum"),
    **_named(cat, "cat"),
    **_named(split, "chunk split split_with_sizes"),
    **_named(getitem, "getitem"),
    **_named(slicing, "slice"),
    **_named(reduction, "mean sum amax"),
    **_named(view, "view _unsafe_view reshape flatten"),
}
