"""Atoms: single channels of single tensors, joined when they must live and die together."""

from __future__ import annotations

from collections.abc import Iterable


class Atoms:
    """Union-find over atoms, with where each was made and why some may not be cut.

    Attributes:
        labels: Per atom, ("layer", n) for the layer that made it and ("part", n, i) for each split it went through.
        reasons: Atom -> why it may not be cut.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.labels: list[list[tuple]] = []
        self.reasons: dict[int, str] = {}

    def fresh(self, count: int, label: tuple) -> list[int]:
        """That many new atoms."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self.labels.extend([label] for _ in range(count))
        return list(range(start, start + count))

    def root(self, atom: int) -> int:
        """The atom that stands for all that are joined with this one."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self) -> list[int]:
        """The root of every atom."""
        return [self.root(a) for a in range(len(self._parent))]

    def unite(self, a: list[int], b: list[int]) -> None:
        """Join two vectors position by position."""
        for x, y in zip(a, b, strict=True):
            x, y = self.root(x), self.root(y)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def tie(self, atoms: list[int], parts: int) -> None:
        """Join the i-th atoms of all parts of a vector cut into equal parts."""
        size = len(atoms) // parts
        for part in range(1, parts):
            self.unite(atoms[:size], atoms[part * size : (part + 1) * size])

    def freeze(self, atoms: Iterable[int], reason: str) -> None:
        """These may not be cut; the first reason given is kept."""
        for atom in atoms:
            self.reasons.setdefault(atom, reason)
