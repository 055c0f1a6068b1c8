"""Raw outputs of a network: what its last layers compute, before a detection head decodes it.

Decoding is not what pruning must keep exact, and it hides the channels: a YOLO head in eval mode builds anchors, takes
a softmax and reshapes. The same head in train mode returns the tensors of its convolutions, so only that one module is
switched; every BatchNorm stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_detection_head(module: nn.Module) -> bool:
    """True for a YOLO-like head, told by what every one of them has: classes, levels and strides."""
    return all(hasattr(module, name) for name in ("nc", "nl", "stride"))


def set_raw(model: nn.Module) -> nn.Module:
    """Switch `model` to eval mode with its detection head, if it has one, emitting raw outputs. Returns `model`."""
    model.eval()
    for module in model.modules():
        if is_detection_head(module):
            module.training = True  # this flag alone: its children stay in eval mode
    return model


@contextmanager
def emitting_raw(model: nn.Module) -> Iterator[None]:
    """`set_raw` for a while: afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    set_raw(model)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def raw_copy(model: nn.Module) -> nn.Module:
    """A deep copy of `model` that emits raw outputs and whose parameters take no gradient."""
    return set_raw(copy.deepcopy(model)).requires_grad_(False)


def tensors(outputs: Any) -> list[Tensor]:
    """The output tensors in a fixed order. A head's `feats` are its inputs handed through: not outputs, so left out."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [t for key in outputs if not _handed_through(outputs, key) for t in tensors(outputs[key])]
    if isinstance(outputs, (list, tuple)):
        return [t for value in outputs for t in tensors(value)]
    return []


def refill(outputs: Any, values: Iterator[Tensor]) -> Any:
    """`outputs` with the tensors that `tensors` lists replaced by `values`, one after another."""
    if isinstance(outputs, Tensor):
        return next(values)
    if isinstance(outputs, Mapping):
        return {
            key: value if _handed_through(outputs, key) else refill(value, values) for key, value in outputs.items()
        }
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):  # a named one
        return type(outputs)(*(refill(value, values) for value in outputs))
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(refill(value, values) for value in outputs)
    return outputs


def _handed_through(outputs: Mapping, key: Any) -> bool:
    """Whether a detection head's raw outputs have its inputs under this key; any other network may call an output so."""
    return key == "feats" and ("maps" in outputs or {"boxes", "scores"} <= outputs.keys())


class RawOutputs(nn.Module):
    """`model` as a function from one tensor to a tuple of raw output tensors, which is what torch.export takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.net(x)))


def export(model: nn.Module, example_input: Tensor) -> torch.export.ExportedProgram:
    """Trace `model` in the mode that it is in. Paths in the result start with `net.`."""
    return torch.export.export(RawOutputs(model), (example_input,), strict=False)
