"""Exports classifiers: ONNX, TorchScript and OpenVINO, each compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.classifiers import checkpoint
from distill.classifiers.network import logits_of
from distill.errors import DistillError
from distill.kinds.exporting import check_packages, export_checked
from distill.kinds.opened import Exported
from distill.machine.runtimes import openvino
from distill.machine.words import nearest

OPSET = 17
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "torchscript": ()}


class Logits(nn.Module):
    """A network that gives its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return logits_of(self.network(images))


def check_exports(formats: Iterable[str]) -> None:
    """Refuse an unknown format, or one whose packages are missing. Raises `DistillError`."""
    for name in formats:
        if name not in _PACKAGES:
            hint = nearest(name, _PACKAGES) or f"; a classifier is exported to {', '.join(_PACKAGES)}"
            raise DistillError(f"export: unknown format '{name}'{hint}")
        check_packages(name, _PACKAGES[name])


def export(path: Path, format: str, out_dir: Path, imgsz: int) -> Exported:
    """Export a checkpoint and compare the result with it; it lies in `out_dir`, named after the checkpoint.

    The input is `images`, (batch, 3, imgsz, imgsz) float32, normalised by the mean and deviation that the checkpoint says;
    the output is `logits`.

    Raises:
        DistillError: unknown format, missing package, a network that cannot be exported, or outputs that differ.
        RunError: the disk is full, or not writable.
    """
    check_exports([format])
    network = Logits(checkpoint.load(path).model).eval()
    image = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))

    def make(folder: Path) -> Path:
        with torch.no_grad():
            return _FORMATS[format](network, image, folder / path.stem)

    return export_checked(path, format, out_dir, make, network, image)


def _onnx(network: nn.Module, image: Tensor, place: Path) -> Path:
    file = place.with_suffix(".onnx")
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
    names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(network, (image,), str(file), opset_version=OPSET, dynamo=False, **names)
    return file


def _torchscript(network: nn.Module, image: Tensor, place: Path) -> Path:
    file = place.with_suffix(".torchscript")
    torch.jit.trace(network, image).save(str(file))
    return file


def _openvino(network: nn.Module, image: Tensor, place: Path) -> Path:
    library = openvino.library()
    folder = place.parent / f"{place.name}_openvino_model"
    onnx = _onnx(network, image, place)
    library.save_model(library.convert_model(onnx), folder / f"{place.name}.xml", compress_to_fp16=False)
    onnx.unlink()
    return folder


_FORMATS: Mapping[str, Callable[[nn.Module, Tensor, Path], Path]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "openvino": _openvino,
}
