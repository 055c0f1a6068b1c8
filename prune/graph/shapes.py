"""Rules of what moves values about: slices, reductions, more or fewer dimensions, or in another order."""

from __future__ import annotations

from typing import Any

from prune.graph.tracker import ChannelTracker, Vector, shape_of
from prune.program.operators import operator_name, where


def slicing(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A range of positions: a range of channels is a fixed one."""
    vector = tracker.vector(node.args[0])
    dim, start, end, step = (list(node.args[1:]) + [0, None, None, 1][len(node.args) - 1 :])[:4]
    if vector is None or dim % len(shape_of(node)) != vector.dim:
        return vector
    atoms = vector.atoms[slice(start, end, step)]
    if len(atoms) < len(vector.atoms):
        tracker.freeze(node.args[0], f"sliced at fixed positions {where(node)}")
    return Vector(vector.dim, atoms)


def reduction(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A mean, sum, maximum or norm over dimensions other than that of the channels."""
    vector, place = tracker.vector(node.args[0]), 2 if operator_name(node) == "linalg_vector_norm" else 1
    dims = node.args[place] if len(node.args) > place else None
    rank = len(shape_of(node.args[0]))
    if vector is None or dims is None or vector.dim in [d % rank for d in dims]:
        return tracker.give_up(node, f"channels are reduced {where(node)}")
    keepdim = len(node.args) > place + 1 and node.args[place + 1]
    return Vector(vector.dim - (0 if keepdim else sum(d % rank < vector.dim for d in dims)), vector.atoms)


def unsqueeze(tracker: ChannelTracker, node: Any) -> Vector | None:
    """A dimension of one more."""
    vector = tracker.vector(node.args[0])
    if vector is None:
        return None
    added = node.args[1] % len(shape_of(node))
    return Vector(vector.dim + (added <= vector.dim), vector.atoms)


def squeeze(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Dimensions of one less. A single channel's dimension must stay."""
    vector, shape = tracker.vector(node.args[0]), shape_of(node.args[0])
    if vector is None:
        return None
    named = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = {dim % len(shape) for dim in ([named] if isinstance(named, int) else named)}
    gone = [dim for dim in dims if shape[dim] == 1]
    if vector.dim in dims:  # a layer that is left with one channel would lose the dimension
        return tracker.give_up(node, f"the dimension of the channels may be squeezed {where(node)}")
    return Vector(vector.dim - sum(dim < vector.dim for dim in gone), vector.atoms)


def permute(tracker: ChannelTracker, node: Any) -> Vector | None:
    """The dimensions in another order."""
    vector, rank = tracker.vector(node.args[0]), len(shape_of(node))
    order = list(range(rank))
    if operator_name(node) == "permute":
        order = [dim % rank for dim in node.args[1]]
    elif rank > 1:
        first, second = node.args[1:3] if len(node.args) > 2 else (0, 1)  # `t` names none
        order[first], order[second] = order[second], order[first]
    return None if vector is None else Vector(order.index(vector.dim), vector.atoms)


def select(tracker: ChannelTracker, node: Any) -> Vector | None:
    """One place of a dimension, which goes."""
    vector, dim = tracker.vector(node.args[0]), node.args[1] % len(shape_of(node.args[0]))
    if vector is None:
        return None
    if vector.dim == dim:
        return tracker.give_up(node, f"one channel is taken {where(node)}")
    return Vector(vector.dim - (dim < vector.dim), vector.atoms)


def unbind(tracker: ChannelTracker, node: Any) -> None:
    """Every place of a dimension, which goes."""
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(node.args[0]))
    vector = tracker.vector(node.args[0])
    if vector is not None and vector.dim == dim:
        tracker.give_up(node, f"one channel is taken {where(node)}")
    elif vector is not None:
        tracker.lists[node] = [Vector(vector.dim - (dim < vector.dim), vector.atoms)] * len(node.meta["val"])


def expand(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Copies along dimensions of one, and in front of all."""
    vector, sizes = tracker.vector(node.args[0]), node.args[1]
    if vector is None:
        return None
    dim = vector.dim + len(shape_of(node)) - len(shape_of(node.args[0]))
    if isinstance(sizes, (list, tuple)) and sizes[dim] != -1:
        return tracker.give_up(node, f"channels are copied {where(node)}")
    if not isinstance(sizes, (list, tuple)):  # expand_as
        other = tracker.vector(sizes)
        if other is None or other.dim != dim or len(other.atoms) != len(vector.atoms):
            return tracker.give_up(node, f"channels are copied {where(node)}")
        tracker.atoms.unite(vector.atoms, other.atoms)
    return Vector(dim, vector.atoms)
