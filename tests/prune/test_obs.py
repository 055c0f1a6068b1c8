"""The importance against brute force: cut a channel, solve the least squares again, look at the error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prune
from prune.importance import covariance as blocks
from prune.importance import obs
from prune.importance.covariance import CovarianceBlock, DowndatedInverse
from tests.prune.networks import SMALL, randomize
from tests.prune.networks import Block as ConvBlock


def correlated(samples: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(samples, width, generator=generator) @ mix + 3.0


def least_squares_error(x: Tensor, weight: Tensor, felt: Tensor, kept: list[int]) -> float:
    """Sensitivity-weighted error of the best layer that reads only the kept columns, with a constant."""
    target = x @ weight.T
    inputs = torch.cat([x[:, kept], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    solution = torch.linalg.lstsq(inputs, target).solution
    return ((target - inputs @ solution).square().mean(0) * felt).sum().item()


def block(x: Tensor, weight: Tensor) -> DowndatedInverse:
    n = x.shape[1]
    zeros = torch.zeros(n, n, dtype=x.dtype), torch.zeros(n, dtype=x.dtype)
    made = CovarianceBlock((0, n), slice(0, len(weight)), weight, *zeros)
    made.add(x[:300], torch.ones(300, dtype=x.dtype))
    made.add(x[300:], torch.ones(len(x) - 300, dtype=x.dtype))
    return made.inverted()


@pytest.fixture
def undamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "DAMPING", 0.0)


@pytest.mark.parametrize("kernel", [1, 3])
def test_cost_is_the_error_that_least_squares_leaves(kernel: int, undamped: None) -> None:
    x = correlated(1000, 12).double()
    weight, felt = torch.randn(5, 12).double(), torch.rand(5).double()
    columns = torch.arange(12).view(-1, kernel)
    cost = block(x, weight).cost(columns, felt)
    for channel, gone in enumerate(columns):
        kept = [c for c in range(12) if c not in gone]
        assert cost[channel].item() == pytest.approx(least_squares_error(x, weight, felt, kept), rel=1e-6)


@pytest.mark.parametrize("pending", [1, 4, 1000])
def test_costs_after_removals_too_however_updates_are_put_off(pending: int, undamped: None) -> None:
    x = correlated(1000, 12).double()
    weight, felt = torch.randn(5, 12).double(), torch.rand(5).double()
    inverse = block(x, weight)
    inverse.PENDING = pending
    gone: list[int] = []
    for channel in (7, 0, 4, 11, 3):
        cost = inverse.cost(torch.tensor([[channel]]), felt).item()
        gone.append(channel)
        kept = [c for c in range(12) if c not in gone]
        before = least_squares_error(x, weight, felt, [*kept, channel])
        # What is lost by this one comes on top of what the earlier ones lost.
        assert before + cost == pytest.approx(least_squares_error(x, weight, felt, kept), rel=1e-6)
        inverse.drop(torch.tensor([channel]))


class Twins(nn.Module):
    """Channels 0 and 1 of the first layer are the same; channel 2 is constant; channel 3 is read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(3, 8), nn.Conv2d(8, 4, 3, padding=1)
        randomize(self)
        with torch.no_grad():
            self.first.conv.weight[1] = self.first.conv.weight[0]
            self.first.conv.weight[2] = 0
            for tensor in (*self.first.bn.parameters(), *self.first.bn.buffers()):
                if tensor.dim():
                    tensor[1] = tensor[0]
            self.second.weight[:, 3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_redundant_constant_and_unread_channels_go_first() -> None:
    images = torch.rand(32, 3, 16, 16)
    model = Twins()
    graph = prune.trace(model, images[:1])
    cost = prune.score(graph, "obs", batches=images).cost(0)
    assert set(cost.argsort()[:4].tolist()) == {0, 1, 2, 3}
    plan = prune.make_plan(graph, prune.score(graph, "obs", batches=images), ratio=0.375, round_to=1)
    kept = plan.keep["first.conv"]
    assert {2, 3}.isdisjoint(kept) and len({0, 1} & set(kept)) == 1  # never both twins


def test_the_plan_leaves_the_scores_as_they_were() -> None:
    images = torch.rand(16, 3, 16, 16)
    graph = prune.trace(randomize(SMALL["residual"]()), images[:1])
    scores = prune.score(graph, "obs", batches=images)
    first = prune.make_plan(graph, scores, flops=0.5, round_to=1)
    assert first == prune.make_plan(graph, scores, flops=0.5, round_to=1)
    assert first == prune.make_plan(graph, prune.score(graph, "obs", batches=images), flops=0.5, round_to=1)


def test_blocks_of_wide_layers_add_up(monkeypatch: pytest.MonkeyPatch, undamped: None) -> None:
    images = torch.rand(16, 3, 16, 16)
    model = randomize(SMALL["pyramid"]())
    graph = prune.trace(model, images[:1])
    whole = prune.score(graph, "obs", batches=images)
    monkeypatch.setattr(obs, "MAX_COLUMNS", 10)
    parts = prune.score(graph, "obs", batches=images)
    assert len(whole.statistics["spp.conv"].blocks) == 1 < len(parts.statistics["spp.conv"].blocks)
    for group in graph.groups:  # less of each channel can be made up for by others
        assert (parts.cost(group.index) >= whole.cost(group.index) * 0.99).all()


def test_fisher_is_the_squared_derivative_by_a_gate() -> None:
    model = randomize(SMALL["residual"]())
    images = torch.rand(3, 3, 8, 8)
    graph = prune.trace(model, images[:1])
    cost = prune.score(graph, "fisher", batches=images, sensitivity=lambda z: z.sum()).cost(2)
    gate = torch.ones(8, requires_grad=True)
    model.eval().out.register_forward_pre_hook(
        lambda _, x: torch.cat([x[0][:, :8], x[0][:, 8:] * gate[:, None, None]], 1)
    )
    expected = torch.zeros(8)
    for image in images.split(1):
        expected += torch.autograd.grad(model(image).sum(), gate)[0].square() / 3
    torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-6)


def test_random_state_is_left_alone_and_the_seed_decides() -> None:
    images = torch.rand(8, 3, 8, 8)
    graph = prune.trace(randomize(SMALL["split"]()), images[:1])
    state = torch.get_rng_state()
    costs = [prune.score(graph, "obs", batches=images, seed=seed).cost(0) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(costs[0], costs[1]) and not torch.equal(costs[0], costs[2])
