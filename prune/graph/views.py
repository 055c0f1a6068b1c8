"""The rule of views: channels are merged with other dimensions, or laid out over several, as heads and shuffles are.

A view keeps the order of its values, so a cut passes through it if the sizes that the forward computes for its shape
follow the cut: those of a cut network must be those of the view of cut channels.
"""

from __future__ import annotations

from itertools import combinations
from math import prod
from typing import Any

import torch

from prune.graph.tracker import ChannelTracker, Vector, shape_of
from prune.program.operators import module_path, where, within
from prune.program.sizes import OPEN, Attribute, Origin, Read, evaluate, leaves, origins_of

Origins = tuple[Origin, ...]
Leaf = Read | Attribute


def view(tracker: ChannelTracker, node: Any) -> Vector | None:
    """Another shape: the channels stay in one dimension of it. Those that would have to share one are tied."""
    vector, origins = tracker.vector(node.args[0]), origins_of(node)
    old, new = shape_of(node.args[0]), shape_of(node)
    if vector is None:
        tracker.fixed |= {leaf for leaf in _leaves(origins) if isinstance(leaf, Attribute)}
        if node not in tracker.constants:
            _keep_entering(tracker, node)
        return None
    if node in tracker.constants and prod(new) == len(vector.atoms) in new:  # (C,) -> (1, C, 1, 1)
        return Vector(list(new).index(len(vector.atoms)), vector.atoms)
    start, end, first, last = _block(old, new, vector.dim)
    places = torch.arange(old[vector.dim]).view(-1, *[1] * (end - vector.dim - 1)).expand(old[start:end])
    places = places.reshape(new[first:last])
    wide = [dim for dim in range(first, last) if new[dim] > 1] or [first]
    for dim in _preferred(wide, new, origins):
        slices = places.movedim(dim - first, 0)
        moved = _follow(tracker, node, vector, slices if len(wide) == 1 else slices.flatten(1), dim, origins)
        if moved is not None:
            return moved
    return tracker.give_up(node, f"channels are reshaped {where(node)}")


def _leaves(origins: Origins | None) -> set[Leaf]:
    return set().union(*map(leaves, origins or ()))


def _block(old: Any, new: Any, dim: int) -> tuple[int, int, int, int]:
    """The fewest dimensions around `dim` that become dimensions of their own: old[start:end] -> new[first:last]."""
    end = last = 0
    while True:
        start, first = end, last
        a, b = old[start], new[first]
        end, last = start + 1, first + 1
        while a != b:
            if a < b:
                a, end = a * old[end], end + 1
            else:
                b, last = b * new[last], last + 1
        if end == len(old) or last == len(new):  # what is left is of size 1
            return start, len(old), first, len(new)
        if dim < end:
            return start, end, first, last


def _preferred(dims: list[int], new: Any, origins: Origins | None) -> list[int]:
    """The dimensions that may carry the channels, the best first: that of heads, then one whose size is not stored."""
    if len(dims) == 1:
        return dims
    if origins is None:
        return []

    def rank(dim: int) -> int:
        own = leaves(origins[dim])
        if any(isinstance(leaf, Attribute) and leaf.value == new[dim] and _counts_heads(leaf.name) for leaf in own):
            return 0
        return 2 if any(isinstance(leaf, Attribute) for leaf in own) else 1

    return sorted((dim for dim in dims if not isinstance(origins[dim], int)), key=rank)


def _counts_heads(name: str) -> bool:
    return "head" in name and "dim" not in name


def _follow(
    tracker: ChannelTracker, node: Any, vector: Vector, slices: torch.Tensor, dim: int, origins: Origins | None
) -> Vector | None:
    """The channels of the view if dimension `dim` carries them; None if they cannot, and nothing is noted then.

    Args:
        tracker: Of the trace.
        node: The view.
        vector: The channels that enter it.
        slices: The places of `vector` that lie at each place of `dim`, (size, ...).
        dim: Of the view.
        origins: Of its sizes.
    """
    slices = slices.reshape(len(slices), -1)
    slice_of = torch.zeros(len(vector.atoms), dtype=torch.long)
    slice_of[slices] = torch.arange(len(slices))[:, None].expand(slices.shape)
    merged = slices.shape[1] == 1
    if not merged and not torch.equal(slice_of[slices], torch.arange(len(slices))[:, None].expand(slices.shape)):
        return None  # one channel lies at several places
    atoms = [vector.atoms[place] for place in slices[:, 0].tolist()]
    moved = Vector(dim, atoms)
    if origins is not None and not _sizes_follow(tracker, node, moved, origins):
        return None
    for row in slices.tolist() if not merged else ():
        first, *others = (vector.atoms[place] for place in row)
        tracker.atoms.unite([first] * len(others), others)
    return moved


def _sizes_follow(tracker: ChannelTracker, node: Any, moved: Vector, origins: Origins) -> bool:
    """Whether the shape follows a cut of `moved`, as it would follow twice its channels; what it takes is noted."""
    wanted = [size * (1 + (place == moved.dim)) for place, size in enumerate(shape_of(node))]
    known = {
        leaf: tracker.vector(tracker.reads.get(leaf.tensor)) for leaf in _leaves(origins) if isinstance(leaf, Read)
    }
    read = {leaf: vector.atoms for leaf, vector in known.items() if vector is not None and vector.dim == leaf.dim}
    stored = {leaf for leaf in _leaves(origins) if isinstance(leaf, Attribute)}
    free: list[Leaf] = [*read, *sorted(stored - tracker.elsewhere)]
    for count in range(len(free) + 1):
        for chosen in combinations(free, count):
            values = {leaf: 2 * evaluate(leaf, {}) for leaf in chosen}
            if all(each == OPEN or evaluate(each, values) == size for each, size in zip(origins, wanted, strict=True)):
                _note(tracker, node, moved, set(chosen), read, stored)
                return True
    return False


def _note(
    tracker: ChannelTracker,
    node: Any,
    moved: Vector,
    chosen: set[Leaf],
    read: dict[Read, list[int]],
    stored: set[Attribute],
) -> None:
    """What the sizes are read from loses the same share of its channels, or nothing."""
    for leaf, atoms in read.items():
        if leaf in chosen:
            tracker.proportions.append((atoms, moved.atoms))
        else:
            tracker.atoms.freeze(atoms, f"a tensor {where(node)} is given its width")
    for each in stored:
        if each in chosen:
            tracker.attributes.setdefault(each, []).append(moved.atoms)
        else:
            tracker.fixed.add(each)


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
