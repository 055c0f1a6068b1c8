"""ONNX Runtime, on the processor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.machine.runtimes.runtime import Forward, Runtime

_ERRORS_ONLY = 3  # of its levels of logging


def _open(source: Path | bytes, threads: int) -> Forward:
    import onnxruntime  # an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Its threads wait for the next image in a busy loop, which would slow down whatever takes turns with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = source if isinstance(source, bytes) else str(source)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]

    return forward


ONNXRUNTIME = Runtime("ONNX Runtime", "onnx", "onnxruntime", _open)
