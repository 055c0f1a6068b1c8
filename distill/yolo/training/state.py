"""The state of a training on disk, from which a killed one resumes after its last finished epoch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.machine.files import write_atomically


@dataclass
class TrainingState:
    """The finished part of a training.

    Attributes:
        epoch: finished epochs.
        stopped: training has ended: all epochs are finished, or patience ran out.
        history: per epoch, as `Trained.history`.
        seconds: per epoch, as `Trained.seconds`.
        best_epoch: from 1; 0 before the first epoch is finished.
        best_map: mAP50-95 of that epoch; None without labels.
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
    """`last.pt` and `best.pt` of a training: plain tensors, numbers and text, so that loading executes nothing.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._best = folder / "last.pt", folder / "best.pt"

    def write(self, state: TrainingState, state_dicts: dict[str, Any]) -> None:
        """Write the state, and the state dicts of network, optimizer and so on.

        A kill at any moment leaves files that fit each other. Each is complete, and a `best.pt` newer than `last.pt` is
        the one that the interrupted epoch, run again, gives.
        """
        if state.best_epoch == state.epoch:
            write_atomically(self._best, partial(torch.save, state.best_weights))
        fields = {key: value for key, value in vars(state).items() if key != "best_weights"}
        write_atomically(self._last, partial(torch.save, {"progress": fields, "states": state_dicts}))

    def read(self) -> tuple[TrainingState, dict[str, Any]] | None:
        """What `write` wrote, or None if no epoch was finished."""
        if not self._last.is_file():
            return None
        last = _read(self._last)
        try:
            return TrainingState(**last["progress"], best_weights=_read(self._best)), last["states"]
        except (KeyError, TypeError) as error:
            raise DistillError(f"{self._last}: not written by this program; delete the folder to start anew") from error


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DistillError(f"{path}: damaged, or of another program; delete the folder to start anew") from error
