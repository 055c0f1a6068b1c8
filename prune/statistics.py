"""What the layers see and how much the outputs feel it, from unlabelled images.

A *sensitivity* is a function of the raw outputs that returns a scalar whose squared gradient, in expectation, is the
Gauss-Newton diagonal of the distance between the outputs and slightly changed ones: noise shaped by the outputs' own
metric. `gaussian` serves any model; a detection head has better ones, which the caller passes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.importance import Progress, Sensitivity
from prune.raw import raw_copy, tensors

BATCH = 16  # images per forward pass, where a tensor of images is given


def gaussian(outputs: Any) -> Tensor:
    """The sensitivity for a model of which nothing is known: every output counts the same."""
    return sum((z.float() * torch.randn_like(z, dtype=torch.float32)).sum() for z in tensors(outputs))  # type: ignore[return-value]


def as_batches(images: Tensor | Iterable[Tensor], size: int = BATCH) -> list[Tensor]:
    """Images as a list of batches: a tensor (N, C, H, W) is cut into `size` images each, an iterable is kept as it is.

    Raises:
        PruneError: There is no image.
    """
    batches = list(images.split(size)) if isinstance(images, Tensor) else list(images)
    if not batches or not all(isinstance(b, Tensor) and len(b) for b in batches):
        raise PruneError("no images: give a (N, C, H, W) tensor or an iterable of such batches")
    return batches


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from `seed`; afterwards the caller's random state is as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def gradients(
    model: nn.Module,
    layers: Iterable[str],
    batches: list[Tensor],
    sensitivity: Sensitivity,
    visit: Callable[[int, str, nn.Module, Tensor, Tensor], None],
    seed: int = 0,
    progress: Progress | None = None,
    label: str = "statistics",
) -> None:
    """Run every batch forward and back; call `visit(batch index, layer, module, input, output gradient)` for each layer.

    Layers are visited as the backward pass reaches them, so that no more than one is held at a time. `model` is not
    changed: a copy runs, whose parameters take no gradient. The random state of the caller is left as it was.
    """
    model = raw_copy(model)
    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    current = 0

    def hook(name: str) -> Callable:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda grad: visit(current, name, module, x, grad))

        return forward

    for name in layers:
        modules[name].register_forward_hook(hook(name))
    with seeded(device, seed), torch.enable_grad():
        for current, batch in enumerate(batches if progress is None else progress(batches, label, len(batches))):
            x = batch.to(device, torch.float32).requires_grad_(True)  # the only leaf: gradients of activations alone
            sensitivity(model(x)).backward()
