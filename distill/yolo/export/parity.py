"""Is an exported network still the network that was exported? One image through both, and the outputs compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError, first_line
from distill.machine.words import nearest

# Fused convolutions and reordered sums move a float32 output by about 1e-6 of its scale, measured on YOLOv5 and YOLOv8;
# a wrong layout, a dropped layer or half precision moves it by far more than this.
PARITY_TOLERANCE = 1e-3

# What a format needs beyond torch and ultralytics, as (module to import, name for pip).
_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "onnx": (("onnx", "onnx"), ("onnxruntime", "onnxruntime")),
    "openvino": (("openvino", "openvino"),),
    "engine": (("tensorrt", "tensorrt"),),
    "coreml": (("coremltools", "coremltools"),),
    "ncnn": (("ncnn", "ncnn"),),
    "mnn": (("MNN", "MNN"),),
}


@dataclass(frozen=True)
class Exported:
    """One exported network.

    Attributes:
        format: the name it was asked for by, "onnx".
        file: the file, or the folder for formats that are one (OpenVINO, ncnn).
        size_mb: megabytes of 10^6 bytes.
        max_abs_diff: see `compare_outputs`; None for a format that cannot be run here.
    """

    format: str
    file: Path
    size_mb: float
    max_abs_diff: float | None

    def as_dict(self, run_dir: Path) -> dict[str, Any]:
        """The form it takes in results.json, its path relative to the run folder where it lies inside."""
        file = self.file.relative_to(run_dir) if self.file.is_relative_to(run_dir) else self.file
        return {**asdict(self), "file": file.as_posix()}


def check_formats(formats: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an unknown format, or one whose packages are missing, before the hours of work that come first.

    Raises:
        DistillError: the format is not in `known` (the message lists them), or names the pip command that it needs.
    """
    for name in formats:
        if name not in known:
            raise DistillError(f"export: unknown format '{name}'{nearest(name, known)}; known: {', '.join(known)}")
        missing = [package for module, package in _PACKAGES.get(name, ()) if find_spec(module) is None]
        if missing:
            raise DistillError(
                f"export: format '{name}' needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            )


def check_parity(file: Path, format: str, reference: torch.nn.Module, image: torch.Tensor) -> float | None:
    """Run one image through the exported file and through the PyTorch model.

    Args:
        file: what was exported.
        format: "onnx" and "torchscript" are run; others are not checked.
        reference: the model in evaluation mode, on the CPU, in float32.
        image: `(1, C, H, W)` float32 in [0, 1], of the size that was exported.

    Returns:
        The difference as `compare_outputs` defines it, None where the format cannot be run here.

    Raises:
        DistillError: the difference exceeds `PARITY_TOLERANCE`, or the file cannot be run.
    """
    run = _RUNNERS.get(format)
    if run is None:
        return None
    with torch.no_grad():
        expected = _first_tensor(reference(image))
    try:
        actual = run(file, image)
    except Exception as error:  # a runtime's own exceptions share no base class
        raise DistillError(f"{file.name}: exported, but it does not run: {first_line(error)}") from error
    difference = compare_outputs(actual, expected)
    if not difference <= PARITY_TOLERANCE:  # written so that NaN fails
        raise DistillError(
            f"{file.name}: not kept, its output differs from the PyTorch model's by {difference:.2g} of its scale, more than "
            f"{PARITY_TOLERANCE:g}; try another version of {format}"
        )
    return difference


def compare_outputs(actual: torch.Tensor, expected: torch.Tensor) -> float:
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


def _run_onnx(file: Path, image: torch.Tensor) -> torch.Tensor:
    import onnxruntime  # an optional package: see check_formats

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


def _run_torchscript(file: Path, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls the whole format deprecated; it was asked for
        return _first_tensor(torch.jit.load(str(file), map_location="cpu")(image))


_RUNNERS: dict[str, Callable[[Path, torch.Tensor], torch.Tensor]] = {"onnx": _run_onnx, "torchscript": _run_torchscript}


def _first_tensor(output: Any) -> torch.Tensor:
    """A detector in evaluation mode answers (decoded boxes and scores, raw outputs): the first is what deploys."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
