"""Operators of a trace: what they are called, where one ran, and whose weights it computes with.

Surgery can cut plain parameters that one layer alone uses, and no others.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

# Operator -> the module that surgery can cut, and what this module calls the operator's arguments after the input.
CUTTABLE: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv2d": (nn.Conv2d, ("weight", "bias")),
    "conv_transpose2d": (nn.ConvTranspose2d, ("weight", "bias")),
    "linear": (nn.Linear, ("weight", "bias")),
    "batch_norm": (_BatchNorm, ("weight", "bias", "running_mean", "running_var")),
}


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


class Owners:
    """Finds the module that a node of an exported graph belongs to.

    A module may be registered under several names. It goes by the first of them, the one that `named_modules()` lists.

    Args:
        model: The model that was exported.
        signature: Of the exported graph.

    Attributes:
        paths: Placeholder in the graph -> path of the parameter or buffer of the user's model that it stands for.
    """

    def __init__(self, model: nn.Module, signature: ExportGraphSignature) -> None:
        state_names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.paths = {placeholder: name.removeprefix("net.") for placeholder, name in state_names.items()}
        self._parameters = frozenset(signature.inputs_to_parameters)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names = {module: name for name, module in model.named_modules()}
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._tensors = dict(state)
        self._aliases: dict[Tensor, list[str]] = {}  # tensor -> every path that leads to it
        for path, tensor in state:
            self._aliases.setdefault(tensor, []).append(path)

    def module(self, node: Node) -> tuple[str, nn.Module]:
        """The module in whose forward the node ran, and its name."""
        module = self._modules[module_path(node)]
        return self._names[module], module

    def parameter(self, node: Node) -> str | None:
        """Path of the parameter that a placeholder stands for; None if it is none, or goes by several names."""
        path = self.paths.get(node.name)
        alone = path is not None and len(self._aliases[self._tensors[path]]) == 1
        return path if node.name in self._parameters and alone else None

    def layer(self, node: Node, operator: str) -> tuple[str, str | None]:
        """Name of the module that computes a node of a `CUTTABLE` operator; and why it cannot be cut, None if it can."""
        name, module = self.module(node)
        kind, attributes = CUTTABLE[operator]
        for position, attribute in enumerate(attributes[: len(node.args) - 1], 1):
            reason = self._obstacle(node, position, attribute, module)
            if reason is not None:
                return name, reason
        if not isinstance(module, kind):
            return name, f"the weights {where(node)} are those of {type(module).__name__}, which surgery does not know"
        return name, None

    def _obstacle(self, node: Any, position: int, attribute: str, module: nn.Module) -> str | None:
        """Why an argument of the node is no plain parameter or buffer of `module` that nothing else uses."""
        tensor = node.args[position]
        if not isinstance(tensor, Node):
            return None
        if tensor.name not in self.paths:
            return f"the weights {where(node)} are computed"
        for path in self._aliases[self._tensors[self.paths[tensor.name]]]:
            owner, _, name = path.rpartition(".")
            if self._modules[owner] is not module or name != attribute:
                return f"the weights {where(node)} are '{path}'"
        for user in tensor.users:
            alike = user.target is node.target and user.args[position] is tensor
            if not alike or self.module(user)[1] is not module:
                return f"the weights of '{self._names[module]}' are used {where(user)} too"
        return None
