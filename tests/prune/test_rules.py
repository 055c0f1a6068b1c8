"""Operators between two layers: what passes channels on passes them exactly, and what cannot be cut stays, with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.modules import C2f

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.prune.networks import Block, randomize

IMAGE = torch.rand(1, 3, 16, 16)


class Between(nn.Module):
    """Two blocks, `operation` between them, and two that read what it gives."""

    def __init__(self, operation: Callable[[nn.Module, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.operation = operation
        self.stem, self.first = Block(3, 8), Block(8, 8)
        self.second, self.out = Block(width, 8), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.operation(self, self.first(self.stem(x)))))


def difference(model: nn.Module, graph: prune.ChannelGraph) -> float:
    """The largest of three cuts of two thirds of the channels."""
    found = []
    for seed in range(3):
        plan = prune.make_plan(graph, prune.score(graph, "random", seed=seed), ratio=0.6, round_to=1)
        found.append(
            prune.verify(model, prune.apply(model, plan, adapter=YOLO_ADAPTER), plan, torch.rand(2, 3, 16, 16))
        )
    return max(found)


@pytest.mark.parametrize(
    "operation",
    [
        lambda m, x: F.pad(x, (1, 1, 1, 1)),
        lambda m, x: F.pad(x, (1, 1, 2, 0), value=2.0),
        lambda m, x: F.pad(x, (1, 1, 1, 1, 0, 0), value=-1.0),
        lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda m, x: torch.constant_pad_nd(x, (1, 1), 0.5),
        lambda m, x: x + 1,
        lambda m, x: 2.0**x,
        lambda m, x: 3 - torch.cat([x.sigmoid(), x], 1).sigmoid(),
        lambda m, x: F.adaptive_max_pool2d(x, 8),
        lambda m, x: F.max_pool2d(x + 1, 2) / 2,
    ],
)
def test_channels_pass(operation: Callable[[nn.Module, Tensor], Tensor]) -> None:
    width = operation(Between(operation), torch.rand(1, 8, 16, 16)).shape[1]
    model = randomize(Between(operation, width))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert [group.name for group in graph.groups] == ["stem.conv", "first.conv", "second.conv"]
    assert difference(model, graph) < 1e-10


@pytest.mark.parametrize(
    "operation, reason",
    [
        (lambda m, x: F.pad(x, (0, 0, 0, 0, -1, 1)), "channels are padded in the model's own forward"),
        (lambda m, x: x.sigmoid().pow(m.scale), "pow.Tensor_Tensor in the model's own forward has no rule"),
        (lambda m, x: x.clamp(m.scale), "clamp.Tensor in the model's own forward has no rule"),
    ],
)
def test_channels_stay(operation: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    model = randomize(Between(operation))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert graph.frozen["first.conv"] == reason
    assert [group.name for group in graph.groups] == ["stem.conv", "second.conv"]
    assert difference(model, graph) < 1e-10


def test_a_part_that_runs_without_gradients_freezes_what_enters_it() -> None:
    @torch.no_grad()
    def mean(m: nn.Module, x: Tensor) -> Tensor:
        return x * x.mean()

    graph = prune.trace(Between(mean), IMAGE)
    assert graph.frozen["first.conv"] == "wrap_with_set_grad_enabled in the model's own forward has no rule"
    assert [group.name for group in graph.groups] == ["stem.conv", "second.conv"]


class Shortcut(nn.Module):
    """A ResNet for CIFAR: the shortcut to a wider stage is padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide = Block(3, 8), Block(8, 8), Block(8, 16, 3, 2)
        self.last, self.out = Block(16, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(x)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.wide(x)
        return self.out(x + self.last(x))


def test_padded_channels_stay_and_those_between_them_are_cut() -> None:
    model = randomize(Shortcut())
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert [(group.name, len(group.channels)) for group in graph.groups] == [("stem.conv", 8)]
    assert graph.frozen["wide.conv"] == "channels are padded in the model's own forward"
    outputs = graph.layer("wide.conv").outputs
    assert outputs[4:12] == graph.layer("stem.conv").outputs and not {*outputs[:4], *outputs[12:]} & set(graph.group_of)
    assert difference(model, graph) < 1e-10


def test_what_pools_over_the_channels_of_a_linear_layer_freezes_them() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.out = Block(3, 8), nn.Linear(256, 12), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.avg_pool2d(self.mix(self.stem(x).flatten(2)), (1, 2)))

    with pytest.raises(prune.PruneError, match="channels are resized in the model's own forward"):
        prune.trace(Mixer(), IMAGE)


class Halves(nn.Module):
    """A block that splits what enters it and concatenates the halves the other way round."""

    def __init__(self, how: str, c: object = 8) -> None:
        super().__init__()
        self.how, self.c, self.half, self.both = how, c, 8, (8, 8)
        self.cv1, self.m = Block(8, 16), Block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "literal":
            a, b = torch.split(x, 8, dim=1)
        elif self.how == "attribute":
            a, b = x.split(self.half, 1)
        elif self.how == "sizes":
            a, b = x.split_with_sizes(self.both, 1)
        return torch.cat([self.m(b), a], 1)


class Stock(Halves):
    """Splits as stock blocks do: its part width is its `c`."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), 1)
        return torch.cat([self.m(b), a], 1)


class Splitting(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.last, self.out = Block(3, 8), block, Block(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.block(self.stem(x))))


@pytest.mark.parametrize("how", ["literal", "attribute", "sizes"])
def test_a_split_at_a_fixed_width_stays(how: str) -> None:
    model = randomize(Splitting(Halves(how)))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert graph.frozen == {"block.cv1.conv": "split at a fixed width in 'block'", "out": "an output of the model"}
    assert difference(model, graph) < 1e-10


@pytest.mark.parametrize("c", [8, 5, None])
def test_a_chunk_is_cut_and_a_number_that_is_not_its_width_is_left_alone(c: int | None) -> None:
    model = randomize(Splitting(Halves("chunk", c)))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert list(graph.frozen) == ["out"]
    assert difference(model, graph) < 1e-10
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.6, round_to=1)
    assert prune.apply(model, plan, adapter=YOLO_ADAPTER).block.c == (plan.parts["block"] if c == 8 else c)


class Twice(nn.Module):
    """A split of what another split has given, with a second layer's channels beside it."""

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self.a, self.u = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1)
        self.out, self.shown = nn.Conv2d(24, 4, 1), shown

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        (first, second), u = self.a(x).chunk(2, 1), self.u(x)
        a, b = torch.cat([first, u], 1).chunk(2, 1)
        found = self.out(torch.cat([a, b, second], 1))
        return (found, u) if self.shown else (found,)


def test_a_split_of_a_split_is_cut_in_step() -> None:
    model = randomize(Twice(shown=False))
    assert difference(model, prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)) < 1e-10
    with pytest.raises(prune.PruneError, match="no channel that can be cut: an output of the model"):
        prune.trace(Twice(shown=True), IMAGE)  # an output stays, and all that is tied to it


@pytest.mark.parametrize("groups", [2, 4])
def test_a_split_whose_one_half_repeats_channels_is_cut_in_step(groups: int) -> None:
    model = randomize(nn.Sequential(Block(3, 16), C2f(16, 16, 1, True, groups), nn.Conv2d(16, 4, 1)))
    assert difference(model, prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)) < 1e-10


def test_a_split_at_the_stored_width_is_cut() -> None:
    model = randomize(Splitting(Stock("c")))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert list(graph.frozen) == ["out"]
    assert difference(model, graph) < 1e-10


def test_all_splits_at_one_stored_width_are_cut_alike() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.cv1, self.cv2 = 8, Block(8, 16), Block(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.cv1(x).split(self.c, 1)
            a, b = self.cv2(torch.cat([b, a], 1)).split(self.c, 1)
            return torch.cat([b, a], 1)

    model = randomize(Splitting(Two()))
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    assert sorted(map(len, graph.bundles)) == [1, 1, 4]
    assert difference(model, graph) < 1e-10
