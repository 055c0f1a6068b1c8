"""Channels on their way through a traced network: what every rule reads and writes.

An *atom* is one channel of one tensor. Atoms that must live and die together are united.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from prune.adapter import Adapter
from prune.graph.graph import Layer, Split
from prune.program.operators import Owners, module_path
from prune.program.sizes import Attribute


class Vector(NamedTuple):
    """The channels of one tensor: the dimension that carries them, and the atom at each position of it."""

    dim: int
    atoms: list[int]


class Atoms:
    """Union-find over atoms.

    Attributes:
        labels: Per atom, ("layer", n) for the layer that made it and ("part", n, i) for each split it went through.
        reasons: Atom -> why it may not be cut.
        decisive: Reasons that no other operator could take away: they are the ones to show.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.labels: list[list[tuple]] = []
        self.reasons: dict[int, str] = {}
        self.decisive: set[str] = set()

    def fresh(self, count: int, label: tuple) -> list[int]:
        """That many new atoms."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self.labels.extend([label] for _ in range(count))
        return list(range(start, start + count))

    def root(self, atom: int) -> int:
        """The atom that stands for all that are united with this one."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self) -> list[int]:
        """The root of every atom."""
        return [self.root(a) for a in range(len(self._parent))]

    def unite(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Unite two vectors position by position."""
        for x, y in zip(a, b, strict=True):
            x, y = self.root(x), self.root(y)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def tie(self, atoms: list[int], parts: int) -> None:
        """Unite the i-th atoms of all parts of a vector that is cut into equal parts."""
        size = len(atoms) // parts
        for part in range(1, parts):
            self.unite(atoms[:size], atoms[part * size : (part + 1) * size])

    def freeze(self, atoms: Iterable[int], reason: str, decisive: bool = False) -> None:
        """These may not be cut; the first reason given is kept, or the first decisive one."""
        self.decisive |= {reason} if decisive else set()
        for atom in atoms:
            if self.reasons.setdefault(atom, reason) not in self.decisive:
                self.reasons[atom] = reason if decisive else self.reasons[atom]

    def frozen(self, roots: list[int]) -> dict[int, str]:
        """Root -> why it may not be cut, by the root of every atom."""
        frozen: dict[int, str] = {}
        for atom, reason in self.reasons.items():
            if frozen.get(roots[atom]) not in self.decisive:
                frozen[roots[atom]] = reason
        return frozen


def shape_of(node: Any) -> torch.Size:
    """The shape of a node's tensor."""
    return node.meta["val"].shape


class ChannelTracker:
    """The channels at one point of the trace.

    Attributes:
        atoms: Every channel so far.
        vectors: Node -> the channels of its tensor; None if it has none, or if they cannot be followed.
        lists: Node that gives several tensors -> the vector of each.
        owners: Finds the module of a node.
        adapter: Of the model.
        layers: Path -> layer, with atoms for channels.
        norms: Path of a BatchNorm -> (atoms, affine).
        whole: Path of a layer that cannot be cut -> why; `layers` and `norms` lack it.
        parameters: Path of a parameter with a value for each channel -> its atoms.
        constants: Nodes that are parameters, or are made of nothing else.
        images: How many the trace is of.
        reads: Number of a tensor whose size the forward has read -> its node.
        elsewhere: Sizes and stored numbers that the forward uses for more than views.
        splits: Equal splits, of atoms.
        proportions: Atoms of tensors that must lose the same share of their channels.
        attributes: Whole number that a module stores -> atoms of tensors of which it must keep the share.
        fixed: Numbers that modules store and that must stay as they are.
        products: Matrix product -> its atoms; it takes as many FLOPs for each.
        lost: Node -> why the channels of its value cannot be followed.
    """

    def __init__(
        self, owners: Owners, adapter: Adapter, images: int, reads: Mapping[int, Node], elsewhere: AbstractSet[Any]
    ) -> None:
        self.images, self.reads, self.elsewhere = images, reads, elsewhere
        self.atoms, self.owners, self.adapter = Atoms(), owners, adapter
        self.vectors: dict[Node, Vector | None] = {}
        self.lists: dict[Node, list[Vector]] = {}
        self.layers: dict[str, Layer] = {}
        self.norms: dict[str, tuple[list[int], bool]] = {}
        self.whole: dict[str, str] = {}
        self.parameters: dict[str, list[int]] = {}
        self.constants: set[Node] = set()
        self.splits: list[Split] = []
        self.proportions: list[tuple[list[int], ...]] = []
        self.attributes: dict[Attribute, list[list[int]]] = {}
        self.fixed: set[Attribute] = set()
        self.products: dict[Node, list[int]] = {}
        self.lost: dict[Node, str] = {}

    def vector(self, value: Any) -> Vector | None:
        """The channels of an operator's argument."""
        return self.vectors.get(value) if isinstance(value, Node) else None

    def constant(self, node: Node) -> None:
        """Note a parameter, a buffer or a constant. A parameter with one dimension of values may be cut along it."""
        self.constants.add(node)
        path, shape = self.owners.parameter(node), shape_of(node) if "val" in node.meta else ()
        dims = [dim for dim, size in enumerate(shape) if size > 1]
        self.vectors[node] = None
        if path is not None and len(dims) == 1:
            self.parameters[path] = self.atoms.fresh(shape[dims[0]], ("parameter", path))
            self.vectors[node] = Vector(dims[0], self.parameters[path])

    def freeze(self, value: Any, reason: str) -> None:
        """None of the channels of a node's value may be cut."""
        for vector in [self.vectors.get(value), *self.lists.get(value, [])]:
            self.atoms.freeze(vector.atoms if vector else (), reason)

    def give_up(self, node: Node, reason: str) -> Vector | None:
        """Freeze everything that enters the operator, and return None: what leaves it cannot be followed."""
        for value in node.all_input_nodes:
            self.freeze(value, reason)
        self.lost[node] = reason
        return None

    def why_lost(self, node: Node) -> str:
        """Why the channels of a node's value cannot be followed: the reason of what it is made from, if it has none."""
        seen, waiting = {node}, [node]
        while waiting:
            each = waiting.pop(0)
            if each in self.lost:
                return self.lost[each]
            waiting += [used for used in each.all_input_nodes if used not in seen]
            seen.update(each.all_input_nodes)
        return "it is made from no channels"

    def keep_whole(self, node: Node, name: str, reason: str) -> None:
        """The layer `name` cannot be cut: all that enters it stays, weights that were made from channels too."""
        self.give_up(node, reason)
        self.whole.setdefault(name, reason)

    def entering(self, node: Node, x: Any, dim: int) -> list[int]:
        """Atoms that enter a layer, which reads channels along `dim` even if they cannot be followed to here."""
        vector = self.vector(x)
        if vector is not None and vector.dim == dim:
            return vector.atoms
        reason = f"the input of '{module_path(node)}' cannot be followed"
        self.freeze(x, reason)
        atoms = self.atoms.fresh(x.meta["val"].shape[dim], ("unknown",))
        self.atoms.freeze(atoms, reason)
        return atoms

    def add_split(self, owner: str, stored: bool, parts: list[list[int]]) -> None:
        """Parts stay equally wide. All stored splits of a module do together, for it stores one width."""
        same = (i for i, split in enumerate(self.splits) if stored and split.stored and split.owner == owner)
        index = next(same, len(self.splits))
        before = self.splits[index].parts if index < len(self.splits) else ()
        for number, part in enumerate(parts, len(before)):
            for atom in part:
                self.atoms.labels[atom].append(("part", index, number))
        self.splits[index : index + 1] = [Split(owner, stored, (*before, *map(tuple, parts)))]
