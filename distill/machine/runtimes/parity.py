"""Whether an exported network computes what it did in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import RUNTIMES

# Fused convolutions and reordered sums move a float32 output by about 1e-6 of its scale, measured on YOLOv5 and YOLOv8;
# a wrong layout, a dropped layer or half precision moves it by far more than this.
PARITY_TOLERANCE = 1e-3


def check_parity(file: Path, format: str, reference: nn.Module, image: Tensor) -> float | None:
    """Run one image through the exported file and through the PyTorch model.

    Args:
        file: what was exported.
        format: "onnx", "openvino" and "torchscript" are run; others are not checked.
        reference: the model in evaluation mode, on the CPU, in float32.
        image: `(1, C, H, W)` float32 in [0, 1], of the size that was exported.

    Returns:
        The difference as `compare_outputs` defines it; None if the format cannot be run here.

    Raises:
        DistillError: the difference exceeds `PARITY_TOLERANCE`, or the file cannot be run.
    """
    run = _RUNNERS.get(format)
    if run is None:
        return None
    with torch.no_grad():
        expected = _deployed(reference(image))
    try:
        actual = run(file, image)
    except Exception as error:  # a runtime's own exceptions share no base class
        raise DistillError(f"{file.name}: exported, but it does not run: {first_line(error)}") from error
    alike = len(actual) == len(expected)
    differences = (compare_outputs(*pair) for pair in zip(actual, expected, strict=True))
    difference = max(differences) if alike else float("inf")
    if not difference <= PARITY_TOLERANCE:  # written so that NaN fails
        raise DistillError(
            f"{file.name}: not kept, its output differs from the PyTorch model's by {difference:.2g} of its scale, more than "
            f"{PARITY_TOLERANCE:g}; try another version of {format}"
        )
    return difference


def compare_outputs(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the scale of the output channel it is in.

    The scale of a channel is its largest magnitude in `expected`, at least 1: box coordinates (hundreds of pixels) are
    compared in relative terms and scores (0 to 1) in absolute ones, so neither hides behind the other.

    Shapes:
        actual, expected: `(B, channels, ...)`. Different shapes give infinity.
    """
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = (t.double().transpose(0, 1).flatten(1) for t in (actual, expected))  # (channels, B·...)
    scale = expected.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return ((actual - expected).abs() / scale).max().item()


def _run_in(runtime: Runtime, file: Path, image: Tensor) -> list[Tensor]:
    return runtime.open(file, torch.get_num_threads())(image)


def _run_torchscript(file: Path, image: Tensor) -> list[Tensor]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls the whole format deprecated; it was asked for
        output = torch.jit.load(str(file), map_location="cpu")(image)
        return [output] if isinstance(output, Tensor) else list(output)


_RUNNERS: dict[str, Callable[[Path, Tensor], list[Tensor]]] = {
    "torchscript": _run_torchscript,
    **{runtime.format: partial(_run_in, runtime) for runtime in RUNTIMES},
}


def _deployed(output: Any) -> list[Tensor]:
    """A network in evaluation mode answers (what deploys, raw outputs); what deploys is boxes and scores, or these and masks."""
    first = output if isinstance(output, Tensor) else output[0]
    return [first] if isinstance(first, Tensor) else list(first)
