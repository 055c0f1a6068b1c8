"""Rules of matrix products and what stands between them: whole heads of an attention pass, and no part of one."""

from __future__ import annotations

from typing import Any

from prune.graph.tracker import ChannelTracker, Vector, shape_of
from prune.program.operators import where


def matmul(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Products of as many pairs of matrices as there are heads."""
    return _together(tracker, node, list(node.args[:2]))


def attention(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Queries, keys and values of each head, and a mask that is one for all heads, or has one for each."""
    return _together(tracker, node, [value for value in node.args[:4] if value is not None])


def softmax(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Over another dimension than that of the channels."""
    vector = tracker.vector(node.args[0])
    if vector is not None and vector.dim == node.args[1] % len(shape_of(node)):
        return tracker.give_up(node, f"softmax {where(node)} is over the channels")
    return vector


def _together(tracker: ChannelTracker, node: Any, operands: list[Any]) -> Vector | None:
    """Operands with channels in the same dimension, which is none of the matrices'."""
    rank = len(shape_of(node))
    sides = {value: vector for value in operands if (vector := tracker.vector(value)) is not None}
    places = {vector.dim + rank - len(shape_of(value)) for value, vector in sides.items()}
    if not sides:
        return None
    (dim,) = places if len(places) == 1 else (rank,)
    if dim >= rank - 2:
        return tracker.give_up(node, f"channels are multiplied as a matrix {where(node)}")
    width = shape_of(node)[dim]
    for value in operands:
        offset = dim - rank + len(shape_of(value))
        size = shape_of(value)[offset] if offset >= 0 else 1
        if size != (len(sides[value].atoms) if value in sides else 1) or value in sides and size != width:
            return tracker.give_up(node, f"a tensor {where(node)} cannot be followed")
    first, *others = (vector.atoms for vector in sides.values())
    for atoms in others:
        tracker.atoms.unite(first, atoms)
    tracker.products[node] = first
    return Vector(dim, first)
