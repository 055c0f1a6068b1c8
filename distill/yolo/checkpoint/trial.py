"""A network from a file is looked at and run once: weights that are no numbers, sizes without end, a stride that lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from distill.errors import DistillError, first_line
from distill.machine.words import printable
from distill.yolo.upstream import __version__

_SIZE = 64  # pixels; a network with a larger stride gets its stride
_MOST_STRIDE = 512
# A YOLOv8x-p6 gives 4 million values in 1,100 operators with 3 GFLOPs at that size.
_MOST_VALUES, _MOST_OPERATORS, _MOST_FLOPS = 2**27, 2**13, 2**38

# Operators whose result is as large as their first argument, for which torch computes shapes slowly.
_AS_THE_FIRST = frozenset({"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::silu_", "aten::silu"})


def check_weights(path: Path, model: nn.Module) -> None:
    """Refuse a network with weights or statistics that are no numbers, or with a negative variance.

    Raises:
        DistillError: the message names the first such layer.
    """
    wrong: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        bad = int(tensor.numel() - tensor.isfinite().sum()) if tensor.is_floating_point() else 0
        if bad:
            wrong.setdefault(layer, f"{bad:,} of the {tensor.numel():,} values of its {part} are NaN or infinite")
        elif part == "running_var" and bool((tensor < 0).any()):
            wrong.setdefault(layer, f"{int((tensor < 0).sum()):,} of its {tensor.numel():,} variances are negative")
    if wrong:
        layer, what = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more layers are alike" if len(wrong) > 1 else ""
        raise DistillError(
            f"{path}: layer '{printable(layer, 100)}' is broken ({what}{more}): its training failed: give a checkpoint of an "
            "earlier epoch, or train again with amp=False or a lower learning rate"
        )


def check_runs(path: Path, model: Any) -> None:
    """Run a network once: one that a changed ultralytics saved is restored without an error, and fails only here.

    Raises:
        DistillError: it does not run, takes memory or time without end, gives no numbers, or its strides are not those
            that it says.
    """
    head, maps = model.model[-1], []
    said = _strides(path, model)
    size = max(_SIZE, *map(int, said))
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    watch = head.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs[0]))
    try:
        with torch.no_grad(), _Bounded():
            output = model(image)
    except Exception as error:  # whatever the missing or changed part leads to
        raise DistillError(
            f"{path} does not run with ultralytics {__version__} ({printable(first_line(error), 200)}): it was made by a "
            "changed version of it; to use it here, train on your data with an unchanged one"
        ) from error
    finally:
        watch.remove()
    if not all(bool(each.isfinite().all()) for each in tree_leaves(output) if isinstance(each, Tensor)):
        raise DistillError(f"{path} gives values that are NaN or infinite: its training failed: give an earlier one")
    found = [size / each.shape[-1] for each in maps]
    if said != found:
        raise DistillError(
            f"{path} says that its strides are {said}, and they are {found}, so its boxes would be at the wrong places: "
            "give the .pt that training saved"
        )
    if hasattr(head, "shape"):
        head.shape = None  # forget the anchors of that size


def _strides(path: Path, model: Any) -> list[float]:
    """Of the head, which the network repeats. Raises `DistillError` if they are none."""
    head, whole = (torch.as_tensor(each.stride).float().flatten().tolist() for each in (model.model[-1], model))
    if not head or head != whole or not all(1 <= stride <= _MOST_STRIDE for stride in head):
        raise DistillError(
            f"{path} has strides that are none or disagree ({printable(whole, 80)} and {printable(head, 80)} pixels): "
            "give the .pt that training saved"
        )
    return head


class _Bounded(TorchDispatchMode):
    """Stops a network that takes more than any YOLO, before it does: of each operator only the shape is computed first."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.operators = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        gives_tensors = any("Tensor" in str(returned.type) for returned in func._schema.returns)
        result = (
            args[0] if func._schema.name in _AS_THE_FIRST else _shapes(func, args, options) if gives_tensors else None
        )
        self.operators += 1
        self.values += sum(each.numel() for each in tree_leaves(result) if isinstance(each, Tensor))
        if result is not None and (counted := flop_registry.get(func._overloadpacket)):
            self.flops += counted(*args, **options, out_val=result)
        if self.values > _MOST_VALUES or self.operators > _MOST_OPERATORS or self.flops > _MOST_FLOPS:
            raise ValueError("it takes more memory or time than any YOLO")
        return func(*args, **options)


def _shapes(func: Any, args: Any, options: dict[str, Any]) -> Any:
    """What an operator gives, without its values; None if its shape depends on values, as that of `nonzero`."""
    args, options = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, options))
    try:
        return func(*args, **(options | {"device": "meta"} if "device" in options else options))
    except NotImplementedError:
        return None
