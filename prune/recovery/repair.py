"""Closed-form recovery: each student layer is solved to reproduce the teacher's, on the inputs that it really gets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from prune.adapter import Adapter, adapter_for
from prune.cut.plan import PrunePlan
from prune.importance.statistics import (
    BATCH,
    POSITIONS,
    Progress,
    Sensitivity,
    Weights,
    gaussian,
    measure_sensitivity,
    no_progress,
)
from prune.keywords import public
from prune.program.geometry import as_convolution, geometry_of, input_rows, matrix_of, output_rows, sample_positions
from prune.program.raw import emitting_raw
from prune.recovery.pair import LayerRepair, Pair, prepare_pair, prepare_teacher
from prune.recovery.regression import Regression

_LOG = logging.getLogger(__name__)

HELD_OUT = 6  # every sixth image judges a layer before its solution is accepted


@public()
def repair(
    student: nn.Module,
    model: nn.Module,
    plan: PrunePlan,
    images: Tensor | Iterable[Tensor],
    *,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    adapter: Adapter | None = None,
    weights: Weights | None = None,
) -> list[LayerRepair]:
    """Solve the student's layers, in execution order, so that each gives the model's kept outputs. In place; no labels.

    Both networks run side by side, operator by operator. At a convolution or linear layer, weighted ridge regression
    (towards the weights it has) maps the student's inputs to the model's outputs. The constant goes into the BatchNorm's
    mean or the bias. BatchNorm statistics are otherwise the model's.

    Args:
        student: From `prune.apply(model, plan)`; changed in place.
        model: The full model: the teacher.
        plan: The plan.
        images: (N, C, H, W) tensor, or an iterable of batches of one size (a smaller last one is left out). Up to 4 GB of
            their activations are cached; what is more is computed again for each layer.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`. Positions that outputs are sensitive to
            weigh more.
        seed: Of the noise and of the sampled positions.
        progress: Called as progress(iterable, label, total, unit).
        adapter: As for `prune.trace`.
        weights: From `repair_weights` of the same model, images and seed, if several students of one model are repaired;
            they are measured here by default.

    Returns:
        One record per layer.

    Raises:
        PruneError: No images, weights that are not float32, the plan is for another model, or the student is not cut by it.
    """
    adapter, progress = adapter or adapter_for(model), progress or no_progress
    program, batches = prepare_pair(student, model, plan, images, BATCH, adapter)
    layers = _layers(plan)
    if weights is None:
        weights = measure_sensitivity(program, layers, batches, sensitivity or gaussian, seed, progress).weights
    with emitting_raw(student, adapter), torch.no_grad():
        solver = _Solver(student, Pair(student, program, batches), plan, weights, seed)
        done = list(progress(solver.layers(), "repair", len(layers), "layers"))
    for layer in done:
        _LOG.debug("%s: held-out error %.3g, repaired %.3g", layer.name, layer.error_before, layer.error_after)
    return done


def repair_weights(
    model: nn.Module,
    plan: PrunePlan,
    images: Tensor | Iterable[Tensor],
    *,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    adapter: Adapter | None = None,
) -> Weights:
    """What `repair` weighs positions by: the same for every plan of the model, so it need be measured once for many.

    Args: as for `repair`; `plan` is any plan of the model.
    """
    adapter = adapter or adapter_for(model)
    program, batches = prepare_teacher(model, plan, images, BATCH, adapter)
    layers = _layers(plan)
    return measure_sensitivity(program, layers, batches, sensitivity or gaussian, seed, progress or no_progress).weights


def _layers(plan: PrunePlan) -> list[str]:
    """The layers that are solved, in execution order."""
    return [name for name in plan.keep_inputs if name in plan.keep]


class _Solver:
    """Solves the layers on the way through both networks."""

    def __init__(self, student: nn.Module, pair: Pair, plan: PrunePlan, weights: Weights, seed: int) -> None:
        self.pair, self.plan, self.weights, self.seed = pair, plan, weights, seed
        self.names = [pair.student.layer(node) for _, node in pair.nodes]
        self.calls = Counter(self.names)
        self.modules: dict[str, Any] = dict(student.named_modules())
        self.teachers: dict[str, Any] = dict(pair.teacher.model.named_modules())

    def layers(self) -> Iterator[LayerRepair]:
        for i, name in enumerate(self.names):
            if name is not None and name in self.plan.keep_inputs and self.calls[name] == 1:
                self.pair.cache_at((i + 1, i))  # the teacher has computed the layer, the student comes to it
                yield self._solve(name, i)

    def _solve(self, name: str, number: int) -> LayerRepair:
        module, norm = self.modules[name], self._batch_norm(self.pair.nodes[number][1])
        fit, judge = self._regressions(name, number, norm)
        solution = fit.solve()
        before, after = judge.error(None), judge.error(solution)
        changed = solution is not None and (judge.total == 0 or after < before)
        solution = fit.merge(judge).solve() if changed else None
        if solution is not None:
            step, shift = solution
            if fit.constant:
                shift = shift - (step @ fit.grouped(fit.origin.double())[:, :, None])[:, :, 0].flatten()
            change = step.reshape(matrix_of(module).shape)
            if isinstance(module, nn.ConvTranspose2d):
                change = as_convolution(change, module.groups)
            module.weight += change.to(module.weight.dtype)
            if norm is not None:
                self.modules[norm].running_mean -= shift.to(module.weight.dtype)
            elif module.bias is not None:
                module.bias += shift.to(module.bias.dtype)
        return LayerRepair(name, before, after if changed else before, changed)

    def _regressions(self, name: str, number: int, norm: str | None) -> tuple[Regression, Regression]:
        """Of a layer's inputs on the teacher's outputs: on the images to fit, and on those held out to judge."""
        teacher_node, node = self.pair.nodes[number]
        module, layer, keep = self.modules[name], geometry_of(node), list(self.plan.keep[name])
        constant = norm is not None or module.bias is not None
        fit, judge = Regression(module, constant), Regression(module, constant)
        factor, offset = self._before_norm(norm, keep) if norm is not None else (1.0, 0.0)
        for index in range(len(self.pair.batches)):
            teacher_values, values = self.pair.values_at(index, (number + 1, number))
            x, target = values[node.all_input_nodes[0]], teacher_values[teacher_node]
            total = layer.positions(target)
            positions = sample_positions(total, POSITIONS, self.seed + index)
            image = index * len(target) + positions // (total // len(target))
            held_out = (image % HELD_OUT == HELD_OUT - 1).to(x.device)
            positions = positions.to(x.device)
            rows = input_rows(x, target.shape, layer, positions)
            outputs = output_rows(target, layer, positions)[:, keep] * factor + offset
            # Half of a position's weight is its sensitivity, half is 1.
            weights = 0.5 + 0.5 * self.weights.get((index, number), torch.ones(len(rows), device=x.device))
            if index == 0 and constant:
                fit.origin = judge.origin = rows.mean(0)
            for regression, part in ((fit, ~held_out), (judge, held_out)):
                regression.add(rows[part], outputs[part], weights[part])
        return fit, judge

    def _batch_norm(self, node: Node) -> str | None:
        """Path of the BatchNorm that alone reads this layer, and reads nothing else: its mean can take a constant."""
        users = list(node.users)
        name = self.pair.student.layer(users[0]) if len(users) == 1 else None
        module = self.modules.get(name or "")
        alone = isinstance(module, _BatchNorm) and module.running_mean is not None and self.calls[name] == 1
        return name if alone else None

    def _before_norm(self, name: str, keep: list[int]) -> tuple[Any, Any]:
        """(factor, offset) that turn the teacher's outputs into those that give the same after the student's BatchNorm.

        The two BatchNorms are alike after surgery. A student that was repaired or trained before has its own.
        """
        (scale, shift), (old_scale, old_shift) = _affine(self.modules[name]), _affine(self.teachers[name])
        old_scale, old_shift = old_scale[keep], old_shift[keep]
        if torch.equal(scale, old_scale) and torch.equal(shift, old_shift):
            return 1.0, 0.0
        used = scale != 0  # what a scale of zero hides can be anything
        safe = torch.where(used, scale, 1.0)
        factor, offset = torch.where(used, old_scale / safe, 1.0), torch.where(used, (old_shift - shift) / safe, 0.0)
        return factor.float(), offset.float()


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode, as a scale and a shift per channel, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()
