"""The runtimes that exports are timed in and teachers may run in, and the look-up of those that are installed."""

from __future__ import annotations

from collections.abc import Collection

from distill.machine.runtimes.onnxruntime import ONNXRUNTIME
from distill.machine.runtimes.openvino import OPENVINO
from distill.machine.runtimes.runtime import Runtime

RUNTIMES: tuple[Runtime, ...] = (ONNXRUNTIME, OPENVINO)


def runtimes_for(formats: Collection[str]) -> list[Runtime]:
    """The installed runtimes that run a format of `formats`, by ultralytics' names."""
    return [runtime for runtime in RUNTIMES if runtime.format in formats and runtime.installed]
