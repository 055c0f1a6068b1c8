"""The state of a training on disk, from which a killed one resumes after its last finished epoch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError, RunError
from distill.machine.files import write_atomically


@dataclass
class TrainingState:
    """The finished part of a training.

    It lies in `last.pt` and `best.pt`: plain tensors, numbers and text, so that loading executes nothing.
    """

    epoch: int = 0  # finished epochs
    stopped: bool = False  # all epochs are finished, or patience ran out
    history: list[dict[str, Any]] = field(default_factory=list)  # per epoch, as `Trained.history`
    seconds: list[float] = field(default_factory=list)  # per epoch, as `Trained.seconds`
    best_epoch: int = 0  # from 1; 0 before the first epoch is finished
    best_score: float | None = None  # mAP50-95 or top-1 of that epoch; None without labels
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # averaged weights of that epoch, on the CPU

    def write(self, folder: Path, state_dicts: dict[str, Any]) -> None:
        """Write the state, and the state dicts of network, optimizer and so on.

        A kill at any moment leaves files that fit each other. Each is complete, and a `best.pt` newer than `last.pt` is
        the one that the interrupted epoch, run again, gives.

        Raises:
            RunError: the disk is full, or the folder is gone: it is not made again, for the run would be there in parts.
        """
        if not folder.is_dir():
            raise RunError(f"{folder} was removed or moved while a training was writing into it")
        if self.best_epoch == self.epoch:
            write_atomically(folder / "best.pt", partial(torch.save, self.best_weights))
        fields = {key: value for key, value in vars(self).items() if key != "best_weights"}
        write_atomically(folder / "last.pt", partial(torch.save, {"progress": fields, "states": state_dicts}))

    @classmethod
    def read(cls, folder: Path) -> tuple[TrainingState, dict[str, Any]] | None:
        """What `write` wrote, or None if no epoch was finished."""
        file = folder / "last.pt"
        if not file.is_file():
            return None
        last = _read(file)
        try:
            return cls(**last["progress"], best_weights=_read(folder / "best.pt")), last["states"]
        except (KeyError, TypeError) as error:
            raise DistillError(f"{file}: not written by this program; delete the folder to start anew") from error


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DistillError(f"{path}: damaged, or of another program; delete the folder to start anew") from error
