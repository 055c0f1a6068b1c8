"""Whose weights an operator computes with. Surgery can cut plain parameters that one layer alone uses, and no others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from prune.program.operators import module_path, where

# Operator -> the module that surgery can cut, and what this module calls the operator's arguments after the input.
CUTTABLE: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv2d": (nn.Conv2d, ("weight", "bias")),
    "linear": (nn.Linear, ("weight", "bias")),
    "batch_norm": (_BatchNorm, ("weight", "bias", "running_mean", "running_var")),
}


class Owners:
    """Finds the module that a node of an exported graph belongs to.

    A module may be registered under several names. It goes by the first of them, the one that `named_modules()` lists.

    Args:
        model: The model that was exported.
        paths: Placeholder in the graph -> path of the parameter or buffer.
    """

    def __init__(self, model: nn.Module, paths: dict[str, str]) -> None:
        self.paths = paths
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names = {module: name for name, module in model.named_modules()}
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._ids = {path: id(tensor) for path, tensor in state}
        self._aliases: dict[int, list[str]] = {}  # id of a tensor -> every path that leads to it
        for path, tensor in state:
            self._aliases.setdefault(id(tensor), []).append(path)

    def module(self, node: Node) -> tuple[str, nn.Module]:
        """The module in whose forward the node ran, and its name."""
        module = self._modules[module_path(node)]
        return self._names[module], module

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
        for path in self._aliases[self._ids[self.paths[tensor.name]]]:
            owner, _, name = path.rpartition(".")
            if self._modules[owner] is not module or name != attribute:
                return f"the weights {where(node)} are '{path}'"
        for user in tensor.users:
            alike = user.target is node.target and user.args[position] is tensor
            if not alike or self.module(user)[1] is not module:
                return f"the weights of '{self._names[module]}' are used {where(user)} too"
        return None
