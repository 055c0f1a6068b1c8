"""What every way to save a network shares: a bare copy, half precision, a file that is there whole or not at all."""

from __future__ import annotations

import copy
import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from distill.errors import RunError

Network = TypeVar("Network", bound=nn.Module)


def bare_copy(model: Network) -> Network:
    """A deep copy without hooks, loss and file name. They are passed over, not copied: they may hold the teacher."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo |= {id(value): OrderedDict() for key, value in vars(module).items() if "_hooks" in key}
    criterion = getattr(model, "criterion", None)
    if criterion is not None:
        memo[id(criterion)] = None
    bare = copy.deepcopy(model, memo)
    for name in ("criterion", "pt_path"):
        vars(bare).pop(name, None)
    return bare


def half(network: Network) -> Network:
    """`network` in float16, as ultralytics saves it, unless a value would not fit: a wide BatchNorm variance can."""
    largest = torch.finfo(torch.float16).max
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return network.half() if all(bool((tensor.abs() <= largest).all()) for tensor in tensors) else network


def write(path: Path, buffer: io.BytesIO) -> None:
    """Write a file that appears complete or not at all.

    Raises:
        RunError: the disk is full or not writable.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
