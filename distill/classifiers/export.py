"""Exports classifiers: ONNX, TorchScript and OpenVINO, each compared with PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.classifiers import checkpoint
from distill.classifiers.network import logits_of
from distill.errors import DistillError, first_line
from distill.kinds.opened import Exported
from distill.machine.faults import machine_fault
from distill.machine.files import UNFINISHED, scratch_folder, write_atomically
from distill.machine.measure import file_size_mb
from distill.machine.runtimes import openvino
from distill.machine.runtimes.parity import check_parity
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
        missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise DistillError(
                f"export: format '{name}' needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            )


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
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out_dir, UNFINISHED) as folder, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's
            draft = _FORMATS[format](network, image, folder / path.stem)
            difference = check_parity(draft, format, network, image)
            result = out_dir / draft.name
            write_atomically(result, draft.rename)
    except DistillError:
        raise
    except Exception as error:  # of many packages: this export cannot be made here
        fault = machine_fault(error, out_dir)
        raise fault or DistillError(f"export: {path.name} to '{format}' failed: {first_line(error)}") from error
    return Exported(result, file_size_mb(result), difference)


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
