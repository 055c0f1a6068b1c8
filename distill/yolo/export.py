"""Exports a checkpoint through ultralytics' own exporter, and checks that the result computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError
from distill.kinds.exporting import check_packages, export_checked
from distill.kinds.opened import Exported
from distill.machine.runtimes import openvino
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
        check_packages(name, _PACKAGES.get(name, ()))


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

    def make(folder: Path) -> Path:
        model.pt_path = str(folder / path.name)
        return _export(model, format, imgsz)

    return export_checked(path, format, out_dir, make, model, image)


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
    return upstream.export(model, options)
