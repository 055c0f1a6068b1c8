"""Operators of a trace: what they are called, where one ran, and which dimension of its value holds channels."""

from __future__ import annotations

import operator
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node


def operator_name(node: Node) -> str:
    """`conv2d` for aten.conv2d.default, `mylib::scale` for one of another library. In-place variants lose their `_`."""
    if isinstance(node.target, OpOverload):
        return plain_name(node.target._schema.name)
    return "getitem" if node.target is operator.getitem else str(node.target)


def plain_name(target: Any) -> str:
    """The name of an operator that is given as `torch.ops.mylib.scale`, an overload of it, or a string."""
    name = target if isinstance(target, str) else str(target).replace(".", "::", 1)
    return name.removeprefix("aten::").partition(".")[0].rstrip("_")


def channel_dim(node: Node) -> int:
    """The dimension that holds channels in the output of a layer: -1 of a linear one, else 1."""
    return -1 if operator_name(node) == "linear" else 1


def in_place(node: Node) -> bool:
    """Whether the operator writes into its first input."""
    return isinstance(node.target, OpOverload) and node.target._schema.name.endswith("_")


def module_path(node: Node) -> str:
    """Path of the module whose forward ran this node, in the user's model; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("net").removeprefix(".")


def where(node: Node) -> str:
    """Where an operator stands, for messages."""
    return f"in '{path}'" if (path := module_path(node)) else "in the model's own forward"


def within(node: Node, owner: str) -> bool:
    """Whether the node ran in the forward of the module at `owner`, or of one inside it."""
    path = module_path(node)
    return not owner or path == owner or path.startswith(f"{owner}.")
