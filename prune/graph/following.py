"""Channels on their way through a graph: what every rule reads and writes."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from prune.graph.atoms import Atoms
from prune.program.operators import where

Vector = tuple[int, list[int]]  # (dimension that carries channels, atom id of each position)


class Following:
    """What is known of the channels so far.

    Attributes:
        atoms: Every channel that was met.
        vectors: Node -> what its channel dimension carries; None where there is none, or it was lost.
        lists: Node that gives several tensors -> the vector of each.
    """

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.vectors: dict[Node, Vector | None] = {}
        self.lists: dict[Node, list[Vector | None]] = {}

    def _freeze(self, value: Any, reason: str) -> None:
        for vector in [self.vectors.get(value), *self.lists.get(value, [])]:
            self.atoms.freeze(vector[1] if vector else (), reason)

    def _vector(self, value: Any) -> Vector | None:
        return self.vectors.get(value) if isinstance(value, Node) else None

    def _give_up(self, node: Any, reason: str) -> Vector | None:
        """Freeze everything that enters the operator; nothing is known of what leaves it."""
        for value in node.all_input_nodes:
            self._freeze(value, reason)
        return None

    def _unknown(self, node: Any) -> Vector | None:
        return self._give_up(node, f"{str(node.target).removeprefix('aten.')} {where(node)} has no rule")
