"""What every kind of network gives: a network as it was opened, its images, its training, its exports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from distill.losses.base import WeightedLoss


@dataclass(frozen=True)
class Opened:
    """A network from a checkpoint, or built."""

    model: nn.Module  # float32, on the CPU, in eval mode, not fused, with gradients on
    names: dict[int, str]  # class names by id
    imgsz: int | None  # image size in pixels that it was trained at; None if nobody knows
    source: Path
    plan: dict[str, Any] | None  # how this tool pruned it, as plain data; None if it did not


def fingerprint(network: nn.Module) -> str:
    """Weights and statistics of a network in a word, which is another one if any of them is changed."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


class Images(Protocol):
    """A checked data set."""

    @property
    def path(self) -> Path:
        """What the recipe names as `data`."""

    @property
    def names(self) -> dict[int, str] | None:
        """Class names by id; None without labels."""

    @property
    def train(self) -> tuple[Path, ...]:
        """Image files to calibrate on and to learn from."""

    @property
    def val(self) -> tuple[Path, ...]:
        """Image files to measure on."""

    @property
    def unlabelled(self) -> tuple[Path, ...]:
        """Image files without labels beside the labelled ones of `train`."""

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from and to measure with."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the data were read, if that is not obvious."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know although it stops nothing."""

    @property
    def videos(self) -> tuple[Path, ...]:
        """Images to come."""


class Trained(Protocol):
    """A finished training."""

    @property
    def model(self) -> nn.Module:
        """The network with the weights of its best epoch; float32, eval, on the CPU."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """Per epoch `epoch` (from 1), `lr`, every loss by name, and its figures."""

    @property
    def best_epoch(self) -> int:
        """The epoch of the weights."""

    @property
    def seconds(self) -> list[float]:
        """Per epoch, how long its steps took."""


@dataclass(frozen=True)
class Exported:
    """One exported network."""

    file: Path  # the file, or the folder for formats that are one (OpenVINO, ncnn)
    size_mb: float  # megabytes of 10^6 bytes
    max_abs_diff: float | None  # from the checkpoint's outputs; None for a format that cannot be run here

    def __str__(self) -> str:
        """File, size and difference in a line."""
        checked = "not compared" if self.max_abs_diff is None else f"outputs differ by {self.max_abs_diff:.1e}"
        return f"{self.file}  {self.size_mb:.1f} MB, {checked}"


@dataclass(frozen=True)
class Pairing:
    """How a student compares with a teacher that it was not cut from."""

    teacher: Opened  # its classes in the order of the student's
    gives: frozenset[str]  # what both have of what a loss may need
    unlike: Mapping[str, str]  # what a loss may need -> why two networks cannot both give it
    by_cell: bool = False  # whether boxes are compared cell by cell, for the heads are of different kinds
    untaught: str = ""  # a part of the student that the teacher lacks, and so cannot teach


@dataclass(frozen=True)
class Taught:
    """A teacher of a training, and what it teaches. `name` is in the names of losses, if there are several."""

    name: str
    network: nn.Module
    losses: Sequence[WeightedLoss]
    original: bool  # whether the student was cut from it
