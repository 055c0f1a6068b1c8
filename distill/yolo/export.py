"""Exports a checkpoint through ultralytics' own exporter, and checks that the result computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError, first_line
from distill.kinds.opened import Exported
from distill.machine.faults import machine_fault
from distill.machine.files import UNFINISHED, scratch_folder, write_atomically
from distill.machine.measure import file_size_mb
from distill.machine.runtimes import openvino
from distill.machine.runtimes.parity import check_parity
from distill.machine.words import nearest
from distill.yolo import upstream
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.fork import with_known_convolutions
from distill.yolo.families.table import family_of, stride_of

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
