"""One rule per operator: how channels pass through it. What has no rule freezes what enters it, and says so."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node

from prune.graph.following import Vector
from prune.graph.layer_rules import LayerRules
from prune.program.interpret import operator_name
from prune.program.operators import POINTWISE, SPATIAL, module_path, where, within
from prune.program.owners import Owners, reads_width, stores_width


class Rules(LayerRules):
    """Follows channels through a graph, operator by operator.

    Attributes:
        chunks: (path of the module that splits, atoms of each part, whether it stores their width), for equal splits.
    """

    def __init__(self, owners: Owners) -> None:
        super().__init__(owners)
        self.chunks: list[tuple[str, list[list[int]], bool]] = []

    def input(self, node: Any) -> None:
        """The model's input: its channels stay."""
        shape = node.meta["val"].shape
        dim = 1 if len(shape) == 4 else len(shape) - 1
        self.vectors[node] = dim, self.atoms.fresh(shape[dim], ("input",))
        self._freeze(node, "the model's input")

    def output(self, node: Any) -> None:
        """The model's outputs: their channels stay."""
        for value in node.all_input_nodes:
            self._freeze(value, "an output of the model")

    def apply(self, node: Any) -> None:
        """Follow the channels through one operator."""
        name = "getitem" if node.target is operator.getitem else operator_name(node)
        rule: Callable[[Node], Vector | None] | None = getattr(self, f"_op_{name}", None)
        if rule is None and name in POINTWISE | SPATIAL:
            rule = self._pass if name in POINTWISE else self._over_space
        if rule is None or not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            rule = self._unknown
        self.vectors[node] = rule(node)

    def _pass(self, node: Any) -> Vector | None:
        if len(node.all_input_nodes) > 1:  # clamp and pow may take a tensor, with a value for each channel
            return self._unknown(node)
        return self._vector(node.all_input_nodes[0])  # the first argument of 2 ** x is a number

    def _over_space(self, node: Any) -> Vector | None:
        vector, rank = self._vector(node.args[0]), len(node.args[0].meta["val"].shape)
        if vector is not None and vector[0] >= rank - 2:  # a linear layer's channels stand last
            return self._give_up(node, f"channels are resized {where(node)}")
        return vector

    def _op_pad(self, node: Any) -> Vector | None:
        vector, amounts = self._vector(node.args[0]), node.args[1]
        if vector is None:
            return None
        dim, atoms = vector
        place = 2 * (len(node.meta["val"].shape) - 1 - dim)  # amounts are (before, after), from the last dimension on
        before, after = (*amounts, 0, 0)[place : place + 2] if place < len(amounts) else (0, 0)
        if before == after == 0:
            return vector
        if min(before, after) < 0 or (len(node.args) > 2 and node.args[2] in ("reflect", "replicate", "circular")):
            return self._give_up(node, f"channels are padded {where(node)}")
        added = self.atoms.fresh(before + after, ("padding",))
        self.atoms.freeze(added, f"channels are padded {where(node)}")  # as many are added whatever is cut
        return dim, [*added[:before], *atoms, *added[before:]]

    _op_constant_pad_nd = _op_pad

    def _op_add(self, node: Any) -> Vector | None:
        a, b = node.args[0], node.args[1]
        if not isinstance(b, Node):
            return self._vector(a)
        if not isinstance(a, Node):
            return self._vector(b)
        rank = len(node.meta["val"].shape)
        sides = [(v, len(n.meta["val"].shape)) for n in (a, b) if (v := self._vector(n)) is not None]
        dims = {v[0] + rank - r for v, r in sides}  # broadcasting aligns shapes from the right
        if len(dims) != 1:
            return self._give_up(node, f"the operands {where(node)} do not line up") if dims else None
        (dim,) = dims
        width = node.meta["val"].shape[dim]
        whole = [v for v, _ in sides if len(v[1]) == width]
        for n in (a, b):  # something without channels, as wide as they are: a constant cannot be cut with them
            offset = dim - rank + len(n.meta["val"].shape)
            if self._vector(n) is None and offset >= 0 and n.meta["val"].shape[offset] == width != 1:
                return self._give_up(node, f"a tensor {where(node)} cannot be followed")
        for v, _ in sides:
            if len(v[1]) != width:  # one channel broadcast over all of them must stay
                self.atoms.freeze(v[1], f"it is broadcast {where(node)}")
        if len(whole) == 2:
            self.atoms.unite(whole[0][1], whole[1][1])
        return dim, whole[0][1]

    _op_sub = _op_rsub = _op_mul = _op_div = _op_maximum = _op_minimum = _op_add

    def _op_cat(self, node: Any) -> Vector | None:
        dim = (node.args[1] if len(node.args) > 1 else 0) % len(node.meta["val"].shape)
        vectors = [v for n in node.args[0] if (v := self._vector(n)) is not None]
        if len(vectors) < len(node.args[0]) or len({v[0] for v in vectors}) != 1:
            return self._give_up(node, f"a tensor concatenated {where(node)} cannot be followed")
        if dim == vectors[0][0]:
            return dim, [atom for v in vectors for atom in v[1]]
        for v in vectors[1:]:
            self.atoms.unite(vectors[0][1], v[1])
        return vectors[0]

    def _op_chunk(self, node: Any, fixed: bool = False) -> None:
        vector, dim = self._vector(node.args[0]), node.args[2] if len(node.args) > 2 else 0
        parts = [value.shape for value in node.meta["val"]]
        if vector is None:
            return
        if dim % len(parts[0]) != vector[0]:
            self.lists[node] = [vector] * len(parts)
            return
        sizes = [shape[vector[0]] for shape in parts]
        pieces = [vector[1][sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        owner, module = self.owners.module(node)
        if len(set(sizes)) > 1:
            self._freeze(node.args[0], f"unequal split {where(node)}")
        elif fixed and not (stores_width(module, sizes[0]) and reads_width(module)):
            self._freeze(node.args[0], f"split at a fixed width {where(node)}")
        else:
            self._chunk(owner, pieces, stores_width(module, sizes[0]))
        self.lists[node] = [(vector[0], piece) for piece in pieces]

    def _chunk(self, owner: str, pieces: list[list[int]], stored: bool) -> None:
        """Parts that stay equally wide; all of a module that stores their width, for it stores one."""
        index = next((i for i, chunk in enumerate(self.chunks) if stored and chunk[::2] == (owner, True)), None)
        if index is None:
            index = len(self.chunks)
            self.chunks.append((owner, [], stored))
        together = self.chunks[index][1]
        for piece in pieces:
            for atom in piece:
                self.atoms.labels[atom].append(("part", index, len(together)))
            together.append(piece)

    def _op_split(self, node: Any) -> None:
        return self._op_chunk(node, fixed=True)

    _op_split_with_sizes = _op_split

    def _op_getitem(self, node: Any) -> Vector | None:
        source, index = node.args
        return self.lists[source][index] if source in self.lists else self._vector(source)  # pooled, or where from

    def _op_slice(self, node: Any) -> Vector | None:
        vector = self._vector(node.args[0])
        dim, start, end, step = (list(node.args[1:]) + [0, None, None, 1][len(node.args) - 1 :])[:4]
        if vector is None or dim % len(node.meta["val"].shape) != vector[0]:
            return vector
        taken = vector[1][slice(start, end, step)]
        if len(taken) < len(vector[1]):
            self._freeze(node.args[0], f"sliced at fixed positions {where(node)}")
        return vector[0], taken

    def _op_mean(self, node: Any) -> Vector | None:
        vector = self._vector(node.args[0])
        dims = node.args[1] if len(node.args) > 1 else None
        rank = len(node.args[0].meta["val"].shape)
        if vector is None or dims is None or vector[0] in [d % rank for d in dims]:
            return self._give_up(node, f"channels are reduced {where(node)}")
        keepdim = len(node.args) > 2 and node.args[2]
        return vector[0] - (0 if keepdim else sum(d % rank < vector[0] for d in dims)), vector[1]

    _op_sum = _op_amax = _op_mean

    def _op_view(self, node: Any) -> Vector | None:
        vector = self._vector(node.args[0])
        if vector is None:
            self._keep_entering(node)
            return None
        dim, atoms = vector
        old, new = node.args[0].meta["val"].shape, node.meta["val"].shape
        if old[: dim + 1] == new[: dim + 1]:  # only what stands after the channels is merged or split
            return vector
        if old[:dim] == new[:dim] and len(new) == dim + 1:  # (B, C, H, W) -> (B, C*H*W): one atom feeds H*W columns
            repeat = prod(old[dim + 1 :])
            return dim, [atom for atom in atoms for _ in range(repeat)]
        return self._give_up(node, f"channels are reshaped {where(node)}")

    def _keep_entering(self, node: Any) -> None:
        """A tensor that was lost is given a shape. Attention takes that from what enters it (`B, C, H, W = x.shape`), which
        a trace does not show: were x cut, the shape would not fit any more. So what enters this module stays."""
        owner = module_path(node)
        for inner in node.graph.nodes:
            if inner is node:
                return
            if within(inner, owner):
                for value in inner.all_input_nodes:
                    if not within(value, owner):
                        self._freeze(value, f"a tensor {where(node)} may be given its shape")

    _op_flatten = _op_reshape = _op__unsafe_view = _op_view
