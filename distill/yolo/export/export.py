"""Export a checkpoint through ultralytics' own exporter, and check what comes out."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError, first_line
from distill.machine.faults import machine_fault
from distill.machine.files import write_atomically
from distill.machine.measure import file_size_mb
from distill.yolo import upstream
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.export.parity import Exported, check_formats, check_parity
from distill.yolo.families.table import family_of


def check_exports(formats: Iterable[str]) -> None:
    """Refuse unknown formats and missing packages; meant for the start of a run. Raises `DistillError`."""
    check_formats(formats, upstream.export_formats())


def export_checkpoint(
    path: Path,
    format: str,
    out_dir: Path,
    imgsz: int,
    *,
    dynamic: bool = False,
    image: torch.Tensor | None = None,
    trust: bool = False,
) -> Exported:
    """Export one YOLO checkpoint and compare the result with it.

    The exporter writes beside the file it believes the model came from; that is a temporary folder here, and only the
    finished and checked result moves into `out_dir`, replacing an older one of the same name.

    A detector with the original YOLOv5's head keeps that project's output: (B, A, 5 + classes), box centre and size in
    pixels, objectness, class probabilities.

    Args:
        path: a `.pt` file, opened as `checkpoint.load` does.
        format: one of `upstream.export_formats()`.
        out_dir: where the result goes; made if missing.
        imgsz: side of the square input in pixels; rounded up to a multiple of the largest stride, as ultralytics does.
        dynamic: leave batch and image size open (ONNX, TorchScript, OpenVINO).
        image: `(1, C, imgsz, imgsz)` float32 in [0, 1] to compare the outputs on; default: random. A real one finds more.
        trust: see `checkpoint.load`.

    Returns:
        The result, named after the checkpoint: `out_dir/student.onnx`.

    Raises:
        DistillError: unknown format, missing package, a format this machine cannot make, or outputs that differ.
        RunError: the disk is full, or not writable.
    """
    check_exports([format])
    detector = checkpoint.load(path, trust=trust)
    model: Any = detector.model
    model.names = detector.names
    family_of(model).prepare_export(model.model[-1])
    if image is None:
        image = _random_image(model, imgsz)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out_dir) as folder:
            model.pt_path = str(Path(folder) / path.name)
            made = _export(model, format, imgsz, dynamic)
            difference = check_parity(made, format, model, image)
            result = out_dir / made.name
            write_atomically(result, made.rename)
    except DistillError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or format).split(".")[0]
        raise DistillError(f"export: format '{format}' needs {package}: pip install {package}") from error
    except Exception as error:  # asserts and errors of many packages; all mean that this export cannot be had here
        fault = machine_fault(error, out_dir)
        raise fault or DistillError(f"export: {path.name} to '{format}' failed: {first_line(error)}") from error
    return Exported(format, result, file_size_mb(result), difference)


def _export(model: Any, format: str, imgsz: int, dynamic: bool) -> Path:
    """Run the exporter on a copy of `model`; returns what it made, in the folder of `model.pt_path`."""
    options: dict[str, Any] = {"format": format, "imgsz": imgsz, "batch": 1, "mode": "export", "verbose": False}
    options["device"] = "0" if format == "engine" else "cpu"  # TensorRT builds for the GPU that it runs on
    if dynamic:
        options["dynamic"] = True
    if format == "onnx":
        # The exporter's default; it only warns and goes on where the package is missing, so ask for what there is.
        options["simplify"] = find_spec("onnxslim") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's
        return upstream.export(model, options)


def _random_image(model: Any, imgsz: int) -> torch.Tensor:
    stride = int(model.stride.max())
    side = -(-imgsz // stride) * stride
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
