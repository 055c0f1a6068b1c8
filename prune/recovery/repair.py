"""Closed-form recovery: each student layer is solved to reproduce the teacher's, on the inputs that it really gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from prune.cut.plan import PrunePlan
from prune.importance.base import Progress, Sensitivity
from prune.importance.sensitivity import POSITIONS, feel
from prune.importance.statistics import BATCH, gaussian
from prune.program.interpret import Program
from prune.program.patches import input_rows, output_rows, reading, sample_positions
from prune.program.raw import emitting_raw
from prune.recovery.pair import Pair, beginning
from prune.recovery.regression import Regression

HELD_OUT = 6  # every sixth image judges a layer before its solution is accepted


@dataclass(frozen=True)
class LayerRepair:
    """What repair did to one layer.

    Attributes:
        name: Path of the layer.
        error_before, error_after: Weighted squared error on held-out images, as a fraction of the outputs' variance.
        changed: False where the held-out error did not fall and the weights were kept.
    """

    name: str
    error_before: float
    error_after: float
    changed: bool


def repair(
    student: nn.Module,
    model: nn.Module,
    plan: PrunePlan,
    images: Tensor | Iterable[Tensor],
    *,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LayerRepair]:
    """Solve the student's layers, in execution order, so that each gives the model's kept outputs. In place; no labels.

    Both networks run side by side, operator by operator. At a convolution or linear layer, weighted ridge
    regression (towards the weights it has) maps the inputs that the student gets now to what the model computes there;
    the constant goes into the BatchNorm's mean or the bias. BatchNorm statistics are otherwise the model's.

    Args:
        student: From `prune.apply(model, plan)`; changed in place.
        model: The full model: the teacher.
        plan: The plan.
        images: (N, C, H, W) tensor, or an iterable of batches of one size (a smaller last one is left out). Up to 4 GB of
            their activations are held; what is more is computed again for each layer.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`. Positions the outputs feel weigh more.
        seed: Of the noise and of the sampled positions.
        progress: Called as progress(iterable, label, total).

    Returns:
        One record per layer.

    Raises:
        PruneError: No images, weights that are not float32, the plan is for another model, or the student is not cut by it.
    """
    program, batches = beginning(student, model, plan, images, BATCH)
    layers = [name for name in plan.keep_inputs if name in plan.keep]
    weights = feel(program, layers, batches, sensitivity or gaussian, seed, progress).weights
    with emitting_raw(student), torch.no_grad():
        walk = _Walk(student, program, plan, batches, weights, seed)
        return list(walk.layers() if progress is None else progress(walk.layers(), "repair", len(layers)))


class _Walk:
    """Solves the layers on the way through both networks."""

    def __init__(self, student, teacher: Program, plan, batches, weights, seed) -> None:
        self.plan, self.weights, self.seed, self.device = plan, weights, seed, batches[0].device
        self.pair = Pair(student, teacher, batches)
        self.names = [self.pair.student.layer(node) for _, node in self.pair.nodes]
        self.calls = Counter(self.names)
        self.modules, self.teachers = dict(student.named_modules()), dict(teacher.model.named_modules())

    def layers(self) -> Iterator[LayerRepair]:
        for i, name in enumerate(self.names):
            if name is not None and name in self.plan.keep_inputs and self.calls[name] == 1:
                self.pair.hold((i + 1, i))  # the teacher has computed the layer, the student comes to it
                yield self._solve(name, i)

    def _solve(self, name: str, number: int) -> LayerRepair:
        t, s = self.pair.nodes[number]
        module, layer = self.modules[name], reading(s)
        norm = self._batch_norm(s)
        bn: Any = self.modules[norm] if norm is not None else None
        constant = bn is not None or module.bias is not None
        fit, judge = Regression(module, constant), Regression(module, constant)
        keep = list(self.plan.keep[name])
        factor, offset = self._before_norm(norm, keep) if norm is not None else (1.0, 0.0)
        inputs: Any = s.args[0]
        for index in range(len(self.pair.batches)):
            theirs, ours = self.pair.at(index, (number + 1, number))
            x, target = ours[inputs], theirs[t]
            total = layer.positions(target)
            positions = sample_positions(total, POSITIONS, self.seed + index)
            image = index * len(target) + positions // (total // len(target))
            held_out = (image % HELD_OUT == HELD_OUT - 1).to(self.device)
            positions = positions.to(self.device)
            rows = input_rows(x, target.shape, layer, positions)
            wanted = output_rows(target, layer, positions)[:, keep] * factor + offset
            felt = self.weights.get((index, number))  # of its positions: half what the outputs feel there, half 1
            weights = torch.ones(len(rows), device=self.device) if felt is None else 0.5 + 0.5 * felt
            if index == 0 and constant:
                fit.origin = judge.origin = rows.mean(0)
            for regression, part in ((fit, ~held_out), (judge, held_out)):
                regression.add(rows[part], wanted[part], weights[part])
        solution = fit.solve()
        before, after = judge.error(None), judge.error(solution)
        changed = solution is not None and (judge.total == 0 or after < before)
        solution = fit.merge(judge).solve() if changed else None
        if solution is not None:
            step, shift = solution
            if constant:
                shift = shift - (step @ fit.grouped(fit.origin.double())[:, :, None])[:, :, 0].flatten()
            module.weight += step.reshape_as(module.weight).to(module.weight.dtype)
            if bn is not None:
                bn.running_mean -= shift.to(bn.running_mean.dtype)
            elif module.bias is not None:
                module.bias += shift.to(module.bias.dtype)
        return LayerRepair(name, before, after if changed else before, changed)

    def _batch_norm(self, node: Node) -> str | None:
        """Path of the BatchNorm that alone reads this layer, and reads nothing else: its mean can take a constant."""
        users = list(node.users)
        name = self.pair.student.layer(users[0]) if len(users) == 1 else None
        module: Any = self.modules.get(name or "")
        alone = isinstance(module, _BatchNorm) and module.running_mean is not None and self.calls[name] == 1
        return name if alone else None

    def _before_norm(self, name: str, keep: list[int]) -> tuple[Any, Any]:
        """(factor, offset): what the teacher's layer gives, as the student must to have the same after its BatchNorm.

        The two are alike after surgery. A student that was repaired or trained before has a BatchNorm of its own.
        """
        (scale, shift), (old_scale, old_shift) = _affine(self.modules[name]), _affine(self.teachers[name])
        old_scale, old_shift = old_scale[keep], old_shift[keep]
        if torch.equal(scale, old_scale) and torch.equal(shift, old_shift):
            return 1.0, 0.0
        used = scale != 0  # what a scale of zero hides can be anything
        safe = torch.where(used, scale, 1.0)
        factor, offset = torch.where(used, old_scale / safe, 1.0), torch.where(used, (old_shift - shift) / safe, 0.0)
        return factor.float(), offset.float()


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode, as a scale and a shift per channel, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()
