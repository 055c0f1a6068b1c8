"""What the layers read and what the outputs feel of them: in parts, shared, padded, and behind a detach."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.importance import statistics
from prune.importance.statistics import gaussian, measure_sensitivity, passes
from prune.program.geometry import geometry_of, input_rows, output_rows
from prune.program.interpret import Program
from prune.program.raw import raw_copy, tensors
from prune.recovery.reconstruct import target_weights
from prune.recovery.segments import segments
from tests.prune.networks import SMALL, Block, randomize, yolo
from tests.prune.test_repair import cut


def plain(outputs: Any) -> Tensor:
    """A sensitivity without noise."""
    return sum(z.square().sum() for z in tensors(outputs))  # type: ignore[return-value]


@pytest.mark.parametrize("name, parts", [("yolov5s", 1), ("yolov5x", 4)])
def test_a_batch_runs_in_as_few_parts_as_memory_allows(name: str, parts: int) -> None:
    program = Program(raw_copy(yolo(name, classes=80), YOLO_ADAPTER), torch.empty(16, 3, 640, 640), YOLO_ADAPTER)
    assert 16 / parts * program.backward_bytes() / 16 < 8 * 2**30
    assert [len(part) for part in passes(program, torch.empty(16, 3, 640, 640))] == [16 // parts] * parts


@pytest.mark.parametrize("name", ["split", "depthwise"])
def test_the_sums_of_a_batch_in_parts_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = randomize(SMALL[name]()), torch.rand(10, 3, 40, 40)  # 16000 positions, of which 8192 are sampled
    graph = prune.trace(model, images[:1])
    whole = prune.score(graph, "obs", batches=[images], sensitivity=plain)
    again = prune.score(graph, "obs", batches=[images], sensitivity=plain)
    program = Program(raw_copy(model), images)
    weights = measure_sensitivity(program, list(whole.statistics), [images], plain).weights
    monkeypatch.setattr(statistics, "MEMORY", program.backward_bytes() * 0.31)
    assert [len(part) for part in passes(program, images)] == [3, 3, 3, 1]
    parts = prune.score(graph, "obs", batches=[images], sensitivity=plain)
    for layer, one in whole.statistics.items():
        torch.testing.assert_close(one.sensitivity, again.statistics[layer].sensitivity, rtol=0, atol=0)
        torch.testing.assert_close(one.sensitivity, parts.statistics[layer].sensitivity, rtol=1e-4, atol=0)
        for a, b in zip(one.blocks, parts.statistics[layer].blocks, strict=True):
            assert a.total == pytest.approx(b.total, rel=1e-4)
            means = [block.mean / block.total for block in (a, b)]
            spread = [
                block.covariance / block.total - mean.outer(mean) for block, mean in zip((a, b), means, strict=True)
            ]
            torch.testing.assert_close(means[0] + a.origin, means[1] + b.origin, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(*spread, rtol=1e-3, atol=1e-4)
    for key, weight in measure_sensitivity(program, list(whole.statistics), [images], plain).weights.items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-3, atol=1e-4)


class Strided(nn.Conv2d):
    """A convolution whose forward does not read the attributes that say how it moves."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=(2, 1))


class Shared(nn.Module):
    """One layer called twice, in two places whose maps differ in size, and one that moves in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Block(3, 8), Block(8, 8)
        self.hidden, self.last = Strided(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.max_pool2d(self.body(self.stem(x)), 2))
        return self.last(self.hidden(x).relu())


def test_calls_of_a_shared_layer_are_summed_and_a_layer_is_read_as_its_operator_says() -> None:
    model, images = randomize(Shared()).eval(), torch.rand(6, 3, 16, 16)
    graph = prune.trace(model, images[:1])
    scores = prune.score(graph, "obs", batches=images, sensitivity=plain)
    seen: list[Tensor] = []
    model.body.conv.register_forward_hook(lambda _, x, y: seen.append(y))
    outputs = model(images.clone().requires_grad_(True))
    gradients = torch.autograd.grad(plain(outputs), seen)
    expected = sum(gradient.square().sum((0, 2, 3)) for gradient in gradients) / len(images)
    torch.testing.assert_close(scores.statistics["body.conv"].sensitivity, expected, rtol=1e-4, atol=0)
    # Weights have the mean 1 over both calls together, however little one of them is felt.
    assert scores.statistics["body.conv"].blocks[0].total == pytest.approx(6 * (16 * 16 + 8 * 8), rel=1e-4)
    assert scores.statistics["hidden"].blocks[0].total == pytest.approx(6 * 5 * 4, rel=1e-4)
    assert all((scores.fresh().cost(group.index) > 0).all() for group in graph.groups)
    fisher = prune.score(graph, "fisher", batches=images, sensitivity=plain)
    assert all((fisher.cost(group.index) > 0).all() for group in graph.groups)


PADDED = [
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (2, 5), "padding": "same", "dilation": 3},
    {"padding": "same", "padding_mode": "replicate"},
    {"padding": "valid", "dilation": (1, 2)},
    {"padding": (2, 0), "stride": (1, 3), "dilation": 2, "groups": 2},
]


@pytest.mark.parametrize("options", PADDED, ids=str)
def test_rows_times_weights_are_the_outputs_however_the_input_is_padded(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, "bias": False, **options})
    images = torch.rand(2, 4, 12, 11)
    program = Program(layer, images)
    found: list[tuple[Tensor, Tensor]] = []

    def look(node: Any, value: Any, values: dict[Any, Any]) -> Any:
        if program.layer(node) is not None:
            how = geometry_of(node)
            positions = torch.arange(how.positions(value))
            rows = input_rows(values[node.args[0]], value.shape, how, positions)
            columns = rows.unflatten(1, (how.groups, -1)).movedim(1, 0)  # (groups, positions, n)
            weight = layer.weight.flatten(1).unflatten(0, (how.groups, -1))
            made = (columns @ weight.transpose(1, 2)).movedim(0, 1).flatten(1)
            found.append((made, output_rows(value, how, positions)))
        return value

    program.run(images, look)
    assert len(found) == 1
    torch.testing.assert_close(*found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", PADDED[:5], ids=str)
def test_fisher_and_repair_read_what_a_padded_layer_reads(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    second = nn.Conv2d(8, 8, **{"kernel_size": 3, **options})
    model = randomize(nn.Sequential(Block(3, 8), second, nn.SiLU(), nn.Conv2d(8, 4, 1))).eval()
    images = torch.rand(12, 3, 16, 16)
    graph = prune.trace(model, images[:1])
    cost = prune.score(graph, "fisher", batches=images, sensitivity=plain).cost(0)
    gate = torch.ones(8, requires_grad=True)
    hook = second.register_forward_pre_hook(lambda _, x: x[0] * gate[:, None, None])
    expected = torch.stack([torch.autograd.grad(plain(model(image)), gate)[0].square() for image in images.split(1)])
    hook.remove()
    torch.testing.assert_close(cost, expected.mean(0), rtol=1e-3, atol=1e-5)
    student, plan = cut(model, images)
    before, after = next((r.error_before, r.error_after) for r in prune.repair(student, model, plan, images))
    assert after <= before


class Cut(nn.Module):
    """Gradients end behind the first two layers, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third, self.out = Block(3, 8), Block(8, 8), Block(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.how == "detach":
            y = y.detach()
        elif self.how == "round":
            return self.out(self.third(x.repeat(1, 3, 1, 1)[:, :8])) + y.round().mean((1, 2, 3), keepdim=True)
        elif self.how == "sign":
            return self.out(self.third(y)).sign()
        return self.out(self.third(y))


@pytest.mark.parametrize("name", ["obs", "fisher"])
def test_a_detach_changes_nothing(name: str) -> None:
    images = torch.rand(8, 3, 16, 16)
    costs = []
    for how in ("as it is", "detach"):
        graph = prune.trace(randomize(Cut(how)), images[:1])
        scores = prune.score(graph, name, batches=images, sensitivity=plain).fresh()
        costs.append([scores.cost(group.index) for group in graph.groups])
    assert all(torch.equal(a, b) and (a > 0).all() for a, b in zip(*costs, strict=True))
    student, plan = cut(randomize(Cut("detach")), images)
    model = randomize(Cut("detach"))
    assert prune.repair(student, model, plan, images) and prune.reconstruct(student, model, plan, images, steps=2)


@pytest.mark.parametrize("name", ["obs", "fisher"])
def test_what_a_layer_reads_stays_where_no_gradient_reaches_the_layer(name: str) -> None:
    images = torch.rand(8, 3, 16, 16)
    model = randomize(Cut("round"))
    graph = prune.trace(model, images[:1])
    scores = prune.score(graph, name, batches=images)
    costs = {group.name: scores.cost(group.index) for group in graph.groups}
    assert costs["first.conv"].isinf().all() and costs["third.conv"].isfinite().all()
    plan = prune.make_plan(graph, scores, params=0.9, round_to=1)
    assert len(plan.keep["first.conv"]) == 8 > len(plan.keep["third.conv"])
    student = prune.apply(model, plan)
    assert prune.verify(model, student, plan, images) < 1e-10
    assert prune.repair(student, model, plan, images) and prune.reconstruct(student, model, plan, images, steps=2)
    assert all(value.isfinite().all() for value in student.state_dict().values())


def test_a_network_without_gradients_is_refused_where_they_are_needed_and_can_be_repaired() -> None:
    images = torch.rand(8, 3, 16, 16)
    model = randomize(Cut("sign"))
    graph = prune.trace(model, images[:1])
    for name in ("obs", "fisher"):
        with pytest.raises(prune.PruneError, match="^no gradient gets from the outputs"):
            prune.score(graph, name, batches=images, sensitivity=lambda z: z.detach().sum())
    plan = prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.3, round_to=1)
    student = prune.apply(model, plan)
    assert prune.repair(student, model, plan, images, sensitivity=lambda z: z.detach().sum())
    assert prune.reconstruct(student, model, plan, images, sensitivity=lambda z: z.detach().sum(), steps=2)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    images = torch.rand(2, 3, 16, 16)
    graph = prune.trace(randomize(SMALL["split"]()), images[:1])
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(prune.PruneError, match="^the gradient at '.*' is not finite: look for NaN"):
        prune.score(graph, "obs", batches=images)


def test_images_are_left_as_they_are() -> None:
    images = [torch.rand(4, 3, 16, 16), torch.rand(3, 3, 24, 16)]
    before = [batch.clone() for batch in images]
    graph = prune.trace(randomize(SMALL["split"]()), images[0][:1])
    for name in ("obs", "fisher"):
        prune.score(graph, name, batches=images)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(images, before, strict=True))


def test_a_model_that_changes_its_input_changes_no_image() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = Block(3, 8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stem(x.sub_(0.5)))

    model, images = randomize(Centred()), torch.rand(8, 3, 8, 8)
    before, graph = images.clone(), prune.trace(model, images[:1].clone())
    plan = prune.make_plan(graph, prune.score(graph, "obs", batches=images), ratio=0.5, round_to=1)
    student = prune.apply(model, plan)
    prune.repair(student, model, plan, images)
    prune.reconstruct(student, model, plan, images, steps=2)
    prune.recentre(student, images)
    assert torch.equal(images, before)


def test_batch_norm_over_tokens_is_no_batch_norm_of_channels() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(5), nn.Linear(12, 8), nn.Linear(8, 3)).eval()
    graph = prune.trace(model, torch.rand(2, 5, 6))
    assert graph.frozen["0"] == "'1' normalizes another dimension than that of the channels"
    assert [group.name for group in graph.groups] == ["2"]


def test_the_weights_of_blocks_take_less_than_their_outputs() -> None:
    model, images = randomize(SMALL["split"]()), torch.rand(16, 3, 16, 16)
    _, plan = cut(model, images)
    program = Program(raw_copy(model), images)
    found = target_weights(program, segments(program, plan), [images], gaussian, 0)
    assert found
    for target, ((each, positions),) in found.items():
        output = target.kept(torch.empty(program.nodes[target.node].meta["val"].shape))
        assert each.numel() + positions.numel() < output.numel() and (each * positions).shape == output.shape


def test_sizes_are_read_off_whatever_an_operator_gives() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values, places = x.half().max(1)
            return x * values[:, None].float() + (places > 1).float()[:, None] + torch.zeros(x.shape[0], 1, 1, 1)

    program = Program(Odd(), torch.rand(2, 3, 4, 4))
    sizes = [program.live_bytes(count) for count, _ in enumerate(program.nodes)]
    assert sizes[-1] > 0 and any(a != b for a, b in pairwise(sizes))
    assert program.backward_bytes() >= 3 * 2 * 3 * 4 * 4 * 4
