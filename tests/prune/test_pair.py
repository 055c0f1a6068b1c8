"""What two networks side by side hold of their values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prune.program.interpret import Program
from prune.program.raw import raw_copy
from prune.recovery.pair import Pair
from tests.prune.networks import SMALL, randomize
from tests.prune.test_repair import cut


def test_as_many_batches_are_held_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = randomize(SMALL["pyramid"]()), torch.rand(32, 3, 16, 16)
    student, _ = cut(model, images)
    teacher, batches = Program(raw_copy(model), images[:8]), list(images.split(8))
    pair = Pair(raw_copy(student), teacher, batches)
    points = [
        i for i, node in enumerate(teacher.nodes) if teacher.layer(node) in ("stem.bn", "down.bn", "spp.conv", "out")
    ]
    each = [teacher.live_bytes(point) + pair.student.live_bytes(point) for point in points]
    monkeypatch.setattr("prune.recovery.pair.CACHE_BYTES", 2.5 * each[0])
    for point in points:
        pair.cache_at((point, point))
        held = sum(v.untyped_storage().nbytes() for c in pair._cache for values in c.values for v in _computed(values))
        assert 0 < held <= 2.5 * each[0]
    assert [cached.size for cached in pair._cache].count(0) < 4


def _computed(values: dict[Any, Any]) -> list[Tensor]:
    return [v for node, v in values.items() if node.op == "call_function" and isinstance(v, Tensor)]
