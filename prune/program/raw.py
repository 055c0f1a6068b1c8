"""Raw outputs of a network: what its last layers compute, before a head decodes it.

Decoding is not what pruning must keep exact, and it hides the channels. What a model's raw outputs are, its
`prune.Adapter` says; a plain module's are all the tensors that it returns in eval mode.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prune.adapter import PLAIN, Adapter
from prune.errors import PruneError
from prune.program.paths import name_modules
from prune.program.sizes import SizeWatch


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes that it had: its mode, and what it caches for the size of an input."""
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def emitting_raw(model: nn.Module, adapter: Adapter = PLAIN) -> Iterator[None]:
    """For a while, `model` is in eval mode and returns its raw outputs."""
    with unchanged(model):
        adapter.expose(model.eval())
        yield


def raw_copy(model: nn.Module, adapter: Adapter = PLAIN) -> nn.Module:
    """A deep copy of `model` in eval mode that returns raw outputs and whose parameters take no gradient."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    adapter.expose(copied)
    return copied


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors in nested dicts, lists and tuples, in a fixed order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def refill(outputs: Any, values: Iterator[Tensor]) -> Any:
    """`outputs` with the tensors that `tensors` lists replaced by `values`, one after another."""
    return tree_map(lambda leaf: next(values) if isinstance(leaf, Tensor) else leaf, outputs)


class RawOutputs(nn.Module):
    """`model` as a function from one tensor to a tuple of raw output tensors, which is what torch.export takes."""

    def __init__(self, model: nn.Module, adapter: Adapter, watch: SizeWatch | None = None) -> None:
        super().__init__()
        self.net, self.adapter, self.watch = model, adapter, watch

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) -> raw outputs."""
        try:
            with nullcontext() if self.watch is None else self.watch.on(self.net):
                return tuple(tensors(self.adapter.outputs(self.net(x))))
        except RuntimeError as error:
            if "data-dependent" not in str(error):
                raise
            raise PruneError(_depends_on_values(error)) from error  # torch would print all that it has traced


def _depends_on_values(error: RuntimeError) -> str:
    """What to say of a step that no trace can follow, and where it is."""
    torchs = str(Path(torch.__file__).parent) + os.sep
    own = [frame for frame in extract_tb(error.__traceback__)[1:] if not frame.filename.startswith(torchs)]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name}" if own else "its forward"
    return (
        f"a step depends on the values of a tensor ({place}): let `expose` of an adapter make it return what comes before, or "
        "prune a part of it"
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """For a while, it says nothing: the error that follows says it better."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def export(
    model: nn.Module, example_input: Tensor, adapter: Adapter = PLAIN, watch: SizeWatch | None = None
) -> torch.export.ExportedProgram:
    """Trace `model` in the mode that it is in. Paths in the result start with `net.`.

    Args:
        model: A raw copy, say.
        example_input: What it is traced with.
        adapter: Of the model.
        watch: Notes where the sizes of views come from, unless the forward only runs on plain numbers.
    """
    # A head may cache a grid for the size of its input.
    with (
        warnings.catch_warnings(),
        _quiet(logging.getLogger("torch.fx.experimental.symbolic_shapes")),
        unchanged(model),
    ):
        warnings.filterwarnings("ignore", message=".*assigned during export")
        raw = RawOutputs(model, adapter, watch)
        try:
            exported = torch.export.export(raw, (example_input,), strict=False)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError):
            if watch is None:
                raise
            return export(model, example_input, adapter)
    name_modules(exported.graph, raw)
    return exported
