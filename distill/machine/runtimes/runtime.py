"""What a runtime says of itself: the exports that it runs, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

Forward = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Runtime:
    """A program that runs exported networks on the device that they are deployed on."""

    title: str  # in tables and sentences
    format: str  # of the exports that it runs, by ultralytics' name
    package: str  # it is imported by this name
    # (exported file, or the bytes of an ONNX file; threads) -> (images (B, 3, H, W), float32 in [0, 1] -> the outputs)
    open: Callable[[Path | bytes, int], Forward]

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not imported."""
        return find_spec(self.package) is not None
