"""A plan -> a new, smaller module."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.plan import PrunePlan


def apply(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A copy of `model` with only the channels that the plan keeps; `model` is untouched.

    The copy has the same classes and attributes, with smaller tensors: nothing of this package is left in it.

    Raises:
        PruneError: The plan was made for another model.
    """
    student = copy.deepcopy(model)
    modules = dict(student.named_modules())
    unknown = [name for name in plan.keep if name not in modules]
    if unknown:
        raise PruneError(f"the plan is for another model: {type(model).__name__} has no module '{unknown[0]}'")
    with torch.no_grad():
        for name, keep in plan.keep.items():
            _shrink(name, modules[name], keep, plan.keep_inputs.get(name))
    for owner, width in plan.parts.items():
        # Stock blocks (C2f and its kin) store the width of a part: forward() does without it, export and split do not.
        if isinstance(getattr(modules[owner], "c", None), int):
            modules[owner].c = width  # type: ignore[assignment]
    return student


def _shrink(name: str, module: nn.Module, keep: Sequence[int], keep_inputs: Sequence[int] | None) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        _fits(name, module.num_features, keep)
        _shrink_norm(module, list(keep))
    elif isinstance(module, (nn.Conv2d, nn.Linear)) and keep_inputs is not None:
        _fits(name, module.weight.shape[0], keep)
        _shrink_layer(module, list(keep), list(keep_inputs))
    else:
        raise PruneError(f"'{name}' is a {type(module).__name__}, which surgery does not know")


def _fits(name: str, width: int, keep: Sequence[int]) -> None:
    if max(keep, default=-1) >= width:
        raise PruneError(
            f"the plan is for another model: '{name}' has {width} channels, the plan keeps number {max(keep)}"
        )


def _shrink_layer(module: nn.Conv2d | nn.Linear, keep: list[int], keep_inputs: list[int]) -> None:
    weight, size = module.weight[keep], module.weight.shape[1]  # size: inputs per convolution group
    if isinstance(module, nn.Linear):
        weight = weight[:, keep_inputs]
        module.in_features, module.out_features = len(keep_inputs), len(keep)
    else:
        if module.groups == module.in_channels == module.out_channels:  # depthwise: a channel is a group
            module.groups = len(keep)
        else:  # the same places are kept in every group
            weight = weight[:, [i for i in keep_inputs if i < size]]
        module.in_channels, module.out_channels = len(keep_inputs), len(keep)
    module.weight = _parameter(weight, module.weight)
    if module.bias is not None:
        module.bias = _parameter(module.bias[keep], module.bias)


def _shrink_norm(module: nn.modules.batchnorm._BatchNorm, keep: list[int]) -> None:
    module.num_features = len(keep)
    if module.affine:
        module.weight = _parameter(module.weight[keep], module.weight)
        module.bias = _parameter(module.bias[keep], module.bias)
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean = module.running_mean[keep].clone()
        module.running_var = module.running_var[keep].clone()


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=like.requires_grad)
