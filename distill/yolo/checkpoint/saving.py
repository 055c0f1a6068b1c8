"""What every way to save a network shares: a bare copy, half precision, and the entries of a finished checkpoint."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeVar

import torch
from torch import nn

from distill.yolo.checkpoint.checkout import owner_of

Network = TypeVar("Network", bound=nn.Module)


def bare_copy(model: Network) -> Network:
    """A deep copy without hooks, loss and file name. They are passed over, not copied: they may hold the teacher."""
    hooks = [value for module in model.modules() for key, value in vars(module).items() if "_hooks" in key]
    memo: dict[int, Any] = {id(value): OrderedDict() for value in hooks}
    if getattr(model, "criterion", None) is not None:
        memo[id(model.criterion)] = None
    bare = copy.deepcopy(model, memo)
    for name in ("criterion", "pt_path"):
        vars(bare).pop(name, None)
    return bare


def half(network: Network) -> Network:
    """`network` in float16, as ultralytics saves it, unless a value would not fit: a wide BatchNorm variance can."""
    largest = torch.finfo(torch.float16).max
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return network.half() if all(bool((tensor.abs() <= largest).all()) for tensor in tensors) else network


def remember(model: Any) -> None:
    """Note on a fork's network, as `own_project`, what its own project has in the places of classes that are known here.

    `class` is the network's, `attributes` are the names of what it has beside its modules, and `head` is its last layer
    without the convolutions `m`. A file keeps the note, so it is a dict.
    """
    head = model.model[-1]
    bare = copy.copy(head)
    bare._modules = {name: child for name, child in head._modules.items() if name != "m"}
    attributes = tuple(vars(model).keys() - vars(nn.Module()).keys())
    model.own_project = {"class": type(model), "attributes": attributes, "head": bare}


@contextlib.contextmanager
def written(model: nn.Module) -> Iterator[None]:
    """While this lasts, the classes of a network can be pickled by their names."""
    code = owner_of(model)
    with code.imported() if code is not None else contextlib.nullcontext():
        yield


def stripped(network: nn.Module) -> dict[str, Any]:
    """A checkpoint's content as ultralytics and the original YOLOv5 leave it when training has ended."""
    date = datetime.now().astimezone().isoformat()
    empty = dict.fromkeys(("best_fitness", "ema", "updates", "optimizer"))
    return {"epoch": -1, "model": network, "date": date, **empty}
