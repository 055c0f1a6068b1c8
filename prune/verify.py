"""The proof that surgery is exact: the full model with the cut channels zeroed is the pruned model."""

from __future__ import annotations

import copy
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.errors import PruneError
from prune.interpret import Program, channel_dim, operator_name
from prune.operators import ARITHMETIC, PADDING, POINTWISE, SPATIAL
from prune.plan import PrunePlan
from prune.raw import set_raw, tensors

Cut = tuple[int, Tensor]  # the dimension that holds channels, and the positions of those that are cut


def verify(model: nn.Module, student: nn.Module, plan: PrunePlan, example_input: Tensor) -> float:
    """Largest difference between the raw outputs of the masked model and of the pruned one, in float64.

    The masked model is `model` run operator by operator, with every cut channel set to zero after its BatchNorm, after
    its activation and after all else that makes more of it. `student` must come straight from `prune.apply`, before any
    repair or training.

    Args:
        model: The full model.
        student: `prune.apply(model, plan)`.
        plan: The plan.
        example_input: Input to compare on, (N, C, H, W). Random values test more than zeros.

    Returns:
        The largest absolute difference over all raw output values. Below 1e-8 is rounding. Infinite where a value is NaN,
        or infinite in one of the two only: nothing is proved then.

    Raises:
        PruneError: The student does not run, its outputs have other shapes, or there is no output value to compare.
    """
    x = example_input.to(next(model.parameters()).device, torch.float64)
    with torch.no_grad():
        reference = masked_outputs(set_raw(copy.deepcopy(model).double()), plan, x)
        try:
            outputs = tensors(set_raw(copy.deepcopy(student).double())(x))
        except RuntimeError as error:
            raise PruneError(f"the cut network does not run: {error}") from error
    if [t.shape for t in reference] != [t.shape for t in outputs]:
        raise PruneError("the student's outputs have other shapes than the model's")
    if not any(t.numel() for t in reference):
        raise PruneError(f"nothing to compare: {type(model).__name__} returns no tensor")
    return max(_difference(a, b) for a, b in zip(reference, outputs, strict=True))


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; NaN, which compares as neither more nor less, counts as infinite."""
    far = torch.where(a == b, 0.0, (a.double() - b.double()).abs())  # infinities that agree are no difference
    return far.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item() if far.numel() else 0.0


def masked_outputs(model: nn.Module, plan: PrunePlan, x: Tensor) -> list[Tensor]:
    """Raw outputs of `model`, in the mode that it is in, with the channels that the plan cuts set to zero."""
    program = Program(model, x)
    cut: dict[Node, Cut] = {}

    def mask(node: Node, value: Any, _: dict[Node, Any]) -> Any:
        name = program.layer(node)
        if name is not None and name in plan.keep:
            dim = channel_dim(node) % value.dim()
            gone = torch.ones(value.shape[dim], dtype=torch.bool)
            gone[list(plan.keep[name])] = False
            cut[node] = dim, gone.nonzero()[:, 0].to(value.device)
        elif (found := _passed_on(node, cut)) is not None:
            cut[node] = found
        return value.index_fill(*cut[node], 0.0) if node in cut else value

    return program.run(x, mask)


def _passed_on(node: Node, cut: dict[Node, Cut]) -> Cut | None:
    """What is cut of a value because it is of those that it was made from, where an operator makes more than 0 of 0."""
    args: Any = node.args
    if operator_name(node) == "cat":
        dim = (args[1] if len(args) > 1 else 0) % node.meta["val"].dim()
        starts = accumulate((part.meta["val"].shape[dim] for part in args[0]), initial=0)
        parts = [cut[part][1] + start for part, start in zip(args[0], starts, strict=False) if part in cut]
        along = all(cut[part][0] == dim for part in args[0] if part in cut)
        return (dim, torch.cat(parts)) if parts and along else None
    if operator_name(node) in POINTWISE | SPATIAL | PADDING | ARITHMETIC:
        for used in node.all_input_nodes:
            if used in cut and _width(used, cut[used][0]) == _width(node, cut[used][0]):
                return cut[used]
    return None


def _width(node: Node, dim: int) -> tuple[int, int] | None:
    value = node.meta["val"]
    return (value.dim(), value.shape[dim]) if isinstance(value, Tensor) and dim < value.dim() else None
