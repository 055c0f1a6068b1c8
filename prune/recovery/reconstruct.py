"""Recovery block by block: a short descent on what least squares cannot reach, the layers inside a block together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.adapter import Adapter, adapter_for
from prune.cut.plan import PrunePlan
from prune.importance.statistics import Progress, Sensitivity, backward_with_taps, gaussian, no_progress, seeded
from prune.keywords import public
from prune.program.geometry import capped
from prune.program.interpret import Program
from prune.program.raw import emitting_raw
from prune.recovery.pair import LayerRepair, Pair, advance, prepare_pair
from prune.recovery.segments import Segment, Target, segments

BATCH = 8  # images to a step, if a tensor of images is given; 16 were no better for twice the time
Weights = dict[Target, list[tuple[Tensor, Tensor]]]  # target -> per batch, of channels and of positions
SETTLED = 0.01  # of the outputs' variance: a block with a smaller error has nothing to win

BlockRepair = LayerRepair  # one record serves both


@public()
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
    adapter: Adapter | None = None,
) -> list[BlockRepair]:
    """Train each block of the student, on the inputs that it really gets, to give the model's kept outputs. In place.

    Blocks go in execution order. A block's loss is the squared difference of its outputs from the model's kept channels,
    each position and channel weighted by the sensitivity of the model's outputs to it. BatchNorm keeps its statistics. No
    labels. After Li et al., BRECQ, ICLR 2021 (arXiv:2102.05426), which does this for quantization. Best after `repair`,
    whose closed form solves one layer at a time.

    Args:
        student: From `prune.apply(model, plan)`, best repaired; changed in place.
        model: The full model: the teacher.
        plan: The plan.
        images: As for `repair`. The last batch, of three or more, is held out to judge.
        sensitivity: As for `repair`.
        steps: Optimizer steps for each block; 0 changes nothing.
        lr: Highest learning rate of Adam; it falls as a half cosine.
        seed: Of the noise and of the order of batches.
        progress: As for `repair`.
        adapter: As for `prune.trace`.

    Returns:
        One record per block.

    Raises:
        PruneError: As `repair` does.
    """
    adapter, progress = adapter or adapter_for(model), progress or no_progress
    program, batches = prepare_pair(student, model, plan, images, BATCH, adapter)
    blocks = segments(program, plan)
    weights = target_weights(program, blocks, batches, sensitivity or gaussian, seed)
    trainable = {parameter: parameter.requires_grad for parameter in student.parameters()}
    student.requires_grad_(True)
    try:
        with emitting_raw(student, adapter), torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            trainer = _Trainer(Pair(student, program, batches), weights, steps, lr, generator)
            return list(progress(trainer.blocks(blocks), "reconstruct", len(blocks), "blocks"))
    finally:
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def target_weights(
    program: Program, blocks: list[Segment], batches: list[Tensor], sensitivity: Sensitivity, seed: int
) -> Weights:
    """Per target and batch, a weight for each channel and one for each position, from the outputs' sensitivity to them.

    Their product is as large as the values, so it is made where it is used. A target that no gradient reaches is missing.
    """
    targets = {target.node: target for block in blocks for target in block.targets}
    positions: dict[Target, list[list[Tensor]]] = {t: [[] for _ in batches] for t in targets.values()}  # per pass
    channels: dict[Target, Any] = dict.fromkeys(targets.values(), 0.0)

    def add(target: Target, index: int, gradient: Tensor) -> None:
        squared = target.kept(gradient).float().square()
        positions[target][index].append(squared.sum(target.dim, keepdim=True))
        others = [d for d in range(squared.dim()) if d != target.dim % squared.dim()]
        channels[target] = channels[target] + squared.sum(others)

    with seeded(batches[0].device, seed):
        for index, batch in enumerate(batches):

            def tap(part: Program, node: Node, _: dict[Node, Any], index: int = index) -> Any:
                target = targets.get(part.number[node])
                return None if target is None else lambda gradient: add(target, index, gradient)

            backward_with_taps(program, batch, sensitivity, tap)
    weights = {}
    for target, passes in positions.items():
        if all(passes):
            squares = torch.cat([square for parts in passes for square in parts])
            each = channels[target] / channels[target].mean().clamp(min=1e-30)
            each = each.view([-1 if d == target.dim % squares.dim() else 1 for d in range(squares.dim())])
            even = 0.5 + 0.5 * capped(squares)  # half of it even: see `repair`
            weights[target] = [(each, part) for part in even.split([sum(map(len, parts)) for parts in passes])]
    return weights


@dataclass
class _Trainer:
    """Trains the blocks on the way through both networks."""

    pair: Pair
    weights: Weights
    steps: int
    lr: float
    generator: torch.Generator

    def blocks(self, blocks: list[Segment]) -> Iterator[BlockRepair]:
        for block in blocks:
            self.pair.cache_at(_ends(block))
            yield self._train(block)

    def _train(self, block: Segment) -> BlockRepair:
        targets = [target for target in block.targets if target in self.weights]
        parameters = self._parameters(block)
        count = len(self.pair.batches)
        held_out = [count - 1] if count > 2 else list(range(count))
        learning = list(range(count - 1)) if count > 2 else held_out
        scale = self._variance(block, targets)
        before = self._error(block, targets, held_out) / scale if targets else 0.0
        if not (targets and parameters and self.steps) or before < SETTLED:
            return BlockRepair(block.name, before, before, False)
        backup = [parameter.clone() for parameter in parameters]
        self._descend(block, targets, parameters, learning, scale)
        after = self._error(block, targets, held_out) / scale
        for parameter, old in zip(parameters, backup, strict=True):
            parameter.grad = None
            if not after < before:  # written so that NaN fails
                parameter.copy_(old)
        return BlockRepair(block.name, before, min(before, after), after < before)

    def _descend(
        self, block: Segment, targets: list[Target], parameters: list[nn.Parameter], learning: list[int], scale: float
    ) -> None:
        """All steps of one block, over the `learning` batches in random order; losses are divided by `scale`."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        order: list[int] = []
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
            order = order or [learning[i] for i in torch.randperm(len(learning), generator=self.generator)]
            with torch.enable_grad():
                loss = self._loss(block, targets, order.pop()) / scale
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

    def _parameters(self, block: Segment) -> list[nn.Parameter]:
        """Those that no other block has: cached values were computed with the weights of the blocks before."""
        program, nodes = self.pair.student, block.nodes
        read = {used for i in nodes for used in self.pair.nodes[i][1].all_input_nodes if used.op == "placeholder"}
        alone = (node for node in read if all(program.number[user] in nodes for user in node.users))
        values = (program.placeholder(node, self.pair.batches[0]) for node in alone)
        return [value for value in values if isinstance(value, nn.Parameter)]

    def _error(self, block: Segment, targets: list[Target], batches: list[int]) -> float:
        return sum(self._loss(block, targets, batch).item() for batch in batches) / len(batches)

    def _loss(self, block: Segment, targets: list[Target], batch: int) -> Tensor:
        """Weighted squared difference from the teacher, a mean per element, of a batch that runs through the block."""
        with torch.no_grad():  # what is not cached is computed again, and this block alone is trained
            teacher_values, student_values = self.pair.values_at(batch, _ends(block))
        values, own = dict(student_values), set[Node]()
        for i in block.nodes:
            advance(self.pair.nodes[i][1], values, own)
        total = torch.zeros((), device=self.pair.batches[batch].device)
        for target in targets:
            t, s = self.pair.nodes[target.node]
            difference = values[s] - target.kept(teacher_values[t])
            total = total + (difference.square() * self._weight(target, batch)).mean()
        return total

    def _weight(self, target: Target, batch: int) -> Tensor:
        channels, positions = self.weights[target][batch]
        return channels * positions

    def _variance(self, block: Segment, targets: list[Target]) -> float:
        """What `_loss` would be, in the mean over batches, of the best constant outputs."""
        sums: dict[Target, Any] = dict.fromkeys(targets, 0.0)
        count = dict.fromkeys(targets, 0)
        for batch in range(len(self.pair.batches)):
            teacher_values, _ = self.pair.values_at(batch, _ends(block))
            for target in targets:
                y, w = target.kept(teacher_values[self.pair.nodes[target.node][0]]), self._weight(target, batch)
                others = [d for d in range(y.dim()) if d != target.dim % y.dim()]
                sums[target] = sums[target] + torch.stack([(w * y**power).sum(others) for power in range(3)])
                count[target] += y.numel()
        total = 0.0
        for target, (weight, first, second) in sums.items():
            total += (second - first**2 / weight.clamp(min=1e-30)).sum().item() / count[target]
        return max(total, 1e-30)


def _ends(block: Segment) -> tuple[int, int]:
    """Where a block is trained: the teacher has come to its end, the student to its start."""
    return block.nodes.stop, block.nodes.start
