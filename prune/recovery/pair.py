"""A student and its teacher side by side: the same operators, with what they give for every batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from prune.cut.plan import PrunePlan
from prune.cut.surgery import check, check_student
from prune.errors import PruneError
from prune.importance.statistics import as_batches, device_of
from prune.program.interpret import Program, compute, in_place, operator_name
from prune.program.raw import raw_copy

MEMORY = 4 * 2**30  # bytes that the values held of both networks may take; what is not held is computed again

Values = dict[Node, Any]
Point = tuple[int, int]  # so many of the teacher's nodes are computed, and so many of the student's


class Pair:
    """Both networks' exported graphs, and the values of every batch at one point of them.

    Attributes:
        nodes: (teacher's, student's) node by node.
        batches: The images.
    """

    def __init__(self, student: nn.Module, teacher: Program, batches: list[Tensor]) -> None:
        self.batches, self.teacher, self.student = batches, teacher, Program(student, batches[0])
        names = [[operator_name(n) for n in p.nodes if n.op == "call_function"] for p in (teacher, self.student)]
        if names[0] != names[1]:
            raise PruneError("the student computes other operators than the model: it is no pruned copy of it")
        self.nodes = list(zip(teacher.nodes, self.student.nodes, strict=True))
        # Per batch: where its values are held, the bytes that they take, and they themselves.
        self._held: list[tuple[Point, int, tuple[Values, Values]]] = [((0, 0), 0, ({}, {})) for _ in batches]

    def hold(self, point: Point) -> None:
        """Hold the batches' values at `point` from now on, for what comes after it.

        As many batches as `MEMORY` has room for; those of the others stay at an earlier point, and `at` goes on from there
        each time: images cost time then, not memory. It is early layers, with large maps, that are not all held. A
        student's layers before a point that is held must not change any more.
        """
        programs = (self.teacher, self.student)
        each = sum(program.live_bytes(count) for program, count in zip(programs, point, strict=True))
        total = sum(size for _, size, _ in self._held)
        for index, (_, size, _) in enumerate(self._held):
            if total - size + each <= MEMORY:
                self._held[index] = point, each, self.at(index, point)
                total += each - size

    def at(self, index: int, point: Point) -> tuple[Values, Values]:
        """Batch number `index`: the (teacher's, student's) values at `point` that later nodes need. Not to be changed."""
        known, _, held = self._held[index]
        if point == known:
            return held
        found = []
        for program, before, start, end in zip((self.teacher, self.student), held, known, point, strict=True):
            values = dict(before)
            own: set[Node] = set()
            for node in program.nodes[start:end]:
                if node.op == "placeholder":
                    values[node] = program.placeholder(node, self.batches[index])
                    continue
                advance(node, values, own)
                for used in node.all_input_nodes:
                    if program.last_use[used] is node:
                        del values[used]
            found.append(values)
        return found[0], found[1]


def advance(node: Node, values: Values, own: set[Node]) -> None:
    """Compute the next node into `values`. What is not of its `own` is held for others: it is copied before it is changed."""
    if in_place(node):
        written: Any = node.args[0]
        if written not in own:
            values[written] = values[written].clone()
            own.add(written)
    values[node] = compute(node, values)
    # What an operator gives may be its input's memory: a view, or the input itself, as of dropout in eval mode.
    held = {memory for used in node.all_input_nodes if used not in own for memory in _memory(values[used])}
    if held.isdisjoint(_memory(values[node])):
        own.add(node)


def _memory(value: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def beginning(
    student: nn.Module, model: nn.Module, plan: PrunePlan, images: Tensor | Iterable[Tensor], size: int
) -> tuple[Program, list[Tensor]]:
    """What a walk begins with: the traced teacher, a raw copy of `model`, and the batches of the first one's shape.

    Raises:
        PruneError: no images, weights that are not float32, the plan is for another model, or the student is not cut by it.
    """
    check(model, plan)
    check_student(student, plan)
    teacher, device = raw_copy(model), device_of(model)
    batches = [batch.to(device, torch.float32) for batch in as_batches(images, size)]
    # The traced graphs have that shape in them.
    return Program(teacher, batches[0]), [batch for batch in batches if batch.shape == batches[0].shape]
