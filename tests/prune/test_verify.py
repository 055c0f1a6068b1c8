"""What the proof says where a network is not a plain stack of convolutions, or its outputs are not numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.modules import AIFI

import prune
from prune.program.interpret import Program
from prune.program.operators import operator_name
from prune.program.raw import raw_copy
from prune.recovery.segments import kept_channels, segments
from tests.prune.networks import Block, randomize


class ChannelsLast(nn.Module):
    """Linear layers and an activation on maps (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).sigmoid()).sigmoid())


class Flat(nn.Module):
    """BatchNorm1d on (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.first(x)).sigmoid())


class Flattened(nn.Module):
    """BatchNorm1d on (B, C, L), where L is as wide as C."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Conv2d(3, 16, 1), nn.BatchNorm1d(16), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.first(x).flatten(2)).sigmoid().flatten(1))


class Attended(nn.Module):
    """A map of one channel that weighs all others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Block(3, 12), Block(12, 12, act=nn.Sigmoid())
        self.gate, self.last = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.gate(x).sigmoid() * self.body(x))


class Moved(nn.Module):
    """Channels are split, sliced, joined along a side, padded, averaged and flattened before a sigmoid, which makes 0.5 of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.mean, self.flat = nn.Linear(16, 4), nn.Linear(16 * 30, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.first(x).chunk(2, 1)
        x = self.second(torch.cat([a.sigmoid(), b.tanh()], 1))
        joined = torch.cat([x[:, :, 1:], F.pad(x, (0, 0, 1, 1))], 2)[..., :2]
        return self.mean(x.mean((2, 3)).sigmoid()), self.flat(joined.flatten(1).sigmoid())


class BesideUnmasked(nn.Module):
    """Channels that are cut stand beside some of which none can be: the input's, and those of an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.Conv2d(3, 16, 1), AIFI(16, 24, 2), nn.Conv2d(16, 16, 1)
        self.joined, self.last = nn.Conv2d(19, 12, 1), nn.Conv2d(28, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        joined = self.joined(torch.cat([self.second(y).sigmoid(), x], 1).sigmoid())
        return self.last(torch.cat([joined.sigmoid(), self.attention(y)], 1))


CASES = [
    (BesideUnmasked(), (2, 3, 6, 6)),
    (Moved(), (2, 3, 7, 7)),
    (ChannelsLast(), (2, 12, 5, 3)),
    (ChannelsLast(), (2, 5, 3)),
    (Flat(), (4, 6)),
    (Flattened(), (2, 3, 4, 4)),
    (Attended(), (2, 3, 8, 8)),
]


def cut(model: nn.Module, x: Tensor) -> tuple[nn.Module, prune.PrunePlan]:
    graph = prune.trace(model, x)
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=1)
    return prune.apply(model, plan), plan


@pytest.mark.parametrize("model, shape", CASES, ids=lambda case: type(case).__name__ if case else None)
def test_the_channels_that_are_zeroed_are_those_that_are_cut(model: nn.Module, shape: tuple[int, ...]) -> None:
    randomize(model)
    x = torch.rand(shape)
    student, plan = cut(model, x)
    assert plan.params_after < plan.params_before
    assert prune.verify(model, student, plan, x) < 1e-10


def test_a_map_of_one_channel_does_not_hide_what_was_cut_from_the_others() -> None:
    model, images = randomize(Attended()), torch.rand(12, 3, 8, 8)
    student, plan = cut(model, images)
    assert len(plan.keep["body.conv"]) < 12
    program = Program(raw_copy(model), images)
    (target,) = next(part for part in segments(program, plan) if part.name == "body").targets
    assert target.channels == plan.keep["body.conv"]
    number = next(i for i, node in enumerate(program.nodes) if operator_name(node) == "mul")
    assert kept_channels(program, plan, program.nodes[number]) == (1, plan.keep["body.conv"])
    assert prune.repair(student, model, plan, images) and prune.reconstruct(student, model, plan, images, steps=2)


class Spoiled(nn.Module):
    """The last of two outputs holds one value that is not finite."""

    def __init__(self, value: float, shift: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.value, self.shift = Block(3, 8), nn.Conv2d(8, 4, 1), value, shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.last(self.first(x))
        return y, torch.cat([y[:, :, :1] * 0 + self.value, y], 2) + self.shift


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_pass_unless_they_agree(value: float) -> None:
    model, x = randomize(Spoiled(value)), torch.rand(1, 3, 8, 8)
    student, plan = cut(model, x)
    found = prune.verify(model, student, plan, x)
    assert found == math.inf if math.isnan(value) else found < 1e-10
    student.value = 0.0
    assert prune.verify(model, student, plan, x) == math.inf
    model.value, student.value = 0.0, value
    assert prune.verify(model, student, plan, x) == math.inf


def test_a_network_without_an_output_is_refused() -> None:
    class Silent(Spoiled):
        def forward(self, x: Tensor) -> dict[str, str]:  # type: ignore[override]
            super().forward(x)
            return {"name": "silent"}

    model, x = Spoiled(0.0), torch.rand(1, 3, 8, 8)
    student, plan = cut(model, x)
    for network in (model, student):
        network.__class__ = Silent
    with pytest.raises(prune.PruneError, match="^nothing to compare: Silent returns no tensor"):
        prune.verify(model, student, plan, x)


@pytest.mark.parametrize("dead", ["head", "channels", "nothing"])
def test_a_proof_that_says_nothing_says_so(dead: str, recwarn: pytest.WarningsRecorder) -> None:
    """Behind a head of zeros any cut is exact; channels that are dead, as after network slimming, are a cut like any other."""
    model, x = (
        randomize(nn.Sequential(Block(3, 8, act=nn.ReLU()), Block(8, 6), nn.Conv2d(6, 4, 1))),
        torch.rand(1, 3, 8, 8),
    )
    with torch.no_grad():
        if dead == "head":
            model[2].weight.zero_()
        elif dead == "channels":
            model[0].bn.weight[4:], model[0].bn.bias[4:] = 0.0, 0.0
    graph = prune.trace(model, x)
    plan = prune.make_plan(graph, prune.score(graph, "bn_scale"), ratio=0.2, round_to=1, protect="1")
    kept = plan.keep["0.conv"]
    assert len(kept) < 8 and (dead != "channels" or kept[:4] == (0, 1, 2, 3))
    assert prune.verify(model, prune.apply(model, plan), plan, x) < 1e-10
    told = [str(warning.message) for warning in recwarn if warning.category is prune.PruneWarning]
    assert len(told) == (dead == "head") and all(
        "proves nothing" in text and "move by 0.0e+00" in text for text in told
    )
    recwarn.clear()
    prune.verify(model, prune.apply(model, prune.keep_all(graph)), prune.keep_all(graph), x)
    assert not [warning for warning in recwarn if warning.category is prune.PruneWarning]  # nothing was to be proved
