"""A student and its teacher side by side: the same operators, one after another, on all batches at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.errors import PruneError
from prune.interpret import Program, compute, operator_name
from prune.raw import raw_copy
from prune.statistics import as_batches

MEMORY = 4 * 2**30  # bytes that the activations of both networks may take: more images than fit are left out


class Pair:
    """Both networks' exported graphs and, for every batch, the values that are still needed.

    Attributes:
        nodes: (teacher's, student's) node by node.
        values: (teacher's, student's): per batch the values held, by node.
    """

    def __init__(self, student: nn.Module, teacher: Program, batches: list[Tensor]) -> None:
        self.batches, self.teacher, self.student = batches, teacher, Program(student, batches[0])
        names = [[operator_name(n) for n in p.nodes if n.op == "call_function"] for p in (teacher, self.student)]
        if names[0] != names[1]:
            raise PruneError("the student computes other operators than the model: it is no pruned copy of it")
        self.nodes = list(zip(teacher.nodes, self.student.nodes, strict=True))
        self.values: tuple[list[dict[Node, Any]], ...] = ([{} for _ in batches], [{} for _ in batches])

    def compute_teacher(self, index: int) -> None:
        """The value of node number `index`, of every batch."""
        self._compute(self.teacher, self.nodes[index][0], self.values[0])

    def compute_student(self, index: int) -> None:
        """The same; and what no later node needs is let go of, in both networks."""
        self._compute(self.student, self.nodes[index][1], self.values[1])
        for program, node, held in zip((self.teacher, self.student), self.nodes[index], self.values, strict=True):
            for used in node.all_input_nodes:
                if program.last_use[used] is node:
                    for batch in held:
                        del batch[used]

    def _compute(self, program: Program, node: Node, values: list[dict[Node, Any]]) -> None:
        for batch, held in zip(self.batches, values, strict=True):
            held[node] = program.placeholder(node, batch) if node.op == "placeholder" else compute(node, held)


def beginning(model: nn.Module, images: Tensor | Iterable[Tensor], size: int) -> tuple[Program, list[Tensor]]:
    """What a walk begins with: the traced teacher, a raw copy of `model`, and the batches that memory has room for.

    Raises:
        PruneError: no images.
    """
    teacher = raw_copy(model)
    device = next(teacher.parameters()).device
    batches = [batch.to(device, torch.float32) for batch in as_batches(images, size)]
    program = Program(teacher, batches[0])
    return program, _fitting(program, batches)


def _fitting(teacher: Program, batches: list[Tensor]) -> list[Tensor]:
    """The batches that memory has room for, of the first one's shape: the traced graphs have that shape in them."""
    whole = [b for b in batches if b.shape == batches[0].shape]
    each = 2 * teacher.peak_bytes() + whole[0].numel() * whole[0].element_size()  # the student is no larger
    some = whole[: max(1, MEMORY // each)]
    if len(some) < len(whole):
        used, given = (len(batches) * len(whole[0]) for batches in (some, whole))
        warnings.warn(
            f"repair uses {used} of the {given} images: the activations of more would take over {MEMORY / 2**30:.0f} GB",
            stacklevel=4,
        )
    return some
