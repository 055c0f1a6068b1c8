"""Paths of the modules in a trace, as the user's model has them.

torch.export goes by the way on which a forward got hold of a module: `self.layers[1:]` is a container that it calls
`layers.slice(1, None, None)`, and a `ModuleList` numbers what is in its slices anew.
"""

from __future__ import annotations

from ast import literal_eval

from torch import nn
from torch.fx import Graph


def name_modules(graph: Graph, root: nn.Module) -> None:
    """Let every node of an exported graph name the modules that it ran in by paths that `root` has."""
    names = {name: name for name, _ in root.named_modules(remove_duplicate=False)}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        for key, (path, kind) in stack.items():
            if path not in names:
                names[path] = _without_slices(root, path)
            stack[key] = names[path], kind


def _without_slices(root: nn.Module, path: str) -> str:
    """The path of the same module by its own name; of a slice, or of what is none of the model's, the module around it."""
    found, module = "", root
    children = {name: (name, child) for name, child in root._modules.items()}
    for part in path.split("."):
        if part.startswith("slice("):
            chosen = list(children.items())[slice(*literal_eval(part.removeprefix("slice")))]
            numbered = isinstance(module, nn.ModuleList)
            children = {str(i) if numbered else name: child for i, (name, child) in enumerate(chosen)}
        elif part in children:
            found, module = children[part]  # type: ignore[assignment]
            children = {name: (f"{found}.{name}", child) for name, child in module._modules.items()}
        else:
            break
    return found
