"""OpenVINO, on the processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.machine.runtimes.runtime import Forward, Runtime

_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",  # some processors compute in bfloat16 unless they are told
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # two processes would pin their threads to the same cores
}


def library() -> Any:
    """The package. It sends usage statistics when it is imported, but not from a build machine, so it takes this for one."""
    variable = "TF_BUILD"
    before = os.environ.get(variable)
    os.environ[variable] = before or "True"
    try:
        import openvino  # an optional package
    finally:
        if before is None:
            del os.environ[variable]
    return openvino


def _open(source: Path | bytes, threads: int) -> Forward:
    core = library().Core()
    content = source if isinstance(source, bytes) else str(next(source.glob("*.xml")) if source.is_dir() else source)
    network = core.compile_model(core.read_model(content), "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads})
    request = network.create_infer_request()

    def forward(images: Tensor) -> list[Tensor]:
        found = request.infer([images.contiguous().numpy()], share_inputs=True)
        return [torch.from_numpy(found[output]) for output in network.outputs]

    return forward


OPENVINO = Runtime("OpenVINO", "openvino", "openvino", _open)
