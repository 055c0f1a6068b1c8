"""The widths of a network that was cut: what differs from its architecture, as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))

# Written beside every student. It is the same work as `resize`, in words that need nothing of this project.
LOADER = '''"""Load the network of this folder: `model = load()`. It needs {library} and torch, and nothing else."""

import json
import pathlib

import {library}
import torch


def load(folder=pathlib.Path(__file__).parent):
    about = json.loads((folder / "student.json").read_text())
    model = {create}(about["arch"], **about["options"])
    for path, attributes in about["attributes"].items():
        vars(model.get_submodule(path)).update(attributes)
    for name, shape in about["shapes"].items():
        module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        value = torch.zeros(shape, dtype=getattr(module, leaf).dtype)
        setattr(module, leaf, torch.nn.Parameter(value) if leaf in module._parameters else value)
    model.load_state_dict(torch.load(folder / "student.pt", weights_only=True)["state_dict"])
    return model.eval()
'''


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """The shape of every tensor of the state dict, by its name."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def attributes_of(model: nn.Module, whole: nn.Module) -> dict[str, dict[str, Any]]:
    """The attributes in which modules differ from those of the uncut network, by path: widths, groups, heads.

    Args:
        model: the network.
        whole: a new one of its architecture.
    """
    modules, found = dict(whole.named_modules()), {}
    for path, module in model.named_modules():
        before = vars(modules[path])
        changed = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name != "training" and _is_plain(value) and value != before.get(name)
        }
        if changed:
            found[path] = changed
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or isinstance(value, (tuple, list)) and all(map(_is_plain, value))


def resize(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Give a new network of an architecture the widths and the weights of one that was cut, in place.

    Raises:
        AttributeError, RuntimeError, KeyError: they are of another architecture.
    """
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            before = getattr(module, name)
            setattr(module, name, tuple(value) if isinstance(before, tuple) else value)
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        before = getattr(module, leaf)
        if before.shape != value.shape:
            empty = torch.zeros(value.shape, dtype=before.dtype)
            setattr(module, leaf, nn.Parameter(empty) if isinstance(before, nn.Parameter) else empty)
    model.load_state_dict(dict(state))
