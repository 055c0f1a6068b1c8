"""What a user may bring: an importance, a rule for an operator, an adapter for a family of models."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.cut.budget import BUDGETS, Change, LayerChange
from tests.prune.networks import SMALL, Block, randomize, yolo

IMAGE = torch.rand(1, 3, 16, 16)


def spread(graph: prune.ChannelGraph, context: prune.Context) -> list[Tensor]:
    """Standard deviation of the filters that make a channel."""
    modules: dict[str, Any] = dict(graph.model.named_modules())
    weights = {layer: modules[layer.name].weight.detach() for layer in graph.layers}
    return prune.per_group(graph, ((layer.outputs, w.flatten(1).std(1)) for layer, w in weights.items()))


def test_a_value_for_each_channel_is_asked_for() -> None:
    """The weight of a transposed convolution has its inputs first."""
    graph = prune.trace(nn.Sequential(Block(3, 8), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 4, 1)), IMAGE)
    with pytest.raises(prune.PruneError, match="8 values are given for 6 channels of a layer"):
        prune.score(graph, spread)


class Even(prune.Importance):
    """A channel costs more, the more of its group are gone."""

    def __init__(self, graph: prune.ChannelGraph, context: prune.Context) -> None:
        self.graph, self.context = graph, context
        self.removed = [0] * len(graph.groups)

    def cost(self, group: int) -> Tensor:
        return torch.full((len(self.graph.groups[group].channels),), 1.0 + self.removed[group])

    def remove(self, group: int, channel: int) -> None:
        self.removed[group] += 1

    def fresh(self) -> Even:
        return Even(self.graph, self.context)


def test_a_function_is_an_importance() -> None:
    model = randomize(SMALL["residual"]())
    graph = prune.trace(model, IMAGE)
    scores = prune.score(graph, spread)
    torch.testing.assert_close(scores.cost(0), model.stem.conv.weight.detach().flatten(1).std(1))
    plan = prune.make_plan(graph, scores, ratio=0.4, round_to=1)
    assert plan == prune.plan_in_rounds(graph, spread, ratio=0.4, round_to=1)
    assert prune.verify(model, prune.apply(model, plan), plan, IMAGE) < 1e-10


def test_a_class_is_an_importance_that_hears_of_removals() -> None:
    graph = prune.trace(nn.Sequential(Block(3, 16), Block(16, 16), Block(16, 16), nn.Conv2d(16, 4, 1)), IMAGE)
    scores = prune.score(graph, Even)
    assert prune.score(graph, scores) is scores
    plan = prune.make_plan(graph, scores, ratio=0.5, round_to=1)
    assert [width.after for width in plan.groups] == [8, 8, 8]
    assert scores.removed == [0, 0, 0]


def test_an_importance_of_ones_own_sees_images_and_is_asked_again_in_every_round() -> None:
    graph, images, widths = prune.trace(randomize(SMALL["residual"]()), IMAGE), torch.rand(20, 3, 16, 16), []

    def brightness(narrow: prune.ChannelGraph, context: prune.Context) -> dict[int, Tensor]:
        assert [len(batch) for batch in context.batches] == [16, 4] and context.seed == len(widths) + 7
        widths.append(len(narrow.group_of))
        return {group.index: torch.rand(len(group.channels)) for group in narrow.groups}

    prune.plan_in_rounds(graph, brightness, images=images, rounds=2, seed=7, ratio=0.6, round_to=1)
    assert len(widths) == 2 and widths[1] < widths[0] == 32
    with pytest.raises(prune.PruneError, match=r"^importance 'brightness' needs images: pass batches=$"):
        prune.score(graph, brightness)


@pytest.mark.parametrize(
    "costs, message",
    [
        (lambda graph, context: 3, "importance '<lambda>' returned a int: return an Importance, or the costs of each"),
        (lambda graph, context: [torch.rand(16)], r"gave nothing for group 1 \('body.conv\[0:8\]'\): give \(8,\)"),
        (lambda graph, context: [torch.rand(9)] * 3, r"gave a tensor of shape \(9,\) for group 0 \('stem.conv'\)"),
        (3, "^importance is a int: give a name, a function"),
    ],
)
def test_costs_that_do_not_fit_are_refused_in_one_line(costs: Any, message: str) -> None:
    with pytest.raises(prune.PruneError, match=message):
        prune.score(prune.trace(SMALL["residual"](), IMAGE), costs)


class Shifted(nn.Module):
    """Rolls its maps along one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.first, self.second, self.out = Block(3, 8), Block(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).roll(1, self.dim)))


def roll(tracker: Any, node: torch.fx.Node) -> Any:
    vector = tracker.vector(node.args[0])
    dims = [dim % node.meta["val"].dim() for dim in (node.args[2] if len(node.args) > 2 else [])]
    if vector is None or not dims or vector.dim in dims:
        return tracker.give_up(node, "channels are rolled")
    return vector


@pytest.fixture
def scale() -> Iterator[Any]:
    """A library of somebody's own, with one operator: it makes 1 of 0, which the proof has to see."""

    @torch.library.custom_op("prunetest::scale", mutates_args=())
    def operator(x: Tensor, factor: float) -> Tensor:
        return x * factor + 1

    operator.register_fake(lambda x, factor: torch.empty_like(x))
    operator.register_autograd(lambda ctx, grad: (grad * 2, None))
    yield torch.ops.prunetest.scale
    prune.rules.unregister("prunetest::scale")


def cut_exactly(model: nn.Module, adapter: prune.Adapter | None = None) -> list[str]:
    """Names of the groups, after a cut that is exact."""
    graph = prune.trace(model, IMAGE, adapter=adapter)
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=1)
    student = prune.apply(model, plan, adapter=adapter)
    assert prune.verify(model, student, plan, torch.rand(2, 3, 16, 16), adapter=adapter) < 1e-10
    return [group.name for group in graph.groups]


def test_a_rule_of_ones_own_can_be_registered_and_taken_back() -> None:
    model = randomize(Shifted(dim=2))
    assert cut_exactly(model) == ["second.conv"]
    prune.rules.register("roll", roll)
    try:
        assert cut_exactly(model) == ["first.conv", "second.conv"]
        along = prune.trace(Shifted(dim=1), IMAGE)
        assert along.frozen["first.conv"] == "channels are rolled"
    finally:
        prune.rules.unregister("roll")
    assert cut_exactly(model) == ["second.conv"]


def test_a_rule_of_an_adapter_is_for_its_models_alone() -> None:
    model = randomize(Shifted(dim=3))
    assert cut_exactly(model, prune.Adapter(rules={torch.ops.aten.roll: roll})) == ["first.conv", "second.conv"]
    assert cut_exactly(model) == ["second.conv"]


def test_an_operator_of_another_library_is_traced_cut_proved_scored_and_repaired(scale: Any) -> None:
    class Scaled(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.second(torch.ops.prunetest.scale(self.first(x), 2.0)))

    model, images = randomize(Scaled(0)), torch.rand(12, 3, 16, 16)
    assert prune.trace(model, IMAGE).frozen["first.conv"].endswith("in the model's own forward has no rule")
    prune.rules.register(scale, prune.rules.pointwise)
    assert cut_exactly(model) == ["first.conv", "second.conv"]
    graph = prune.trace(model, IMAGE)
    plan = prune.make_plan(graph, prune.score(graph, "obs", batches=images), ratio=0.5, round_to=1)
    assert any(layer.changed for layer in prune.repair(prune.apply(model, plan), model, plan, images))


def test_a_name_like_one_of_torchs_own_is_another_operator() -> None:
    @torch.library.custom_op("prunetest::relu", mutates_args=())
    def flipped(x: Tensor) -> Tensor:
        return x.flip(1)

    flipped.register_fake(torch.empty_like)

    class Flipped(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.second(flipped(self.first(x))))

    assert cut_exactly(randomize(Flipped(0))) == ["second.conv"]


class Decoding(nn.Module):
    """Two halves of a stored width, and a head that decodes what it computes unless it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 8
        self.stem, self.halves, self.body, self.head = Block(3, 8), Block(8, 16), Block(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.halves(self.stem(x)).split(self.half, 1)
        features = self.body(torch.cat([b, a], 1))
        raw = self.head(features)
        return {"features": features, "decoded": raw if self.training else raw.cumsum(1)}


OURS = prune.Adapter(
    expose=lambda model: setattr(model, "training", True),
    outputs=lambda returned: {"decoded": returned["decoded"]},
    widths=("half",),
)


def test_an_adapter_says_what_is_raw_what_is_output_and_where_a_width_is_stored() -> None:
    model = randomize(Decoding())
    plain = prune.trace(model, IMAGE)
    assert set(plain.frozen) == {"halves.conv", "body.conv", "head"}
    assert plain.frozen["head"] == "cumsum.default in the model's own forward has no rule"
    graph = prune.trace(model, IMAGE, adapter=OURS)
    assert graph.frozen == {"head": "an output of the model"}
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=1)
    student = prune.apply(model, plan, adapter=OURS)
    assert student.half == plan.parts[""] < 8
    assert prune.verify(model, student, plan, IMAGE, adapter=OURS) < 1e-10
    images = torch.rand(12, 3, 16, 16)
    assert prune.repair(student, model, plan, images, adapter=OURS)
    assert prune.reconstruct(student, model, plan, images, steps=1, adapter=OURS)
    with pytest.raises(prune.PruneError, match=r"^the adapter does not say where '' stores a width"):
        prune.apply(model, plan)


def test_an_installed_package_offers_the_adapter_of_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offer:
        def load(self) -> prune.Adapter:
            return OURS

    offers = {("prune.adapters", "tests"): [Offer()]}
    monkeypatch.setattr("prune.adapter.entry_points", lambda group, name: offers.get((group, name), []))
    assert prune.adapter_for(Decoding()) is OURS
    assert prune.adapter_for(nn.Conv2d(3, 4, 1)) == prune.Adapter()
    assert prune.trace(randomize(Decoding()), IMAGE).adapter is OURS


def test_this_distribution_offers_the_adapter_of_yolo() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    name, value = config["options.entry_points"]["prune.adapters"].strip().split(" = ")
    assert EntryPoint(name, value, "prune.adapters").load() is YOLO_ADAPTER
    assert type(yolo("yolov5n", width=0.0625)).__module__.partition(".")[0] == name


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "yolo11n"])
def test_a_stock_detector_is_cut_exactly_as_a_plain_module_too(name: str) -> None:
    """Decoding keeps the channels that enter its head; everything else is cut."""
    plain = {"adapter": prune.Adapter()}
    model, images = yolo(name, width=0.0625), torch.rand(6, 3, 64, 64)
    graph = prune.trace(model, images[:1], **plain)
    plan = prune.make_plan(graph, prune.score(graph, "random"), flops=0.6, round_to=1)
    student = prune.apply(model, plan, **plain)
    assert prune.verify(model, student, plan, images, **plain) < 1e-8
    assert len(prune.trace(model, images[:1], adapter=YOLO_ADAPTER).group_of) > len(graph.group_of)
    attributes = {path: dict(vars(module)) for path, module in student.named_modules()}
    assert prune.repair(student, model, plan, images, **plain)
    assert prune.reconstruct(student, model, plan, images, steps=1, **plain)
    prune.recentre(student, images, **plain)
    assert {path: vars(module) for path, module in student.named_modules()} == attributes
    assert student.eval()(images)[0].isfinite().all()


def test_a_budget_counts_what_a_step_saves_as_it_counts_the_whole() -> None:
    graph = prune.trace(SMALL["depthwise"](), IMAGE)
    group = next(group for group in graph.groups if group.name == "pw.conv")
    gone = set(group.channels[:2])
    layers = []
    for layer in graph.layers:
        sides = layer.inputs, layer.outputs
        inputs, outputs = (sum(channel not in gone for channel in side) for side in sides)
        layers.append(LayerChange(layer, (len(sides[0]), len(sides[1])), (inputs, outputs)))
    norms = sum(norm.channels.count(channel) for norm in graph.norms for channel in gone)
    kept = graph.staying | graph.group_of.keys() - gone
    saved = {unit: make(graph).saved(Change(layers, len(gone), norms)) for unit, make in BUDGETS.items()}
    flops, params = graph.flops() - graph.flops(kept), graph.params() - graph.params(kept)
    assert saved == {"flops": flops, "params": params, "ratio": len(gone)} and min(saved.values()) > 0
    totals = [graph.flops(), sum(p.numel() for p in graph.model.parameters()), len(graph.group_of)]
    assert [make(graph).total for make in BUDGETS.values()] == totals
