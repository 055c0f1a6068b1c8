"""The rules of layers: operators with weights, which make new channels or normalise those that come."""

from __future__ import annotations

from math import prod
from typing import Any

from prune.graph.following import Following, Vector
from prune.program.operators import module_path
from prune.program.owners import Owners


class LayerRules(Following):
    """Convolutions, linear layers and BatchNorms.

    Attributes:
        layers: Path -> fields of a `Layer`, with atoms for channels.
        norms: Path -> (atoms, affine).
        whole: Path -> why this layer cannot be cut, for those that are in neither of these.
        whole_flops: FLOPs per image of those.
    """

    def __init__(self, owners: Owners) -> None:
        super().__init__()
        self.owners = owners
        self.layers: dict[str, dict[str, Any]] = {}
        self.norms: dict[str, tuple[list[int], bool]] = {}
        self.whole: dict[str, str] = {}
        self.whole_flops = 0

    def _op_conv2d(self, node: Any) -> Vector | None:
        x, weight = node.args[0], node.args[1]
        shape, groups = weight.meta["val"].shape, node.args[6] if len(node.args) > 6 else 1
        vector = self._entering(node, x, 1)
        kind = "conv" if groups == 1 else "depthwise" if groups == shape[0] == len(vector[1]) else "grouped"
        if kind == "grouped":  # equally many per group: the i-th channels of all groups go together
            self.atoms.tie(vector[1], groups)
        outputs = self._layer(
            node, kind, vector[1], shape[0], prod(shape[2:]), prod(node.meta["val"].shape[2:]), groups
        )
        if kind == "grouped":
            self.atoms.tie(outputs, groups)
        return 1, outputs

    def _op_linear(self, node: Any) -> Vector | None:
        x, weight = node.args[0], node.args[1]
        rank = len(node.meta["val"].shape)
        vector = self._entering(node, x, rank - 1)
        positions = prod(node.meta["val"].shape[1:-1])
        return rank - 1, self._layer(node, "linear", vector[1], weight.meta["val"].shape[0], 1, positions, 1)

    def _entering(self, node: Any, x: Any, dim: int) -> Vector:
        """What enters a layer, which reads channels along `dim` whether or not they could be followed to here."""
        vector = self._vector(x)
        if vector is not None and vector[0] == dim:
            return vector
        reason = f"the input of '{module_path(node)}' cannot be followed"
        self._freeze(x, reason)
        atoms = self.atoms.fresh(x.meta["val"].shape[dim], ("unknown",))
        self.atoms.freeze(atoms, reason)
        return dim, atoms

    def _layer(self, node, kind, inputs, width, kernel, positions, groups) -> list[int]:
        name, why = self.owners.layer(node, "linear" if kind == "linear" else "conv2d")
        if why is not None:
            self.whole_flops += 2 * kernel * positions * (len(inputs) // groups) * width
            outputs = inputs if kind == "depthwise" else self.atoms.fresh(width, ("whole",))
            self.atoms.freeze([*inputs, *outputs], why)
            self._whole(node, name, why)
            return outputs
        bias = len(node.args) > 2 and node.args[2] is not None
        known = self.layers.get(name)
        if known:  # one module called twice: both calls read and write the same weights
            self.atoms.unite(known["inputs"], inputs)
            known["positions"] += positions
            return known["outputs"]
        outputs = inputs if kind == "depthwise" else self.atoms.fresh(width, ("layer", len(self.layers)))
        sizes = {"kernel": kernel, "positions": positions, "groups": groups}
        self.layers[name] = {"name": name, "kind": kind, "inputs": inputs, "outputs": outputs, "bias": bias, **sizes}
        return outputs

    def _whole(self, node: Any, name: str, why: str) -> None:
        """A module that cannot be cut: all that enters it stays, weights that were made from channels too."""
        self._give_up(node, why)
        self.whole.setdefault(name, why)

    def _op_batch_norm(self, node: Any) -> Vector | None:
        vector = self._vector(node.args[0])
        if vector is None:
            return None
        name, why = self.owners.layer(node, "batch_norm")
        if why is not None:
            self._whole(node, name, why)
            return vector
        if vector[0] != 1:  # a linear layer's channels stand last, and this one normalizes its tokens
            self._whole(node, name, f"'{name}' normalizes another dimension than that of the channels")
            return vector
        if name in self.norms:
            self.atoms.unite(self.norms[name][0], vector[1])
        self.norms[name] = (vector[1], node.args[1] is not None)
        return vector
