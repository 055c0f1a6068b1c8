"""A student and its teacher side by side: the same operators, with their values for every batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.adapter import Adapter
from prune.cut.plan import PrunePlan
from prune.cut.surgery import check, check_student
from prune.errors import PruneError
from prune.importance.statistics import as_batches, device_of
from prune.program.interpret import Program, compute
from prune.program.operators import in_place, operator_name
from prune.program.raw import raw_copy, tensors

CACHE_BYTES = 4 * 2**30  # that cached values of both networks may take; what is not cached is computed again

Values = dict[Node, Any]
Images = Tensor | Iterable[Tensor]
Point = tuple[int, int]  # (teacher nodes computed, student nodes computed)


@dataclass(frozen=True)
class LayerRepair:
    """What repair did to one layer, or reconstruction to one block.

    Attributes:
        name: Path of the layer or block.
        error_before, error_after: Weighted squared error on held-out images, as a fraction of the outputs' variance.
        changed: False if the weights were kept: the held-out error did not fall, or a block's was small already.
    """

    name: str
    error_before: float
    error_after: float
    changed: bool

    def __repr__(self) -> str:
        kept = "" if self.changed else ", kept"
        return f"LayerRepair({self.name!r}, error {self.error_before:.3g} -> {self.error_after:.3g}{kept})"


@dataclass(frozen=True)
class Cached:
    """The values of one batch at a point: the teacher's and the student's."""

    point: Point
    size: int
    values: tuple[Values, Values]


class Pair:
    """Both networks' exported graphs, and the values of every batch at one point of them.

    Attributes:
        nodes: (teacher's, student's) node by node.
        batches: The images.
    """

    def __init__(self, student: nn.Module, teacher: Program, batches: list[Tensor]) -> None:
        self.batches, self.teacher = batches, teacher
        self.student = Program(student, batches[0], teacher.adapter)
        self.programs = (teacher, self.student)
        names = [[operator_name(n) for n in p.nodes if n.op == "call_function"] for p in self.programs]
        if names[0] != names[1]:
            raise PruneError("the student computes other operators than the model: it is no pruned copy of it")
        self.nodes = list(zip(teacher.nodes, self.student.nodes, strict=True))
        self._cache = [Cached((0, 0), 0, ({}, {})) for _ in batches]

    def cache_at(self, point: Point) -> None:
        """Cache the batches' values at `point`.

        Batches are cached while `CACHE_BYTES` has room for them. Those of the others stay at an earlier point, and
        `values_at` goes on from there each time: images cost time then, not memory. This concerns early layers, with
        large maps. A student's layers before a cached point must not change any more.
        """
        size = sum(program.live_bytes(count) for program, count in zip(self.programs, point, strict=True))
        total = sum(cached.size for cached in self._cache)
        for index, cached in enumerate(self._cache):
            if total - cached.size + size <= CACHE_BYTES:
                self._cache[index] = Cached(point, size, self.values_at(index, point))
                total += size - cached.size

    def values_at(self, index: int, point: Point) -> tuple[Values, Values]:
        """Of batch number `index`, the (teacher's, student's) values at `point` that later nodes need. Not to be changed."""
        cached = self._cache[index]
        if point == cached.point:
            return cached.values
        result = []
        for program, before, start, end in zip(self.programs, cached.values, cached.point, point, strict=True):
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
            result.append(values)
        return result[0], result[1]


def advance(node: Node, values: Values, own: set[Node]) -> None:
    """Compute the next node into `values`.

    Args:
        node: The node.
        values: Of its inputs; its own is added.
        own: Nodes whose memory may be written. Any other value is shared with a cache: it is copied before it is changed.
    """
    if in_place(node):
        written: Any = node.args[0]
        if written not in own:
            values[written] = values[written].clone()
            own.add(written)
    values[node] = compute(node, values)
    # What an operator gives may be its input's memory: a view, or the input itself, as of dropout in eval mode.
    shared = {memory for used in node.all_input_nodes if used not in own for memory in _memory(values[used])}
    if shared.isdisjoint(_memory(values[node])):
        own.add(node)


def _memory(value: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(value)}


def prepare_pair(
    student: nn.Module, model: nn.Module, plan: PrunePlan, images: Images, size: int, adapter: Adapter
) -> tuple[Program, list[Tensor]]:
    """The traced teacher, a raw copy of `model`, and the batches of the first one's shape, in float32 on its device.

    Raises what `prune.repair` says.
    """
    prepared = prepare_teacher(model, plan, images, size, adapter)
    check_student(student, plan)
    return prepared


def prepare_teacher(
    model: nn.Module, plan: PrunePlan, images: Images, size: int, adapter: Adapter
) -> tuple[Program, list[Tensor]]:
    """The same without a student."""
    check(model, plan)
    teacher, device = raw_copy(model, adapter), device_of(model)
    batches = [batch.to(device, torch.float32) for batch in as_batches(images, size)]
    batches = [batch for batch in batches if batch.shape == batches[0].shape]  # a traced graph has one shape in it
    return Program(teacher, batches[0], adapter), batches
