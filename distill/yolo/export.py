"""Exports a checkpoint through ultralytics' own exporter, and checks that the result computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.kinds.opened import Exported
from distill.machine.faults import machine_fault
from distill.machine.files import UNFINISHED, scratch_folder, write_atomically
from distill.machine.measure import file_size_mb
from distill.machine.words import nearest
from distill.yolo import upstream
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.fork import with_known_convolutions
from distill.yolo.families.table import family_of, stride_of
from distill.yolo.runtimes import openvino
from distill.yolo.runtimes.runtime import Runtime
from distill.yolo.runtimes.table import RUNTIMES

# Fused convolutions and reordered sums move a float32 output by about 1e-6 of its scale, measured on YOLOv5 and YOLOv8;
# a wrong layout, a dropped layer or half precision moves it by far more than this.
PARITY_TOLERANCE = 1e-3

# What a format needs beyond torch and ultralytics; each is imported by the name that pip knows it by.
_PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "engine": ("tensorrt",),
    "coreml": ("coremltools",),
    "ncnn": ("ncnn",),
    "mnn": ("MNN",),
}


def check_exports(formats: Iterable[str]) -> None:
    """Refuse an unknown format, or one whose packages are missing, before hours of work.

    Raises:
        DistillError: the message lists the formats, or gives the pip command that is needed.
    """
    supported = upstream.export_formats()
    for name in formats:
        if name not in supported:
            raise DistillError(
                f"export: unknown format '{name}'{nearest(name, supported)}; known: {', '.join(supported)}"
            )
        missing = [package for package in _PACKAGES.get(name, ()) if find_spec(package) is None]
        if missing:
            raise DistillError(
                f"export: format '{name}' needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            )


def export_checkpoint(
    path: Path, format: str, out_dir: Path, imgsz: int, *, trust: bool = False, code: Sequence[str | Path] = ()
) -> Exported:
    """Export one YOLO checkpoint and compare the result with it.

    The exporter writes beside the file it believes the model came from; that is a scratch folder here, and only the
    checked result moves into `out_dir`. The output has the layout of the family's own project, see `prepare_export`.

    Args:
        path: a `.pt` file, opened as `checkpoint.load` does.
        format: one of `upstream.export_formats()`.
        out_dir: where the result goes, named after the checkpoint; made if missing.
        imgsz: side of the square input in pixels; rounded up to a multiple of the largest stride, as ultralytics does.
        trust: see `checkpoint.load`.
        code: see `checkpoint.load`.

    Raises:
        DistillError: unknown format, missing package, a format this machine cannot make, or outputs that differ.
        RunError: the disk is full, or not writable.
    """
    check_exports([format])
    detector = checkpoint.load(path, trust=trust, code=code)
    model: Any = detector.model
    model.names = detector.names
    with_known_convolutions(model)
    family_of(model).prepare_export(model.model[-1])
    side = input_side(model, imgsz)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out_dir, UNFINISHED) as folder:
            model.pt_path = str(folder / path.name)
            draft = _export(model, format, imgsz)
            difference = check_parity(draft, format, model, image)
            result = out_dir / draft.name
            write_atomically(result, draft.rename)
    except DistillError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or format).split(".")[0]
        raise DistillError(f"export: format '{format}' needs {package}: pip install {package}") from error
    except Exception as error:  # asserts and errors of many packages: this export cannot be made here
        fault = machine_fault(error, out_dir)
        raise fault or DistillError(f"export: {path.name} to '{format}' failed: {first_line(error)}") from error
    return Exported(result, file_size_mb(result), difference)


def input_side(model: nn.Module, imgsz: int) -> int:
    """Side in pixels of the input of an export for `imgsz`: a multiple of the largest stride, as ultralytics rounds it."""
    stride = stride_of(model)
    return -(-imgsz // stride) * stride


def _export(model: Any, format: str, imgsz: int) -> Path:
    """Run the exporter on a copy of `model`; its result is in the folder of `model.pt_path`."""
    options: dict[str, Any] = {"format": format, "imgsz": imgsz, "batch": 1, "mode": "export", "verbose": False}
    options["device"] = "0" if format == "engine" else "cpu"  # TensorRT builds for the GPU that it runs on
    if format == "onnx":
        options["simplify"] = find_spec("onnxslim") is not None  # otherwise the exporter warns and goes on
    if format == openvino.OPENVINO.format:
        openvino.library()  # before the exporter imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's
        return upstream.export(model, options)


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
