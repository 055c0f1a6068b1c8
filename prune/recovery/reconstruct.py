"""Recovery block by block: a short descent on what least squares cannot reach, the layers inside a block together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.cut.plan import PrunePlan
from prune.importance.base import Progress, Sensitivity
from prune.importance.statistics import backward, gaussian, seeded
from prune.program.interpret import Program
from prune.program.patches import capped
from prune.program.raw import emitting_raw
from prune.recovery.pair import Pair, advance, beginning
from prune.recovery.segments import Segment, Target, segments

BATCH = 8  # images to a step, where a tensor of images is given; 16 were no better for twice the time
SETTLED = 0.01  # of the outputs' variance: a block with a smaller error has nothing to win


@dataclass(frozen=True)
class BlockRepair:
    """What reconstruction did to one block.

    Attributes:
        name: Path of the block.
        error_before, error_after: Weighted squared error on the held-out batch, as a fraction of the outputs' variance.
        changed: False where the held-out error did not fall and the weights were kept, or where it was small already.
    """

    name: str
    error_before: float
    error_after: float
    changed: bool


def reconstruct(
    student: nn.Module,
    model: nn.Module,
    plan: PrunePlan,
    images: Tensor | Iterable[Tensor],
    *,
    sensitivity: Sensitivity | None = None,
    steps: int = 200,
    lr: float = 5e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[BlockRepair]:
    """Train each block of the student, on the inputs that it really gets, to give the model's kept outputs. In place.

    Blocks go in execution order. A block's loss is the squared difference of its outputs from the model's kept
    channels, each position and channel weighted by what the model's outputs feel of it; BatchNorm keeps to its
    statistics. No labels. After Li et al., BRECQ, ICLR 2021 (arXiv:2102.05426), which does this for quantization. Best
    after `repair`, whose closed form solves one layer at a time.

    Args:
        student: From `prune.apply(model, plan)`, best repaired; changed in place.
        model: The full model: the teacher.
        plan: The plan.
        images: As for `repair`. The last batch, of three or more, is held out to judge.
        sensitivity: Raw outputs -> scalar, see `prune.importance.statistics`.
        steps: Optimizer steps for each block; 0 changes nothing.
        lr: Highest learning rate of Adam; it falls as a half cosine.
        seed: Of the noise and of the order of batches.
        progress: Called as progress(iterable, label, total).

    Returns:
        One record per block.

    Raises:
        PruneError: No images, weights that are not float32, the plan is for another model, or the student is not cut by it.
    """
    program, batches = beginning(student, model, plan, images, BATCH)
    parts = segments(program, plan)
    weights = _weights(program, parts, batches, sensitivity or gaussian, seed)
    taught = {parameter: parameter.requires_grad for parameter in student.parameters()}
    student.requires_grad_(True)
    try:
        with emitting_raw(student), torch.no_grad():
            walk = _Walk(Pair(student, program, batches), weights, steps, lr, torch.Generator().manual_seed(seed))
            done = walk.through(parts)
            return list(done if progress is None else progress(done, "blocks", len(parts)))
    finally:
        for parameter, flag in taught.items():
            parameter.requires_grad_(flag)


def _weights(program, parts, batches, sensitivity, seed) -> dict[Target, list[tuple[Tensor, Tensor]]]:
    """Per target and batch, what the outputs feel of its elements: a weight for each position, and one for each channel.

    Their product is as large as the values, so it is made where it is used.
    """
    targets = {t.node: t for part in parts for t in part.targets}
    positions: dict[Target, list[list[Tensor]]] = {t: [[] for _ in batches] for t in targets.values()}  # per pass
    channels: dict[Target, Any] = dict.fromkeys(targets.values(), 0.0)

    def look(target: Target, index: int, gradient: Tensor) -> None:
        squared = target.kept(gradient).float().square()
        positions[target][index].append(squared.sum(target.dim, keepdim=True))
        channels[target] = channels[target] + squared.sum([d for d in range(squared.dim()) if d != target.dim])

    with seeded(batches[0].device, seed):
        for index, batch in enumerate(batches):

            def watch(part: Program, node: Node, _: dict[Node, Any], index: int = index) -> Any:
                target = targets.get(part.number[node])
                return None if target is None else lambda gradient: look(target, index, gradient)

            backward(program, batch, sensitivity, watch)
    found = {}
    for target, felt in positions.items():
        if all(felt):
            whole = torch.cat([square for squares in felt for square in squares])
            each = channels[target] / channels[target].mean().clamp(min=1e-30)
            each = each.view([-1 if d == target.dim % whole.dim() else 1 for d in range(whole.dim())])
            even = 0.5 + 0.5 * capped(whole)  # half of it even: see `repair`
            found[target] = [(each, part) for part in even.split([sum(map(len, squares)) for squares in felt])]
    return found


class _Walk:
    """Trains the segments on the way through both networks."""

    def __init__(
        self,
        pair: Pair,
        weights: dict[Target, list[tuple[Tensor, Tensor]]],
        steps: int,
        lr: float,
        draw: torch.Generator,
    ) -> None:
        self.pair, self.weights, self.steps, self.lr, self.draw = pair, weights, steps, lr, draw

    def through(self, parts: list[Segment]) -> Iterator[BlockRepair]:
        for part in parts:
            self.pair.hold(_ends(part))
            yield self._train(part)

    def _train(self, part: Segment) -> BlockRepair:
        targets = [target for target in part.targets if target in self.weights]
        parameters = self._parameters(part)
        count = len(self.pair.batches)
        held_out = [count - 1] if count > 2 else list(range(count))
        learning = list(range(count - 1)) if count > 2 else held_out
        scale = self._variance(part, targets)
        before = self._error(part, targets, held_out) / scale if targets else 0.0
        if not (targets and parameters and self.steps) or before < SETTLED:
            return BlockRepair(part.name, before, before, False)
        kept = [parameter.clone() for parameter in parameters]
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        order: list[int] = []
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
            order = order or [learning[i] for i in torch.randperm(len(learning), generator=self.draw)]
            with torch.enable_grad():
                loss = self._loss(part, targets, order.pop()) / scale
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        after = self._error(part, targets, held_out) / scale
        for parameter, old in zip(parameters, kept, strict=True):
            parameter.grad = None
            if not after < before:  # written so that NaN fails
                parameter.copy_(old)
        return BlockRepair(part.name, before, min(before, after), after < before)

    def _parameters(self, part: Segment) -> list[nn.Parameter]:
        """Those that no other block has: what is held was computed with the weights of the blocks before."""
        program = self.pair.student
        read = {used for i in part.nodes for used in self.pair.nodes[i][1].all_input_nodes if used.op == "placeholder"}
        alone = (node for node in read if all(program.number[user] in part.nodes for user in node.users))
        values = (program.placeholder(node, self.pair.batches[0]) for node in alone)
        return [value for value in values if isinstance(value, nn.Parameter)]

    def _error(self, part: Segment, targets: list[Target], batches: list[int]) -> float:
        return sum(self._loss(part, targets, batch).item() for batch in batches) / len(batches)

    def _loss(self, part: Segment, targets: list[Target], batch: int) -> Tensor:
        """Weighted squared difference from the teacher, a mean per element, of a batch that runs through the block."""
        with torch.no_grad():  # what is not held is computed again, and this block alone is trained
            theirs, held = self.pair.at(batch, _ends(part))
        values, own = dict(held), set[Node]()
        for i in part.nodes:
            advance(self.pair.nodes[i][1], values, own)
        total = torch.zeros((), device=self.pair.batches[batch].device)
        for target in targets:
            t, s = self.pair.nodes[target.node]
            total = total + ((values[s] - target.kept(theirs[t])).square() * self._weight(target, batch)).mean()
        return total

    def _weight(self, target: Target, batch: int) -> Tensor:
        each, positions = self.weights[target][batch]
        return each * positions

    def _variance(self, part: Segment, targets: list[Target]) -> float:
        """What `_loss` would be, in the mean over batches, of the best constant outputs."""
        sums: dict[Target, Any] = dict.fromkeys(targets, 0.0)
        count = dict.fromkeys(targets, 0)
        for batch in range(len(self.pair.batches)):
            theirs, _ = self.pair.at(batch, _ends(part))
            for target in targets:
                y, w = target.kept(theirs[self.pair.nodes[target.node][0]]), self._weight(target, batch)
                over = [d for d in range(y.dim()) if d != target.dim % y.dim()]
                sums[target] = sums[target] + torch.stack([(w * y**power).sum(over) for power in range(3)])
                count[target] += y.numel()
        total = 0.0
        for target, (weight, first, second) in sums.items():
            total += (second - first**2 / weight.clamp(min=1e-30)).sum().item() / count[target]
        return max(total, 1e-30)


def _ends(part: Segment) -> tuple[int, int]:
    """Where a block is trained: the teacher has come to its end, the student to its start."""
    return part.nodes.stop, part.nodes.start
