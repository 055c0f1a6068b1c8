"""Rules of what moves values about: slices, reductions, other shapes, other orders of the dimensions."""

from __future__ import annotations

from math import prod
from typing import Any

from prune.graph.tracker import ChannelTracker, Folded, Vector, shape_of
from prune.program.operators import module_path, operator_name, where, within


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
    """A mean, sum or maximum over dimensions other than that of the channels."""
    vector = tracker.vector(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else None
    rank = len(shape_of(node.args[0]))
    if vector is None or dims is None or vector.dim in [d % rank for d in dims]:
        return tracker.give_up(node, f"channels are reduced {where(node)}")
    keepdim = len(node.args) > 2 and node.args[2]
    return Vector(vector.dim - (0 if keepdim else sum(d % rank < vector.dim for d in dims)), vector.atoms)


def view(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Another shape: dimensions behind the channels may be merged or split, or merged into the channels."""
    if node.args[0] in tracker.folded:
        return _unfold(tracker, node, tracker.folded[node.args[0]])
    vector = tracker.vector(node.args[0])
    if vector is None:
        if node not in tracker.constants:
            _keep_entering(tracker, node)
        return None
    dim, atoms = vector
    old, new = shape_of(node.args[0]), shape_of(node)
    if node in tracker.constants and prod(new) == len(atoms) in new:  # (C,) -> (1, C, 1, 1)
        return Vector(list(new).index(len(atoms)), atoms)
    if old[: dim + 1] == new[: dim + 1]:  # only what stands after the channels is merged or split
        return vector
    if old[:dim] == new[:dim] and len(new) == dim + 1:  # (B, C, H, W) -> (B, C*H*W): one atom feeds H*W columns
        return Vector(dim, [atom for atom in atoms for _ in range(prod(old[dim + 1 :]))])
    if _fold(tracker, node, vector):
        return None
    return tracker.give_up(node, f"channels are reshaped {where(node)}")


def _fold(tracker: ChannelTracker, node: Any, vector: Vector) -> bool:
    """(B, g * n, ...) -> (B, g, n, ...) if g is written down and n is not: all g parts lose the same places."""
    (dim, atoms), old, new = vector, tuple(shape_of(node.args[0])), tuple(shape_of(node))
    if new[:dim] != old[:dim] or new[dim + 2 :] != old[dim + 1 :] or len(new) != len(old) + 1:
        return False
    open_sizes = tracker.sizes().get((old, new), set())
    if dim in open_sizes or dim + 1 not in open_sizes:
        return False
    tracker.atoms.tie(atoms, new[dim])
    tracker.folded[node] = Folded(dim, (new[dim], new[dim + 1]), atoms)
    return True


def _unfold(tracker: ChannelTracker, node: Any, folded: Folded) -> Vector | None:
    dim, old, new = folded.dim, shape_of(node.args[0]), shape_of(node)
    if new == (*old[:dim], len(folded.atoms), *old[dim + 2 :]):
        open_sizes = tracker.sizes().get((tuple(old), tuple(new)), {dim})  # none if it is a flatten
        if dim in open_sizes:
            return Vector(dim, folded.atoms)
    return tracker.give_up(node, f"channels are reshaped {where(node)}")


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
    vector, rank, folded = tracker.vector(node.args[0]), len(shape_of(node)), tracker.folded.get(node.args[0])
    order = list(range(rank))
    if operator_name(node) == "permute":
        order = [dim % rank for dim in node.args[1]]
    elif rank > 1:
        first, second = node.args[1:3] if len(node.args) > 2 else (0, 1)  # `t` names none
        order[first], order[second] = order[second], order[first]
    if folded is not None:
        _turn(tracker, node, folded, order)
    return None if vector is None else Vector(order.index(vector.dim), vector.atoms)


def _turn(tracker: ChannelTracker, node: Any, folded: Folded, order: list[int]) -> None:
    """The two dimensions of the channels change places, and no other does."""
    (dim, (first, second), atoms), plain = folded, list(range(len(order)))
    if order == [*plain[:dim], dim + 1, dim, *plain[dim + 2 :]]:
        turned = [atoms[i * second + j] for j in range(second) for i in range(first)]
        tracker.folded[node] = Folded(dim, (second, first), turned)
    else:
        tracker.give_up(node, f"channels are reshaped {where(node)}")


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
