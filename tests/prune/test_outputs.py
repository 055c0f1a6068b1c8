"""What a module's output keeps: channel i of the student's is channel `kept[i]` of the masked model's, at every module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.cut.verify import masked_outputs
from prune.program.raw import raw_copy
from tests.distill.yolo.originals import network
from tests.prune.networks import SMALL, Block, narrow, randomize

ROUNDING = 1e-9


def watch(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What these modules give in the next pass."""
    seen: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: seen.update({name: output}))
    return seen


def cut(model: nn.Module, x: Tensor) -> tuple[dict[str, prune.ModuleOutput], nn.Module, prune.PrunePlan]:
    graph = prune.trace(model, x, adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.4, round_to=1)
    return prune.trace_outputs(model, x, adapter=YOLO_ADAPTER), prune.apply(model, plan, adapter=YOLO_ADAPTER), plan


def both(model: nn.Module, student: nn.Module, plan: prune.PrunePlan, x: Tensor, names: list[str]) -> Any:
    """What these modules give, in the model with its cut channels at zero and in the cut model, in float64."""
    full, small = (raw_copy(each, YOLO_ADAPTER).double() for each in (model, student))
    seen, cut_seen = watch(full, names), watch(small, names)
    watched = replace(YOLO_ADAPTER, outputs=lambda returned: [seen[name] + 0 for name in names])
    with torch.no_grad():
        small(x.double())
        return masked_outputs(full, plan, x.double(), watched), [cut_seen[name] for name in names]


def anchor_head() -> tuple[nn.Module, int]:
    return randomize(network()), 64


MODELS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    **{name: lambda name=name: narrow(name) for name in [*SMALL, "yolov8n", "yolo11n"]},  # type: ignore[misc]
    "original yolov5": anchor_head,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_module_s_kept_channels_are_the_student_s(name: str) -> None:
    model, side = MODELS[name]()
    x = torch.rand(2, 3, side, side)
    outputs, student, plan = cut(model, x[:1])
    assert outputs.keys() == {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    names = [path for path, output in outputs.items() if not output.reason]
    assert len(names) > len(plan.keep)  # beside layers and BatchNorms: blocks, concats, poolings, resizings
    shrunk = 0
    for path, full, small in zip(names, *both(model, student, plan, x, names), strict=True):
        output = outputs[path]
        kept = output.kept(plan)
        assert full.shape[1:] == output.shape[1:] and len(kept) == small.shape[output.dim], path
        difference = full.index_select(output.dim, torch.tensor(kept)) - small
        assert difference.abs().max() < ROUNDING, path
        shrunk += len(kept) < full.shape[output.dim]
    assert shrunk > len(names) / 4


def test_two_kept_channels_in_the_wrong_order_would_be_noticed() -> None:
    model, side = narrow("split")
    x = torch.rand(1, 3, side, side)
    outputs, student, plan = cut(model, x)
    ((full,), (small,)) = both(model, student, plan, x, ["cv2"])
    swapped = torch.tensor(outputs["cv2"].kept(plan)).flip(0)
    assert (full.index_select(1, swapped) - small).abs().max() > 1000 * ROUNDING


class Odd(nn.Module):
    """Modules whose output is several tensors, is rolled, is the input, or comes more than once; and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.pair, self.rolled = Block(3, 8), nn.SiLU(), Pair(), Rolled()
        self.same, self.unused, self.linear = nn.Identity(), nn.Conv2d(8, 8, 1), nn.Linear(4, 6)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.act(self.first(self.same(x))))
        a, b = self.pair(x)
        y = self.last(torch.cat([a, b], 1))
        return self.rolled(y).sigmoid(), self.linear(y.mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(2, 1)


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 1) * 2


def test_what_cannot_be_followed_says_why() -> None:
    outputs, _, plan = cut(randomize(Odd()), torch.rand(1, 3, 8, 8))
    reasons = {name: output.reason for name, output in outputs.items() if output.reason}
    assert reasons == {
        "act": "runs 2 times in one pass",
        "pair": "gives a tuple, not one tensor",
        "rolled": "has channels that cannot be followed: roll.default in 'rolled' has no rule",
        "unused": "does not run",
    }
    assert outputs["same"].kept(plan) == (0, 1, 2)
    assert outputs["linear"].dim == 1 and outputs["linear"].shape == (1, 6)
    assert len(outputs["first"].kept(plan)) == len(plan.keep["first.conv"]) < 8
    with pytest.raises(prune.PruneError, match="^'act' runs 2 times in one pass$"):
        outputs["act"].kept(plan)


def test_the_model_is_untouched_and_a_plan_that_keeps_all_keeps_all() -> None:
    model = randomize(SMALL["split"]()).train()
    x = torch.rand(1, 3, 16, 16)
    outputs = prune.trace_outputs(model, x)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    plan = prune.keep_all(prune.trace(model, x))
    assert all(output.kept(plan) == tuple(range(output.shape[1])) for output in outputs.values())
    assert prune.trace_outputs(nn.Conv2d(3, 4, 1), x) == {}
    with pytest.raises(prune.PruneError, match="^Split cannot be traced"):
        prune.trace_outputs(model, torch.rand(1, 5, 16, 16))
