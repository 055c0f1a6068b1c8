"""Passes forward and back over unlabelled images, and the sensitivity of the outputs to each layer inside.

A *sensitivity* is a function of the raw outputs that returns a scalar whose squared gradient, in expectation, is the
Gauss-Newton diagonal of the distance between the outputs and slightly changed ones: noise shaped by the outputs' own
metric. `gaussian` serves any model; a caller who knows what the outputs mean passes in a better one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.errors import PruneError
from prune.program.geometry import capped, geometry_of, sample_positions
from prune.program.interpret import Program
from prune.program.operators import operator_name
from prune.program.raw import refill, tensors

BATCH = 16  # images per batch, if a tensor of images is given
# Bytes that one pass may hold for the way back; a batch that takes more runs in several passes. 16 images of a small
# detector at 640 px take 5.7 GB, those of a large one 23.6 GB.
MEMORY = 8 * 2**30

POSITIONS = 8192  # sampled per batch, of each call of a layer

UNREACHED = "no gradient gets from the outputs to a layer: choose an importance that needs none (bn_scale, l1)"
UNKNOWN = "no gradient gets from the outputs to the layers that read them (l1 and bn_scale need none)"

Weights = dict[tuple[int, int], Tensor]  # (batch, number of the node) -> (sampled positions,)
Sensitivity = Callable[[Any], Tensor]  # raw outputs -> scalar
Progress = Callable[[Iterable, str, int, str], Iterable]  # (items, label, their number, what they are) -> the items
GradientTap = Callable[[Program, Node, dict[Node, Any]], Callable[[Tensor], None] | None]


def no_progress(items: Iterable, label: str, total: int, unit: str = "") -> Iterable:
    """What reports progress if nobody listens."""
    return items


def gaussian(outputs: Any) -> Tensor:
    """The sensitivity if nobody knows what the outputs mean: every output counts the same."""
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


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are.

    Raises:
        PruneError: They are not float32, the type that everything is computed in.
    """
    device = torch.device("cpu")
    for name, parameter in model.named_parameters():
        device = parameter.device
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise PruneError(
                f"'{name}' is {str(parameter.dtype).removeprefix('torch.')}: call .float() on the model first"
            )
    return device


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from `seed`; afterwards the caller's random state is as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def passes(program: Program, batch: Tensor) -> list[Tensor]:
    """The batch in parts of nearly one size, as few as `MEMORY` allows."""
    whole = program.at(batch)
    most = max(1, MEMORY * whole.images // max(whole.backward_bytes(), 1))
    return list(batch.split(ceil(len(batch) / ceil(len(batch) / most))))


def backward_with_taps(program: Program, batch: Tensor, sensitivity: Sensitivity, tap: GradientTap) -> None:
    """Run a batch forward and back, in `passes`. Gradients are those of activations alone: parameters take none.

    Args:
        program: Of a raw copy; run at the shape of each pass.
        batch: Images (N, C, H, W), on the device of the program.
        sensitivity: Raw outputs -> scalar.
        tap: Called as tap(program, node, values) after every operator whose value has a gradient; `values` are those of
            its inputs. It returns a function that is called with that gradient, or None.
    """
    for images in passes(program, batch):
        part = program.at(images)

        def visit(node: Node, value: Any, values: dict[Node, Any], part: Program = part) -> Any:
            if (
                operator_name(node) == "detach"
            ):  # for training only: the outputs depend on what is behind it all the same
                return values[node.args[0]]  # type: ignore[index]
            if isinstance(value, Tensor) and value.requires_grad:
                receive = tap(part, node, values)
                if receive is not None:
                    value.register_hook(receive)
            return value

        with torch.no_grad():
            structure = part.adapter.outputs(part.model(images[:1].clone()))  # a model may change its input
        with torch.enable_grad():
            outputs = part.run(images.detach().requires_grad_(True), visit)
            scalar = sensitivity(refill(structure, iter(outputs)))
            if scalar.requires_grad:  # else nothing on the way to the outputs can be differentiated
                scalar.backward()


@dataclass
class OutputSensitivity:
    """Squared gradients of the outputs by the outputs of each layer.

    Attributes:
        channels: Layer -> squared gradient of each output channel, (C_out,), summed over positions and calls, mean over
            images. A layer is missing if no gradient reaches it, or only zeros, as behind a rounding.
        weights: (batch, number of the node that calls a layer) -> weights of its sampled positions: squared gradient,
            summed over channels, scaled to mean 1 over all positions of all calls of the layer in the batch, and capped.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


def measure_sensitivity(
    program: Program,
    layers: Collection[str],
    batches: list[Tensor],
    sensitivity: Sensitivity,
    seed: int = 0,
    progress: Progress = no_progress,
    label: str = "sensitivity",
) -> OutputSensitivity:
    """Run every batch forward and back. The random state of the caller is left as it was.

    Args:
        program: Of a raw copy, at the shape of any of the batches.
        layers: Paths of the layers to measure.
        batches: Images (N, C, H, W), on any device.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        seed: Of the noise and of the sampled positions.
        progress: Called as progress(batches, label, total, unit).
        label: What is being done.

    Raises:
        PruneError: A gradient is not finite.
    """
    result = OutputSensitivity()
    device = device_of(program.model)
    with seeded(device, seed):
        for index, batch in enumerate(progress(batches, label, len(batches), "batches")):
            squares: dict[str, dict[int, list[Tensor]]] = {}  # layer -> call -> per pass, of every position

            def tap(part: Program, node: Node, _: dict[Node, Any], squares: dict = squares) -> Any:
                name = part.layer(node)
                if name is None or name not in layers:
                    return None
                dim, calls = geometry_of(node).dim, squares.setdefault(name, {})
                return lambda gradient: add(name, dim, calls.setdefault(part.number[node], []), gradient)

            def add(name: str, dim: int, call: list[Tensor], gradient: Tensor) -> None:
                squared = gradient.float().square()
                channels = squared.sum([d for d in range(squared.dim()) if d != dim % squared.dim()]).cpu()
                result.channels[name] = result.channels[name] + channels if name in result.channels else channels
                call.append(squared.sum(dim).flatten())

            backward_with_taps(program, batch.to(device, torch.float32), sensitivity, tap)
            for calls in filter(None, squares.values()):
                each = {number: torch.cat(parts) for number, parts in calls.items()}
                weights = capped(torch.cat(list(each.values()))).split([len(w) for w in each.values()])
                for number, weight in zip(each, weights, strict=True):
                    positions = sample_positions(len(weight), POSITIONS, seed + index)
                    result.weights[index, number] = weight[positions.to(weight.device)]
    images = sum(map(len, batches))
    result.channels = {name: channels / images for name, channels in result.channels.items() if channels.any()}
    for name, channels in result.channels.items():
        if not channels.isfinite().all():
            raise PruneError(f"the gradient at '{name}' is not finite: look for NaN in the images and in the weights")
    return result
