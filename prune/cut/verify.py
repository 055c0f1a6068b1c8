"""The proof that surgery is exact: the full model with the cut channels zeroed is the pruned model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.functional import pad

from prune.adapter import PLAIN, Adapter, adapter_for
from prune.cut.plan import PrunePlan
from prune.errors import PruneError, PruneWarning
from prune.graph import rules
from prune.keywords import public
from prune.program.interpret import Program, compute
from prune.program.operators import channel_dim
from prune.program.raw import raw_copy, tensors

# Operators that move values, or take them together, and make nothing else of zeros than zeros.
MOVING = (
    rules.spatial,
    rules.cat,
    rules.split,
    rules.getitem,
    rules.slicing,
    rules.view,
    rules.reduction,
    rules.unsqueeze,
    rules.squeeze,
    rules.permute,
    rules.select,
    rules.unbind,
    rules.expand,
    rules.matmul,
    rules.attention,
)
ROUNDING = 1e-8  # largest difference between outputs in float64 that is rounding


@public()
def verify(
    model: nn.Module, student: nn.Module, plan: PrunePlan, example_input: Tensor, *, adapter: Adapter | None = None
) -> float:
    """Largest difference between the raw outputs of the masked model and of the pruned one, in float64.

    A `PruneWarning` says if this proves nothing: the outputs do not change even if the layers that are cut lose all channels,
    as behind a head of zeros.

    The masked model is `model` run operator by operator, with every cut channel set to zero after its BatchNorm, after
    its activation and after all else that makes more of it. `student` must come straight from `prune.apply`, before any
    repair or training.

    Args:
        model: The full model.
        student: `prune.apply(model, plan)`.
        plan: The plan.
        example_input: Input to compare on, (N, C, H, W). Random values test more than zeros.
        adapter: As for `prune.trace`.

    Returns:
        The largest absolute difference over all raw output values. Below 1e-8 is rounding. Infinite if a value is NaN,
        or infinite in one of the two only: nothing is proved then.

    Raises:
        PruneError: One of the two does not run, its outputs have other shapes, or there is no output value to compare.
    """
    adapter = adapter or adapter_for(model)
    x = example_input.to(next(model.parameters()).device, torch.float64)
    with torch.no_grad():
        try:
            program = Program(raw_copy(model, adapter).double(), x, adapter)
            reference = _masked(program, plan, x)
        except RuntimeError as error:
            raise PruneError(f"{type(model).__name__} does not run in float64: {error}") from error
        try:
            outputs = tensors(adapter.outputs(raw_copy(student, adapter).double()(x)))
        except RuntimeError as error:
            raise PruneError(f"the cut network does not run: {error}") from error
    if [t.shape for t in reference] != [t.shape for t in outputs]:
        raise PruneError("the student's outputs have other shapes than the model's")
    if not any(t.numel() for t in reference):
        raise PruneError(f"nothing to compare: {type(model).__name__} returns no tensor")
    with torch.no_grad():
        _warn_if_vacuous(program, plan, x, reference)
    return _largest_difference(reference, outputs)


def _warn_if_vacuous(program: Program, plan: PrunePlan, x: Tensor, reference: list[Tensor]) -> None:
    """A cut that leaves the outputs as they are may be of dead channels; if those that are kept count for nothing too, it is not."""
    before = program.run(x)
    if _largest_difference(before, reference) > ROUNDING:
        return
    none = dict(plan.keep)
    for node in program.nodes:
        name = program.layer(node)
        if name in none and len(none[name]) < node.meta["val"].shape[channel_dim(node)]:
            none[name] = ()
    moved = _largest_difference(before, _masked(program, replace(plan, keep=none), x))
    if moved <= ROUNDING and none != plan.keep:
        warnings.warn(
            PruneWarning(
                f"verify proves nothing here: the outputs of {type(program.model).__name__} move by {moved:.1e} if the layers "
                "that are cut lose all channels, as behind a head of zeros: verify with weights that are not zero"
            ),
            stacklevel=4,
        )


def _largest_difference(before: list[Tensor], after: list[Tensor]) -> float:
    return max(_difference(a, b) for a, b in zip(before, after, strict=True))


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; NaN, which compares as neither more nor less, counts as infinite."""
    far = torch.where(a == b, 0.0, (a.double() - b.double()).abs())  # infinities that agree are no difference
    return far.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item() if far.numel() else 0.0


def masked_outputs(model: nn.Module, plan: PrunePlan, x: Tensor, adapter: Adapter = PLAIN) -> list[Tensor]:
    """Raw outputs of `model`, in the mode that it is in, with the channels that the plan cuts set to zero."""
    return _masked(Program(model, x, adapter), plan, x)


def _masked(program: Program, plan: PrunePlan, x: Tensor) -> list[Tensor]:
    """Outputs of a program with the channels that the plan cuts set to zero."""
    adapter = program.adapter
    masks: dict[Node, Any] = {}  # of values with cut channels, and in their shape: 0 if cut, more if not

    def visit(node: Node, value: Any, values: dict[Node, Any]) -> Any:
        name = program.layer(node)
        if name is not None and name in plan.keep:
            dim = channel_dim(node) % value.dim()
            channels = value.new_zeros(value.shape[dim])
            channels[list(plan.keep[name])] = 1.0
            masks[node] = channels.view([-1] + [1] * (value.dim() - 1 - dim)).expand(value.shape).contiguous()
        elif (mask := propagate_mask(node, value, masks, adapter)) is not None:
            masks[node] = mask
        for unused in masks.keys() - values.keys() - {node}:
            del masks[unused]
        return value.masked_fill(masks[node] == 0, 0.0) if isinstance(masks.get(node), Tensor) else value

    return program.run(x, visit)


def propagate_mask(node: Node, value: Any, masks: dict[Node, Any], adapter: Adapter) -> Any:
    """The mask of an operator's value, by those of its inputs: operators may make more than 0 of 0."""
    rule, sources = rules.rule_of(node, adapter), [masks[used] for used in node.all_input_nodes if used in masks]
    if not sources or rule is None:
        return None
    if rule in MOVING:  # 0 if it is made from zeros alone
        # The values in a trace are fake tensors: only their shape is of use here.
        ones = {n: value.new_ones(n.meta["val"].shape) for n in node.all_input_nodes if n not in masks}
        return compute(node, {**ones, **masks})
    if rule is rules.padding:
        return _padded(node, sources[0], value)
    if rule in (rules.pointwise, rules.arithmetic, rules.prelu, rules.group_norm, rules.layer_norm, rules.softmax):
        return torch.stack([source.expand(value.shape) for source in sources]).amin(0)
    if rule in rules.RULES.values() or len(sources) > 1 or sources[0].shape != value.shape:
        return None
    return sources[0]  # by a rule of the user: each channel is taken to stay at its place


def _padded(node: Node, kept: Tensor, value: Tensor) -> Tensor:
    """Maps are padded within their channels; channels that are added stay."""
    amounts: Any = node.args[1]
    for place in range(0, len(amounts), 2):
        dim = value.dim() - 1 - place // 2
        first = kept.narrow(dim, 0, 1)
        if torch.equal(kept, first.expand(kept.shape)):
            kept = first.expand([*kept.shape[:dim], value.shape[dim], *kept.shape[dim + 1 :]])
        else:
            kept = pad(kept, [0] * place + list(amounts[place : place + 2]), value=1.0)
    return kept
