"""Operators beside convolutions and BatchNorms: each with its proof, and FLOPs as torch counts them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prune
from tests.prune.networks import Block, randomize

IMAGE = torch.rand(1, 3, 16, 16)


def cut(model: nn.Module, seed: int = 0) -> tuple[prune.PrunePlan, nn.Module, float]:
    """A random cut of half the channels, and how far it is from exact."""
    graph = prune.trace(model, IMAGE)
    plan = prune.make_plan(graph, prune.score(graph, "random", seed=seed), ratio=0.5, round_to=1)
    student = prune.apply(model, plan)
    assert sum(p.numel() for p in student.parameters()) == plan.params_after < plan.params_before
    return plan, student, prune.verify(model, student, plan, torch.rand(2, 3, 16, 16))


class Around(nn.Module):
    """Two blocks with something between them that keeps the channels or makes new ones."""

    def __init__(self, between: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.first, self.between, self.last = Block(3, 8), between, Block(width, 8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.between(self.first(x))))


TRANSPOSED = {
    "plain": {"kernel_size": 2, "stride": 2},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False},
    "more padding than kernel": {"kernel_size": 2, "stride": 3, "padding": 2, "dilation": 1},
    "dilated, uneven": {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (2, 1), "output_padding": (1, 0)},
    "grouped": {"kernel_size": 2, "stride": 2, "groups": 4},
    "depthwise": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 8},
}


@pytest.mark.parametrize("how", TRANSPOSED)
def test_a_transposed_convolution_is_cut_scored_and_repaired(how: str) -> None:
    width = 8 if how == "depthwise" else 12
    torch.manual_seed(0)
    model = randomize(Around(nn.ConvTranspose2d(8, width, **TRANSPOSED[how]), width))
    plan, student, difference = cut(model)
    assert difference < 1e-10
    assert len(plan.keep["between"]) < width and student.between.in_channels < 8
    graph, images = prune.trace(model, IMAGE), torch.rand(12, 3, 16, 16)
    for importance in ("obs", "fisher", "l1"):
        scores = prune.score(graph, importance, batches=images[:4])
        assert all(scores.cost(group.index).isfinite().all() for group in graph.groups)
    repaired = {layer.name: layer for layer in prune.repair(student, model, plan, images)}
    between = repaired["between"]  # a depthwise one has lost no input
    assert between.error_before < 1e-10 if how == "depthwise" else between.error_after < 0.9 * between.error_before


def test_a_transposed_convolution_is_a_convolution_of_its_input_with_zeros_between() -> None:
    from prune.program.geometry import as_convolution, geometry_of, input_rows, matrix_of, output_rows
    from prune.program.interpret import Program

    x = torch.rand(2, 4, 5, 6)
    for options in TRANSPOSED.values():
        groups = 4 if "groups" in options else 1
        layer = nn.ConvTranspose2d(4, 8, **{**options, "groups": groups, "bias": False})
        node = next(n for n in Program(layer, x).nodes if n.op == "call_function")
        weight, how, value = matrix_of(layer), geometry_of(node), layer(x)
        positions = torch.arange(how.positions(value))
        rows = input_rows(x, value.shape, how, positions).unflatten(1, (groups, -1))
        made = torch.einsum("pgn,gon->pgo", rows, weight.flatten(1).unflatten(0, (groups, -1))).flatten(1)
        torch.testing.assert_close(made, output_rows(value, how, positions))
        assert torch.equal(as_convolution(weight, groups), layer.weight)


class Scale(nn.Module):
    """A LayerScale, a bias, or something else of a parameter."""

    def __init__(self, shape: tuple[int, ...], how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma, self.how = nn.Parameter(torch.rand(shape) + 0.5), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.gamma)


def grn(x: Tensor, gamma: Tensor) -> Tensor:
    """Global response normalization without the mean over channels (arXiv:2301.00808)."""
    return gamma * (x * x.square().sum((2, 3), keepdim=True).sqrt()) + x


SHRINKING = {
    "(1, C, 1, 1)": ((1, 8, 1, 1), lambda x, p: x * p),
    "(C, 1, 1), added first": ((8, 1, 1), lambda x, p: p + x),
    "view": ((8,), lambda x, p: p.view(1, -1, 1, 1) * x),
    "reshape, negated": ((8,), lambda x, p: x - (-p).reshape(1, -1, 1, 1)),
    "unsqueeze": ((8,), lambda x, p: x / p[None, :, None, None]),
    "twice": ((8, 1, 1), lambda x, p: x * p + p),
    "exp": ((8, 1, 1), lambda x, p: x * p.exp()),
    "in place": ((8, 1, 1), lambda x, p: x.clone().mul_(p)),
    "channels last": ((8,), lambda x, p: (x.permute(0, 2, 3, 1) * p).permute(0, 3, 1, 2)),
    "transposed": ((8,), lambda x, p: (x.flatten(2).transpose(1, 2) + p).transpose(-1, 1).unflatten(2, (16, 16))),
    "grn": ((1, 8, 1, 1), grn),
    "prelu": ((8,), lambda x, p: F.prelu(x, p)),
}


@pytest.mark.parametrize("how", SHRINKING)
def test_a_parameter_with_a_value_for_each_channel_shrinks_with_them(how: str) -> None:
    model = randomize(Around(Scale(*SHRINKING[how])))
    plan, student, difference = cut(model)
    assert difference < 1e-10
    kept = plan.keep["first.conv"]
    assert plan.keep["between.gamma"] == kept and len(kept) < 8
    assert torch.equal(student.between.gamma.flatten(), model.between.gamma.flatten()[list(kept)])
    assert prune.PrunePlan.from_json(plan.to_json()) == plan


STAYING = {
    "read elsewhere": lambda x, p: x * p + p.mean(),
    "a table": lambda x, p: x * (p @ p.flatten()[:1].view(1, 1)),
    "of columns": lambda x, p: x * p + (x[..., :8] * p.view(-1)).mean(3, keepdim=True),
    "concatenated too": lambda x, p: torch.cat([x * p, p.expand(len(x), 8, 16, 16)], 2),
    "one channel of several": lambda x, p: x * p + x.mean((2, 3), keepdim=True) * 0 + x[:, :1] * p,
}


@pytest.mark.parametrize("how", STAYING)
def test_a_parameter_that_means_something_else_stays(how: str) -> None:
    model = randomize(Around(Scale((8, 1, 1), STAYING[how])))
    plan, student, difference = cut(model)
    assert difference < 1e-10
    assert student.between.gamma.shape == (8, 1, 1) and len(plan.keep["first.conv"]) == 8


def test_a_parameter_of_two_names_stays() -> None:
    model = Around(Scale((8, 1, 1), lambda x, p: x * p))
    model.again = model.between.gamma
    assert len(cut(randomize(model))[0].keep["first.conv"]) == 8


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu_is_cut(slopes: int) -> None:
    model = randomize(Around(nn.PReLU(slopes)))
    plan, student, difference = cut(model)
    assert difference < 1e-10
    assert student.between.num_parameters == (1 if slopes == 1 else len(plan.keep["first.conv"])) < 8


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.unsqueeze(-1).squeeze((0, -1)).unsqueeze(0) if len(x) == 1 else x.unsqueeze(-1).squeeze(-1),
        lambda x: x.permute(0, 2, 3, 1).contiguous().transpose(1, -1).transpose(2, 3),
        lambda x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2)[:, :, None, None] + x,
    ],
)
def test_dimensions_that_are_no_channels_move(move: Callable[[Tensor], Tensor]) -> None:
    plan, _, difference = cut(randomize(Around(Scale((1,), lambda x, p: move(x)))))
    assert difference < 1e-10 and len(plan.keep["first.conv"]) < 8


class Windows(nn.Module):
    """Images folded into the batch dimension, attention of each kind, a product of matrices."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj, self.own = Block(3, 8), nn.Linear(8, 24), nn.Linear(8, 8), own
        self.up, self.out = nn.ConvTranspose2d(8, 6, 3, 2, groups=2), Block(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        x = x.unflatten(2, (4, h // 4)).unflatten(4, (4, w // 4)).permute(0, 2, 4, 3, 5, 1).reshape(b * 16, -1, c)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v if self.own else F.scaled_dot_product_attention(q, k, v)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return self.out(self.up(x.reshape(b, 16, -1, c).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("images", [1, 3])
def test_flops_are_those_of_the_counter_of_torch(own: bool, images: int) -> None:
    model, x = randomize(Windows(own)).eval(), torch.rand(images, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        model(x)
    graph = prune.trace(model, x)
    assert graph.flops() * images == counter.get_total_flops()
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.9, round_to=1)
    student = prune.apply(model, plan)
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        student(x)
    assert plan.flops_after * images == counter.get_total_flops()
    assert prune.verify(model, student, plan, x) < 1e-10


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class Shuffling(nn.Module):
    """ShuffleNet's stage: half of the channels go through a branch, and all are shuffled."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.branch, self.last, self.out = Block(3, 16), Block(8, 8), Block(16, 8), nn.Conv2d(8, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = self.how(torch.cat([a, self.branch(b)], 1))
        return self.out(self.last(x))


@pytest.mark.parametrize(
    "how",
    [
        shuffle,
        lambda x: x.reshape(x.size(0), 2, -1, 16, 16).transpose(1, 2).reshape(len(x), -1, 16, 16),
        lambda x: x.reshape(x.size(0), 4, x.shape[1] // 4, 16, 16).transpose(2, 1).relu().flatten(1, 2),
        lambda x: x.reshape(len(x), 2, x.size(dim=1) // 2, 16, 16).transpose(1, 2).reshape(len(x), x.size(1), 16, -1),
        lambda x: x.reshape(len(x), x.shape[1] // 2, 2, 16, 16).transpose(1, 2).reshape(len(x), -1, 16, 16),
        lambda x: x.reshape(len(x), 2, -1, 16, 16).transpose(1, 3).transpose(1, 3).reshape(len(x), -1, 16, 16),
    ],
)
def test_shuffled_channels_are_followed_place_by_place(how: Callable[[Tensor], Tensor]) -> None:
    model = randomize(Shuffling(how))
    graph = prune.trace(model, IMAGE)
    assert list(graph.frozen) == ["out"]
    for seed in range(3):
        plan, _, difference = cut(model, seed)
        assert difference < 1e-10
        assert len(plan.keep["branch.conv"]) < 8


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.view(-1, 2, 8, 16, 16).transpose(1, 2).reshape(-1, 16, 16, 16),  # a cut network could not run
        lambda x: x.reshape(len(x), 2, -1, 16, 16).sum(2).repeat(1, 8, 1, 1),
    ],
)
def test_shapes_that_a_cut_would_not_follow_freeze_channels(how: Callable[[Tensor], Tensor]) -> None:
    model = randomize(Shuffling(how))
    plan, _, difference = cut(model)
    assert difference < 1e-10 and len(plan.keep["branch.conv"]) == 8


def test_whole_groups_of_a_group_norm_are_cut() -> None:
    torch.manual_seed(0)
    model = randomize(Around(nn.Sequential(nn.Conv2d(8, 12, 1), nn.GroupNorm(4, 12), nn.SiLU()), 12))
    plan, student, difference = cut(model)
    assert difference < 1e-10
    kept, norm = plan.keep["between.0"], student.between[1]
    assert len(kept) < 12 and all(3 * (i // 3) + j in kept for i in kept for j in range(3))
    assert (
        (norm.num_groups, norm.num_channels) == (len(kept) // 3, len(kept)) == (len(norm.bias) // 3, len(norm.weight))
    )


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 8), nn.GroupNorm(4, 8, affine=False)])
def test_a_norm_over_all_channels_keeps_them(norm: nn.Module) -> None:
    model = randomize(Around(norm))
    assert len(cut(model)[0].keep["first.conv"]) == 8
    assert prune.trace(model, IMAGE).frozen["first.conv"] == "channels are normalized together in 'between'"


def test_a_layer_norm_says_why_its_channels_stay() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(self.norm(x.permute(0, 2, 3, 1))).relu()).permute(0, 3, 1, 2)

    model = randomize(Around(Last()))
    plan, _, difference = cut(model)
    assert difference < 1e-10 and len(plan.keep["between.up"]) < 16 and len(plan.keep["between.down"]) < 8
    reason = prune.trace(model, IMAGE).frozen["first.conv"]
    assert reason.startswith("layer_norm in 'between.norm' takes a mean over the channels")
