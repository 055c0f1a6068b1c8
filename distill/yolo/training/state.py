"""How far a training has come, on disk: one that was killed goes on after its last finished epoch."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError, RunError


@dataclass
class TrainingState:
    """The part of a training that is over.

    Attributes:
        epoch: finished epochs.
        stopped: no further epoch would be run: the last one is over, or patience was.
        history: per epoch what `Trained.history` says.
        seconds: per epoch, as `Trained.seconds`.
        best_epoch: counted from 1; 0 before the first epoch is over.
        best_map: mAP50-95 of that epoch; None where there are no labels.
        best_weights: averaged weights of that epoch, on the CPU.
    """

    epoch: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best_map: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


class StateFiles:
    """`last.pt` and `best.pt` of one training: plain tensors, numbers and text, so that loading executes nothing.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._best = folder / "last.pt", folder / "best.pt"

    def write(self, progress: TrainingState, states: dict[str, Any]) -> None:
        """Write what is done, and the states of network, optimizer and so on that going on needs.

        A kill at any moment leaves files that fit: each is complete, and a best newer than the last epoch is the one
        that this epoch, done again, would give.
        """
        if progress.best_epoch == progress.epoch:
            _write(self._best, progress.best_weights)
        done = {key: value for key, value in vars(progress).items() if key != "best_weights"}
        _write(self._last, {"progress": done, "states": states})

    def read(self) -> tuple[TrainingState, dict[str, Any]] | None:
        """What `write` wrote, or None where no epoch was finished."""
        if not self._last.is_file():
            return None
        last = _read(self._last)
        try:
            return TrainingState(**last["progress"], best_weights=_read(self._best)), last["states"]
        except (KeyError, TypeError) as error:
            raise DistillError(f"{self._last}: not written by this program; delete the folder to start anew") from error


def _write(path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot write the training's state: {error.strerror or error}") from error


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DistillError(f"{path}: damaged, or of another program; delete the folder to start anew") from error
