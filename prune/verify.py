"""The proof that surgery is exact: the full model with the cut channels zeroed is the pruned model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.errors import PruneError
from prune.interpret import Program, operator_name
from prune.operators import POINTWISE
from prune.plan import PrunePlan
from prune.raw import set_raw, tensors


def verify(model: nn.Module, student: nn.Module, plan: PrunePlan, example_input: Tensor) -> float:
    """Largest difference between the raw outputs of the masked model and of the pruned one, in float64.

    The masked model is `model` run operator by operator, with every cut channel set to zero after its BatchNorm and
    after its activation. `student` must come straight from `prune.apply`, before any repair or training.

    Args:
        model: The full model.
        student: `prune.apply(model, plan)`.
        plan: The plan.
        example_input: Input to compare on, (N, C, H, W). Random values test more than zeros.

    Returns:
        The largest absolute difference over all raw output values. Below 1e-8 is rounding.

    Raises:
        PruneError: The student does not run, or its outputs have other shapes.
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
    return max((a - b).abs().max().item() for a, b in zip(reference, outputs, strict=True))


def masked_outputs(model: nn.Module, plan: PrunePlan, x: Tensor) -> list[Tensor]:
    """Raw outputs of `model`, in the mode that it is in, with the channels that the plan cuts set to zero."""
    program = Program(model, x)
    cut: dict[Node, Tensor] = {}  # node -> positions of its cut channels

    def mask(node: Node, value: Any) -> Any:
        name = program.layer(node)
        if name is not None and name in plan.keep:
            dim = value.dim() - 1 if operator_name(node) == "linear" else 1
            gone = torch.ones(value.shape[dim], dtype=torch.bool)
            gone[list(plan.keep[name])] = False
            cut[node] = gone.nonzero()[:, 0].to(value.device)
        elif operator_name(node) in POINTWISE and node.all_input_nodes[0] in cut:  # act(0) need not be 0
            cut[node] = cut[node.all_input_nodes[0]]
        if node not in cut:
            return value
        dim = value.dim() - 1 if value.dim() != 4 else 1
        return value.index_fill(dim, cut[node], 0.0)

    return program.run(x, mask)
