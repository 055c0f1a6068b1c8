"""Whose weights an operator computes with. Surgery can cut plain parameters that one layer alone uses, and no others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from prune.program.operators import module_path, where

# Operator -> the module that surgery can cut, and what this module calls the operator's arguments after the input.
KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
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
        self._homes: dict[int, list[str]] = {}  # id of a tensor -> every path that leads to it
        for path, tensor in state:
            self._homes.setdefault(id(tensor), []).append(path)

    def module(self, node: Any) -> tuple[str, nn.Module]:
        """The module in whose forward the node ran, and its name."""
        module = self._modules[module_path(node)]
        return self._names[module], module

    def layer(self, node: Any, operator: str) -> tuple[str, str | None]:
        """Name of the module that computes a node of one of `KINDS`; and why it cannot be cut, None where it can."""
        name, module = self.module(node)
        known, attributes = KINDS[operator]
        for position, (value, attribute) in enumerate(zip(node.args[1:], attributes, strict=False), 1):
            why = self._why(node, position, attribute, module) if isinstance(value, Node) else None
            if why is not None:
                return name, why
        if not isinstance(module, known):
            kind = type(module).__name__
            return name, f"the weights {where(node)} are those of {kind}, which surgery does not know"
        return name, None

    def _why(self, node: Any, position: int, attribute: str, module: nn.Module) -> str | None:
        """Why this argument of the node is no plain parameter or buffer of `module` that nothing else uses."""
        tensor = node.args[position]
        if tensor.name not in self.paths:
            return f"the weights {where(node)} are computed"
        for path in self._homes[self._ids[self.paths[tensor.name]]]:
            home, _, name = path.rpartition(".")
            if self._modules[home] is not module or name != attribute:
                return f"the weights {where(node)} are '{path}'"
        for user in tensor.users:
            alike = user.target is node.target and user.args[position] is tensor
            if not alike or self.module(user)[1] is not module:
                return f"the weights of '{self._names[module]}' are used {where(user)} too"
        return None


def stores_width(module: nn.Module, width: int) -> bool:
    """Whether a module that splits channels has the width of a part as its `c`, as stock blocks (C2f and its kin) do."""
    c: Any = getattr(module, "c", None)
    return type(c) is int and c == width


def reads_width(module: nn.Module) -> bool:
    """Whether its forward reads `c`. A number written there, or stored elsewhere, would not change with the parts."""
    code: Any = getattr(module.forward, "__code__", None)
    return "c" in getattr(code, "co_names", ())
