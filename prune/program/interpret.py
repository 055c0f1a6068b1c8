"""Run a model operator by operator, on its live weights, with a visitor that may replace any value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from prune.adapter import PLAIN, Adapter
from prune.program.operators import CUTTABLE, Owners, operator_name
from prune.program.raw import export, tensors

Visitor = Callable[[Node, Any, dict[Node, Any]], Any]


class Program:
    """The exported graph of `model` at the shape of `example_input`, in the mode that `model` is in.

    Weights and buffers are read from `model` when an operator runs, so changes made on the way are seen.
    """

    def __init__(self, model: nn.Module, example_input: Tensor, adapter: Adapter = PLAIN) -> None:
        exported = export(model, example_input, adapter)
        self.model, self.adapter = model, adapter
        self._owners = Owners(model, exported.graph_signature)
        self.images, self._others = len(example_input), {example_input.shape: self}
        self._constants = {
            placeholder: exported.constants[name].to(example_input.device)
            for placeholder, name in exported.graph_signature.inputs_to_lifted_tensor_constants.items()
        }
        self.nodes = list(exported.graph.nodes)
        self.number = {node: i for i, node in enumerate(self.nodes)}
        self.last_use: dict[Node, Node] = {n: node for node in self.nodes for n in node.all_input_nodes}

    def at(self, x: Tensor) -> Program:
        """The program for inputs of the shape of `x`: a graph holds for one shape only."""
        if x.shape not in self._others:
            self._others[x.shape] = Program(self.model, x, self.adapter)
        return self._others[x.shape]

    def layer(self, node: Node) -> str | None:
        """Path of the convolution, linear layer or BatchNorm that this node computes; None if surgery cannot cut it."""
        if node.op != "call_function" or operator_name(node) not in CUTTABLE:
            return None
        name, reason = self._owners.layer(node, operator_name(node))
        return name if reason is None else None

    def placeholder(self, node: Node, x: Tensor) -> Tensor:
        """The value of a placeholder: a weight, a buffer, a constant, or a copy of the input, which a model may change."""
        if path := self._owners.paths.get(node.name):
            owner, _, name = path.rpartition(".")
            return getattr(self.model.get_submodule(owner), name)
        return self._constants[node.name] if node.name in self._constants else x.clone()

    def live_bytes(self, count: int) -> int:
        """Memory of the values that are still needed when `count` nodes are computed, weights left out."""
        return sum(
            _bytes(node)
            for node in self.nodes[:count]
            if node.op == "call_function" and node in self.last_use and self.number[self.last_use[node]] >= count
        )

    def backward_bytes(self) -> int:
        """Memory that a pass forward holds for the pass back: every value that is no view of another. A bound, and close."""
        return sum(_bytes(node) for node in self.nodes if node.op == "call_function" and not _is_view(node))

    def run(self, x: Tensor, visit: Visitor | None = None) -> list[Tensor]:
        """Outputs for `x`, which has the example's shape.

        `visit(node, value, values)` is called after every operator, with its value and those that are still needed, its
        inputs among them. It returns the value to go on with.
        """
        values: dict[Node, Any] = {}
        for node in self.nodes[:-1]:
            if node.op == "placeholder":
                values[node] = self.placeholder(node, x)
            else:
                values[node] = compute(node, values)
            if visit is not None and node.op == "call_function":
                values[node] = visit(node, values[node], values)
            for used in node.all_input_nodes:
                if self.last_use[used] is node:
                    del values[used]
        return [values[n] for n in self.nodes[-1].all_input_nodes]  # the last node is the output


def compute(node: Node, values: dict[Node, Any]) -> Any:
    """Run one operator on the values of its inputs."""
    if node.op == "get_attr":  # a graph of its own, of what ran under `torch.no_grad()`
        return getattr(node.graph.owning_module, str(node.target))
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _bytes(node: Node) -> int:
    """Memory of what an operator gives; a number that it reads off a tensor takes none."""
    return sum(v.numel() * v.element_size() for v in tensors(node.meta.get("val")))


def _is_view(node: Node) -> bool:
    """Whether the operator's value is its input's memory. One in place is not: autograd copies what it overwrites."""
    if not isinstance(node.target, OpOverload):  # getitem
        return True
    aliases = [returned.alias_info for returned in node.target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
