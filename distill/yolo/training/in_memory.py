"""A network of this process in a runtime: exported in memory, and run to the raw outputs that losses read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from distill.errors import DistillError, first_line
from distill.losses.context import Outputs
from distill.machine.runtimes.runtime import Runtime
from distill.yolo.families.outputs import named, raw_outputs, run

_EXPORTER = "onnx"  # the package that torch writes ONNX files with
_OPSET = 17


def missing_packages(runtime: Runtime) -> list[str]:
    """What is not installed of what it takes to run a network of this process there."""
    return [package for package in (_EXPORTER, runtime.package) if find_spec(package) is None]


class InRuntime:
    """Runs a network in a runtime. It is called as `distill.yolo.families.outputs.run` is, without gradient.

    Images of another size, and points that were not exported, are run in PyTorch.

    Args:
        runtime: what it runs in, with as many threads as torch has.
        network: in eval mode, float32, on the CPU.
        images: (B, 3, H, W), of the size that it will see; a batch may be of any length.
        points: paths of modules whose outputs are captured.

    Raises:
        DistillError: it cannot be exported, or the runtime cannot open it.
    """

    def __init__(self, runtime: Runtime, network: nn.Module, images: Tensor, points: Sequence[str] = ()) -> None:
        self.size, self.points = images.shape[1:], frozenset(points)
        try:
            content, self.structure = _export(network, images, points)
            self.forward = runtime.open(content, torch.get_num_threads())
        except Exception as error:  # a runtime's own exceptions share no base class
            raise DistillError(f"the teacher does not run in {runtime.title} ({first_line(error)})") from error

    def __call__(self, network: nn.Module, images: Tensor, points: Sequence[str] = ()) -> Outputs:
        """Raw outputs for images (B, 3, H, W) in [0, 1]."""
        if images.shape[1:] != self.size or images.device.type != "cpu" or not self.points.issuperset(points):
            return run(network, images, points)
        raw, captured = tree_unflatten(self.forward(images.contiguous()), self.structure)
        return named(network, raw, captured)


def difference(outputs: Outputs, reference: Outputs) -> float:
    """Largest difference of any raw output from the reference's, in standard deviations of that output.

    Outputs that hardly vary, as those of an untrained network, are compared with a hundredth of their size instead.
    """
    ours, theirs = (tree_flatten((each.raw, each.neck, dict(each.at)))[0] for each in (outputs, reference))
    pairs = zip(ours, theirs, strict=True)
    return max(((own - other).abs().max() / _spread(other)).item() for own, other in pairs)


def _spread(values: Tensor) -> Tensor:
    return torch.maximum(values.std(), 0.01 * values.square().mean().sqrt()).clamp(min=1e-6)


class _Flat(nn.Module):
    """A network whose outputs are the tensors of `raw_outputs`, one after the other."""

    def __init__(self, network: nn.Module, points: Sequence[str]) -> None:
        super().__init__()
        self.network, self.points = network, points
        self.structure: TreeSpec | None = None

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        tensors, self.structure = tree_flatten(raw_outputs(self.network, images, self.points))
        # Each an output of its own: a captured feature may be one of the neck's.
        return tuple(tensor.clone() for tensor in tensors)


def _export(network: nn.Module, images: Tensor, points: Sequence[str]) -> tuple[bytes, TreeSpec]:
    """An ONNX file for batches of any length, and how its outputs make up those of `raw_outputs`."""
    flat, content = _Flat(network, points), io.BytesIO()
    example = torch.zeros(2, *images.shape[1:])  # a batch of one would be taken for a constant
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's
        names = [f"output{index}" for index in range(len(flat(example)))]
        torch.onnx.export(
            flat,
            (example,),
            content,  # type: ignore[arg-type]
            dynamo=False,  # the other exporter needs a package more
            opset_version=_OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ["images", *names]},
        )
    assert flat.structure is not None
    return content.getvalue(), flat.structure
