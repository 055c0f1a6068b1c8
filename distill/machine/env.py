"""The machine and the versions that a run uses."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("distill-prune", "torch", "torchvision", "ultralytics", "timm", "numpy", "onnx", "onnxruntime", "openvino")


def collect() -> dict[str, Any]:
    """Everything that can change a result, as plain data for env.json."""
    import torch

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        # A container or taskset may allow fewer cores than the machine has.
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": memory_gb(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter, without importing them."""
    installed = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    return {name: copies[0].version for name, copies in installed.items() if copies}


def device_name(device: str) -> str:
    """A device as results name it: `AMD EPYC 7B13, 2 threads` or `NVIDIA H100 80GB HBM3`."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' * (threads != 1)}"


def cpu_name() -> str:
    """The processor's model name, or its architecture if the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gb() -> float | None:
    """The machine's memory in GB (1e9 bytes); None if the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
