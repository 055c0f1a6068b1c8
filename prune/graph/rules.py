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
from typing import Any

from torch import Tensor
from torch.fx import Node

from prune.adapter import Adapter
from prune.graph.layers import batch_norm, convolution, group_norm, layer_norm, linear, prelu
from prune.graph.products import attention, matmul, softmax
from prune.graph.shapes import expand, permute, reduction, select, slicing, squeeze, unbind, unsqueeze
from prune.graph.tracker import ChannelTracker, Vector, shape_of
from prune.graph.views import view
from prune.program.operators import operator_name, plain_name, where

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
    constants = tracker.constants.intersection(node.all_input_nodes)
    if constants and len(constants) == len(node.all_input_nodes):
        tracker.constants.add(node)
    elif rule not in (
        arithmetic,
        prelu,
        group_norm,
    ):  # what is made of a parameter elsewhere is not zero if its channel is
        for value in constants:
            tracker.freeze(value, f"a parameter is used {where(node)}")
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


def padding(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Adds values on some sides; channels that it adds stay."""
    vector, amounts = tracker.vector(node.args[0]), list(node.args[1])
    if vector is None:
        return None
    place = 2 * (len(shape_of(node)) - 1 - vector.dim)  # amounts are (before, after), from the last dimension on
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
    rank = len(shape_of(node))
    sides = {value: vector for value in operands if (vector := tracker.vector(value)) is not None}
    places = {n: v.dim + rank - len(shape_of(n)) for n, v in sides.items()}  # broadcasting aligns shapes from the right
    dims = {place for n, place in places.items() if n not in tracker.constants} or set(places.values())
    if len(dims) != 1:
        return tracker.give_up(node, f"the operands {where(node)} do not line up") if dims else None
    (dim,) = dims
    width = shape_of(node)[dim]
    for value in [n for n in sides if places[n] != dim]:  # a parameter with a value for each column, say
        tracker.atoms.freeze(sides.pop(value).atoms, f"it is broadcast {where(node)}")
    for value in operands:  # something without channels, as wide as they are: a constant cannot be cut with them
        offset = dim - rank + len(shape_of(value))
        if value not in sides and offset >= 0 and shape_of(value)[offset] == width != 1:
            for other in sides:  # all stay, and are followed on
                tracker.freeze(other, f"a tensor {where(node)} cannot be followed")
    whole = {n: v for n, v in sides.items() if len(v.atoms) == width}
    lone = node not in tracker.constants and tracker.constants.issuperset(whole)  # its zeros would not be zeros here
    for value, vector in sides.items():
        if value not in whole or lone:  # one channel broadcast over all of them must stay
            tracker.atoms.freeze(vector.atoms, f"it is broadcast {where(node)}")
    first, *others = (v.atoms for v in whole.values())
    for atoms in others:
        tracker.atoms.unite(first, atoms)
    return Vector(dim, first)


def cat(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Concatenates the channels, or, along another dimension, unites them."""
    parts = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else 0
    vectors = [v for n in parts if (v := tracker.vector(n)) is not None]
    if len(vectors) < len(parts) or len({v.dim for v in vectors}) != 1:
        return tracker.give_up(node, f"a tensor concatenated {where(node)} cannot be followed")
    if dim % len(shape_of(node)) == vectors[0].dim:
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


def _named(rule: Rule, operators: str) -> dict[str, Rule]:
    return dict.fromkeys(operators.split(), rule)


RULES: Mapping[str, Rule] = {
    **_named(convolution, "conv2d conv_transpose2d"),
    **_named(linear, "linear"),
    **_named(batch_norm, "batch_norm"),
    **_named(prelu, "prelu"),
    **_named(group_norm, "group_norm"),
    **_named(layer_norm, "layer_norm"),
    **_named(pointwise, "silu relu relu6 leaky_relu hardswish hardsigmoid hardtanh sigmoid tanh gelu mish elu selu"),
    **_named(pointwise, "softplus clamp exp sqrt square neg abs pow rsqrt dropout feature_dropout alpha_dropout"),
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
    **_named(reduction, "mean sum amax linalg_vector_norm"),
    **_named(view, "view _unsafe_view reshape flatten unflatten"),
    **_named(unsqueeze, "unsqueeze"),
    **_named(squeeze, "squeeze"),
    **_named(permute, "permute transpose t"),
    **_named(select, "select"),
    **_named(unbind, "unbind"),
    **_named(expand, "expand expand_as"),
    **_named(matmul, "matmul bmm"),
    **_named(attention, "scaled_dot_product_attention"),
    **_named(softmax, "softmax log_softmax"),
}
