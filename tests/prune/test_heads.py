"""Whole heads of attention: with their queries, keys, values and projection, and the numbers that modules store."""

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
ADAPTER = prune.Adapter(widths=("c",))  # of a C2PSA


class SelfAttention(nn.Module):
    """Attention over tokens, as transformers for images have it: the module stores the number of heads and the width."""

    def __init__(self, dim: int = 12, heads: int = 4, size: int = 3, fused: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = heads, size, heads * size, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * heads * size), nn.Linear(heads * size, dim)
        self.q_norm = nn.LayerNorm(size) if norm else nn.Identity()
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q_norm(q) * self.temperature
        x = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.attn_dim))


class Open(SelfAttention):
    """The same with sizes that are left open, and queries and keys from layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(12, 12), nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(x).view(len(x), -1, 2, self.num_heads, self.head_dim)
        k, v = kv[:, :, 0].transpose(1, 2), kv.select(2, 1).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(1, 1, x.shape[1], x.shape[1]).tril())
        return self.proj(x.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Tokens of patches, a token more, attention and an MLP between norms, a classifier."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.rand(1, 1, 12))
        self.place = nn.Parameter(torch.rand(1, 17, 12))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(12), attention, nn.LayerNorm(12)
        self.up, self.down, self.norm, self.head = (
            nn.Linear(12, 24),
            nn.Linear(24, 12),
            nn.LayerNorm(12),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


def flops(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        model.eval()(IMAGE)
    return counter.get_total_flops()


def cut(model: nn.Module, seed: int = 0, ratio: float = 0.5) -> tuple[prune.ChannelGraph, prune.PrunePlan, nn.Module]:
    """A random cut of half the channels, which is exact, and has the FLOPs that the plan says."""
    graph = prune.trace(randomize(model, seed), IMAGE, adapter=ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "random", seed=seed), ratio=ratio, round_to=1)
    student = prune.apply(model, plan, adapter=ADAPTER)
    assert prune.verify(model, student, plan, IMAGE, adapter=ADAPTER) < 1e-10
    assert (plan.flops_before, plan.flops_after) == (flops(model), flops(student))
    assert prune.PrunePlan.from_json(plan.to_json()) == plan
    return graph, plan, student


@pytest.mark.parametrize(
    "make",
    [
        SelfAttention,
        lambda: SelfAttention(fused=False),
        lambda: SelfAttention(norm=True),
        lambda: SelfAttention(heads=6, size=2),
        Open,
    ],
)
def test_whole_heads_are_cut_and_the_stream_stays(make: Callable[[], nn.Module]) -> None:
    graph, plan, student = cut(Transformer(make()))
    heads, size = student.attention.num_heads, student.attention.head_dim
    assert heads < graph.model.attention.num_heads and heads == plan.numbers["attention.num_heads"]
    assert student.attention.proj.in_features == heads * size
    assert student.up.out_features < 24 and student.down.out_features == 12
    assert {graph.frozen[name] for name in ("patch", "attention.proj", "down")} == {
        "layer_norm in 'norm1' takes a mean over the channels, which would be another one without some of them"
    }


def test_the_width_of_heads_counts_for_rounding() -> None:
    graph = prune.trace(randomize(Transformer(SelfAttention(size=4))), IMAGE)
    heads = next(group.index for group in graph.groups if "qkv" in group.name)
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=8)
    assert plan.groups[heads].after in (2, 4) and len(plan.keep["attention.qkv"]) % 8 == 0
    with pytest.raises(prune.PruneError, match="stores no number 'attention.heads'"):
        prune.apply(graph.model, prune.PrunePlan(**{**vars(plan), "numbers": {"attention.heads": 1}}))


class Elsewhere(SelfAttention):
    """The number of heads is used for something that a trace does not show."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.how(self, x)


@pytest.mark.parametrize(
    "how",
    [
        lambda self, x: torch.ones(self.num_heads).sum(),
        lambda self, x: x.mean() * self.num_heads**-0.5,
        lambda self, x: x.flatten().view(self.num_heads, -1).sum(),
        lambda self, x: self.temperature.mean(),
    ],
)
def test_heads_whose_number_means_something_else_stay(how: Callable[[nn.Module, Tensor], Tensor]) -> None:
    _, plan, student = cut(Transformer(Elsewhere(how)))
    assert student.attention.num_heads == 4 and student.attention.qkv.out_features == 36 and not plan.numbers


class AsWide(SelfAttention):
    """Heads are given the width of what enters."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_heads_as_wide_as_a_stream_that_stays_do_so_and_say_why() -> None:
    graph, _, student = cut(Transformer(AsWide()))
    assert student.attention.num_heads == 4 and student.up.out_features < 24
    assert graph.frozen["attention.qkv"].startswith("as many stay as of what it is given the width of: layer_norm in")


class Convolutional(nn.Module):
    """Attention of a YOLO between convolutions, in a residual: what enters loses channels with the heads."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.attention, self.body, self.out = Block(3, 32), attention(), Block(32, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.body(x + self.attention(x)))


@pytest.mark.parametrize("name", ["Attention", "AAttn", "AAttn of areas", "C2PSA"])
def test_attention_of_yolos_is_cut(name: str) -> None:
    from ultralytics.nn.modules.block import C2PSA, AAttn, Attention

    kinds = {
        "Attention": lambda: Attention(32, num_heads=4),
        "AAttn": lambda: AAttn(32, 4, area=1),
        "AAttn of areas": lambda: AAttn(32, 4, area=4),
        "C2PSA": lambda: C2PSA(32, 32, n=2, e=8),
    }
    graph, _, student = cut(Convolutional(kinds[name]))
    assert list(graph.frozen) == ["out"]
    for before, after in zip(graph.model.modules(), student.modules(), strict=True):
        if hasattr(before, "num_heads"):
            assert after.num_heads < before.num_heads and after.qkv.conv.out_channels < before.qkv.conv.out_channels


def test_costs_of_heads_are_those_of_the_projection() -> None:
    model, images = randomize(Transformer(SelfAttention())), torch.rand(24, 3, 16, 16)
    with torch.no_grad():
        model.attention.proj.weight[:, 3:6] = 0  # a head that does nothing
    graph = prune.trace(model, IMAGE)
    heads = next(group.index for group in graph.groups if "qkv" in group.name)
    for importance in ("obs", "fisher"):
        costs = prune.score(graph, importance, batches=images).cost(heads)
        assert costs.argmin() == 1 and costs[1] < 0.01 * costs.mean()
    plan = prune.make_plan(graph, prune.score(graph, "obs", batches=images), ratio=0.5, round_to=1)
    student = prune.apply(model, plan)
    repaired = {layer.name: layer for layer in prune.repair(student, model, plan, images)}
    assert repaired["down"].error_after < repaired["down"].error_before
