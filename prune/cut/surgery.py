"""A plan -> a new, smaller module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune.adapter import Adapter, adapter_for
from prune.cut.plan import PrunePlan
from prune.errors import PruneError
from prune.keywords import public

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@public()
def apply(model: nn.Module, plan: PrunePlan, *, adapter: Adapter | None = None) -> nn.Module:
    """A copy of `model` with only the channels that the plan keeps; `model` is untouched.

    The copy has the same classes and attributes, with smaller tensors: nothing of this package is left in it.

    Args:
        model: The model that was traced.
        plan: From `prune.make_plan`.
        adapter: As for `prune.trace`; says in which attributes blocks store the width of their parts.

    Raises:
        PruneError: The plan was made for another model, or with another adapter.
    """
    check(model, plan)
    adapter = adapter or adapter_for(model)
    student = copy.deepcopy(model)
    modules = dict(student.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, keep in plan.keep.items():
            module: Any = modules.get(name)
            if module is None:
                _shrink_parameter(modules, name, list(keep))
            elif name in plan.keep_inputs:
                _shrink_layer(module, list(keep), list(plan.keep_inputs[name]))
            else:
                _shrink_norm(module, list(keep))
    for owner, width in plan.parts.items():  # a chunk does without it, a split and an export do not
        attribute = adapter.width_attribute(modules[owner])
        if attribute is None:
            raise PruneError(f"the adapter does not say where '{owner}' stores a width: pass the one of prune.trace")
        setattr(modules[owner], attribute, width)
    for path, value in plan.numbers.items():
        owner, _, name = path.rpartition(".")
        setattr(modules[owner], name, value)
    return student


def check_student(student: nn.Module, plan: PrunePlan) -> None:
    """Raise if the student does not have the channels that the plan keeps."""
    modules: dict[str, Any] = dict(student.named_modules(remove_duplicate=False))
    for name, keep in plan.keep.items():
        width = _width(_named(modules, name))
        if width != len(keep):
            raise PruneError(
                f"the student is not cut by this plan: '{name}' has {width} channels, the plan keeps {len(keep)}"
            )


def check(model: nn.Module, plan: PrunePlan) -> None:
    """Raise if the plan cannot have been made for this model."""
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for name in [*plan.keep, *plan.keep_inputs, *plan.parts]:
        if _named(modules, name) is None:
            raise _another(f"{type(model).__name__} has no module '{name}'")
    for path in plan.numbers:
        owner, _, name = path.rpartition(".")
        if type(getattr(modules.get(owner), name, None)) is not int:
            raise _another(f"{type(model).__name__} stores no number '{path}'")
    if lonely := [name for name in plan.keep_inputs if name not in plan.keep]:
        raise PruneError(f"the plan says which inputs of '{lonely[0]}' to keep, and not which outputs")
    for name, keep in plan.keep.items():
        module, inputs = _named(modules, name), plan.keep_inputs.get(name)
        kind, types = ("BatchNorm", _BatchNorm) if inputs is None else ("convolution or linear layer", LAYERS)
        if not isinstance(module, types) and not (isinstance(module, nn.Parameter) and inputs is None):
            raise _another(f"'{name}' is a {type(module).__name__}, the plan cuts a {kind}")
        _fits(name, "channels", _width(module), keep)
        if inputs is not None:
            _fits(name, "input channels", _attribute(module, "in_features", "in_channels"), inputs)
    total = sum(p.numel() for p in model.parameters())
    if total != plan.params_before:  # widths are not in a plan, but hardly two models of the same names are as large
        raise _another(f"{type(model).__name__} has {total:,} parameters, the plan's model had {plan.params_before:,}")


def _named(modules: Mapping[str, Any], name: str) -> Any:
    """The module of this path, or the parameter; None if there is neither."""
    owner, _, attribute = name.rpartition(".")
    parameters = modules[owner]._parameters if owner in modules else {}
    return modules.get(name, parameters.get(attribute))


def _width(module: Any) -> int:
    """Channels that a BatchNorm, a convolution or a linear layer gives; values of a parameter."""
    if isinstance(module, nn.Parameter):
        return module.numel() if module.numel() == max(module.shape, default=0) else 0
    return _attribute(module, "num_features", "out_features", "out_channels")


def _attribute(module: Any, *names: str) -> int:
    """The first of these attributes that the module has; 0 if it has none."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), 0)


def _fits(name: str, what: str, width: int, keep: Sequence[int]) -> None:
    if not keep:
        raise PruneError(f"the plan keeps none of the {what} of '{name}'")
    wrong = [i for i in keep if not 0 <= i < width]
    if wrong:
        raise _another(f"'{name}' has {width} {what}, the plan keeps number {wrong[-1]}")


def _another(why: str) -> PruneError:
    return PruneError(f"the plan is for another model: {why}")


def _shrink_layer(module: Any, keep: list[int], keep_inputs: list[int]) -> None:
    # A transposed convolution has its inputs first, and the outputs of one group behind them.
    first, there = (keep_inputs, keep) if isinstance(module, nn.ConvTranspose2d) else (keep, keep_inputs)
    weight, size = module.weight[first], module.weight.shape[1]  # size: per convolution group
    if isinstance(module, nn.Linear):
        weight = weight[:, keep_inputs]
        module.in_features, module.out_features = len(keep_inputs), len(keep)
    else:
        if module.groups == module.in_channels == module.out_channels:  # depthwise: a channel is a group
            module.groups = len(keep)
        else:  # the same places are kept in every group
            weight = weight[:, [i for i in there if i < size]]
        module.in_channels, module.out_channels = len(keep_inputs), len(keep)
    module.weight = _parameter(weight, module.weight)
    if module.bias is not None:
        module.bias = _parameter(module.bias[keep], module.bias)


def _shrink_norm(module: _BatchNorm, keep: list[int]) -> None:
    module.num_features = len(keep)
    if module.affine:
        module.weight = _parameter(module.weight[keep], module.weight)
        module.bias = _parameter(module.bias[keep], module.bias)
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean = module.running_mean[keep].clone()
        module.running_var = module.running_var[keep].clone()


def _shrink_parameter(modules: Mapping[str, Any], path: str, keep: list[int]) -> None:
    """A parameter with a value for each channel, along its one dimension of more than one value."""
    owner, _, name = path.rpartition(".")
    parameter = getattr(modules[owner], name)
    dim = max(range(parameter.dim()), key=lambda d: parameter.shape[d])
    setattr(modules[owner], name, _parameter(parameter.movedim(dim, 0)[keep].movedim(0, dim), parameter))
    if isinstance(modules[owner], nn.GroupNorm) and name == "weight":  # whole groups are kept
        modules[owner].num_groups = modules[owner].num_groups * len(keep) // modules[owner].num_channels
        modules[owner].num_channels = len(keep)
    if isinstance(modules[owner], nn.PReLU):
        modules[owner].num_parameters = len(keep)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=like.requires_grad)
