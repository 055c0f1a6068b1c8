from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.importance.base import StaticImportance
from tests.prune.networks import SMALL, Block, randomize, yolo

IMAGE = torch.rand(1, 3, 64, 64)
RANGE = "must be above 0 and below 1: the most of a layer that may go"


@pytest.fixture(scope="module")
def graph() -> prune.ChannelGraph:
    return prune.trace(yolo("yolov8n", width=0.25), IMAGE, adapter=YOLO_ADAPTER)


@pytest.mark.parametrize("importance", ["l1", "bn_scale", "random"])
@pytest.mark.parametrize("unit, value", [("flops", 0.7), ("flops", 0.3), ("params", 0.5), ("ratio", 0.25)])
def test_budgets_are_met_within_a_percent_from_below(
    graph: prune.ChannelGraph, importance: str, unit: str, value: float
) -> None:
    plan = prune.make_plan(graph, prune.score(graph, importance), **{unit: value}, round_to=1)
    before, after = sum(g.before for g in plan.groups), sum(g.after for g in plan.groups)
    left = {
        "flops": plan.flops_after / plan.flops_before,
        "params": plan.params_after / plan.params_before,
        "ratio": 1 - (before - after) / before,
    }[unit]
    wanted = 1 - value if unit == "ratio" else value
    assert 0.99 * wanted <= left <= wanted


@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_end_on_multiples_and_no_layer_is_emptied(graph: prune.ChannelGraph, round_to: int) -> None:
    plan = prune.make_plan(graph, prune.score(graph, "random"), flops=0.2, round_to=round_to)
    assert plan.flops_after <= 0.2 * plan.flops_before
    assert all(group.after % round_to == 0 and 0 < group.after <= group.before for group in plan.groups)


def test_cheap_channels_go_and_dear_ones_stay(graph: prune.ChannelGraph) -> None:
    costs = {g.index: torch.arange(len(g.channels), dtype=torch.float32) for g in graph.groups}
    plan = prune.make_plan(graph, StaticImportance(costs), ratio=0.3, round_to=1)
    for group in graph.groups:
        left = set(plan.keep[graph.producers[group.index][0].name])
        places = [i for i, c in enumerate(graph.producers[group.index][0].outputs) if c in set(group.channels)]
        kept = [i in left for i in places]
        assert kept == sorted(kept)  # cut ones first: those with the lower numbers


def test_protected_layers_and_max_ratio(graph: prune.ChannelGraph) -> None:
    scores = prune.score(graph, "l1")
    plan = prune.make_plan(graph, scores, flops=0.6, round_to=1, protect=("model.0", "model.2.*"), max_ratio=0.6)
    for layer in graph.layers:
        kept = len(plan.keep[layer.name]) / len(layer.outputs)
        assert kept == 1 or not layer.name.startswith(("model.0.", "model.2."))
    assert all(group.after >= 0.4 * group.before for group in plan.groups)


def test_one_pattern_is_a_string_and_may_name_what_is_not_cut_anyway(graph: prune.ChannelGraph) -> None:
    scores = prune.score(graph, "l1")
    plans = [
        prune.make_plan(graph, scores, flops=0.6, protect=p)
        for p in ("model.0", ("model.0",), ("model.0", "model.22.dfl"))
    ]
    assert plans[0] == plans[1] == plans[2]
    assert len(plans[0].keep["model.0.conv"]) == len(graph.layer("model.0.conv").outputs)


def test_max_ratio_is_not_rounded_up() -> None:
    """20 * (1 - 0.95) is 1.0000000000000009."""
    model = nn.Sequential(Block(3, 20), nn.Conv2d(20, 4, 1))
    graph = prune.trace(model, IMAGE)
    plan = prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.95, round_to=1, max_ratio=0.95)
    assert plan.groups[0].after == 1


def test_parts_of_a_split_lose_equally_many(graph: prune.ChannelGraph) -> None:
    plan = prune.make_plan(graph, prune.score(graph, "random"), flops=0.5, round_to=1)
    after = {group.name: group.after for group in plan.groups}
    assert graph.splits
    for split in graph.splits:
        widths = {sum(c in kept(plan, graph) for c in part) for part in split.parts}
        assert widths == {plan.parts[split.owner]}
    assert len(after) == len(plan.groups)  # names are unique


def kept(plan: prune.PrunePlan, graph: prune.ChannelGraph) -> set[int]:
    return {layer.outputs[i] for layer in graph.layers for i in plan.keep[layer.name]}


def test_json_loses_nothing(graph: prune.ChannelGraph) -> None:
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.5)
    assert prune.PrunePlan.from_json(plan.to_json()) == plan
    with pytest.raises(prune.PruneError, match=r"^not a prune plan: "):
        prune.PrunePlan.from_json('{"keep": 3}')
    with pytest.raises(prune.PruneError, match=r"^not a prune plan: 'str' object cannot be interpreted as an integer$"):
        prune.PrunePlan.from_json(plan.to_json().replace('"model.0.conv": [\n   0', '"model.0.conv": [\n   "0"'))


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give exactly one budget of flops, params or ratio, not 0"),
        ({"flops": 0.5, "params": 0.5}, "give exactly one budget of flops, params or ratio, not 2"),
        ({"flops": 1.5}, "flops=1.5 is no budget: it must be between 0 and 1"),
        ({"flops": 0.5, "round_to": 0}, "round_to=0 must be 1 or more"),
        ({"flops": 0.5, "max_ratio": 0}, f"max_ratio=0 {RANGE}"),
        ({"flops": 0.5, "max_ratio": 1.0}, f"max_ratio=1 {RANGE}"),
        ({"flops": 0.5, "max_ratio": -0.5}, f"max_ratio=-0.5 {RANGE}"),
        ({"flops": 0.5, "max_ratio": float("nan")}, f"max_ratio=nan {RANGE}"),
        (
            {"flops": 0.5, "protect": ["model.0", "modle.1.*"]},
            "protect='modle.1.*' matches no layer of DetectionModel: did you mean 'model.1'?",
        ),
        (
            {"flops": 0.5, "protect": "model.0.bn"},
            "protect='model.0.bn' matches no layer of DetectionModel: name the convolution before that BatchNorm",
        ),
        (
            {"flops": 0.5, "protect": "backbone"},
            "protect='backbone' matches no layer of DetectionModel: its layers are named like 'model.0.conv'",
        ),
    ],
)
def test_bad_budgets(graph: prune.ChannelGraph, options: dict, message: str) -> None:
    with pytest.raises(prune.PruneError) as error:
        prune.make_plan(graph, prune.score(graph, "l1"), **options)
    assert str(error.value) == message


def test_an_impossible_budget_says_how_far_it_got(graph: prune.ChannelGraph) -> None:
    with pytest.raises(prune.PruneError, match=r"^flops=0.01 cannot be met: 0\.\d+ of the model is left when every"):
        prune.make_plan(graph, prune.score(graph, "l1"), flops=0.01)
    with pytest.raises(prune.PruneError, match=r"^params=0.01 cannot be met: "):
        prune.check_budget(graph, params=0.01)
    with pytest.raises(prune.PruneError, match=r"^ratio=0.99 cannot be met: "):
        prune.check_budget(graph, ratio=0.99)


@pytest.mark.parametrize(
    "options", [{}, {"round_to": 1}, {"max_ratio": 0.5, "round_to": 4}, {"protect": ("model.1*",)}]
)
def test_what_is_called_possible_is_reached(graph: prune.ChannelGraph, options: dict) -> None:
    """The least that is left, found by asking, can be met; a little less cannot."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        try:
            prune.check_budget(graph, flops=middle, **options)
            high = middle
        except prune.PruneError:
            low = middle
    plan = prune.make_plan(graph, prune.score(graph, "random"), flops=high, **options)
    assert plan.flops_after <= high * plan.flops_before


def test_importances_by_name(graph: prune.ChannelGraph) -> None:
    with pytest.raises(prune.PruneError, match=r"^unknown importance 'magnitude': choose from obs, fisher"):
        prune.score(graph, "magnitude")
    with pytest.raises(prune.PruneError, match=r"^importance 'obs' needs images: pass batches=$"):
        prune.score(graph, "obs")
    with pytest.raises(prune.PruneError, match=r"^no images"):
        prune.score(graph, "obs", batches=[])
    costs = [prune.score(graph, "random", seed=seed).cost(0) for seed in (0, 0, 1)]
    assert torch.equal(costs[0], costs[1]) and not torch.equal(costs[0], costs[2])


def test_bn_scale_and_l1_are_what_they_say() -> None:
    model = randomize(SMALL["residual"]())
    graph = prune.trace(model, IMAGE)
    scale = prune.score(graph, "bn_scale").cost(1)
    expected = (model.body.bn.weight[:8].abs() + model.left.bn.weight.abs()) / 2
    torch.testing.assert_close(scale, expected.detach())
    norms = model.stem.conv.weight.detach().abs().sum((1, 2, 3))
    torch.testing.assert_close(prune.score(graph, "l1").cost(0), norms / norms.mean())


def test_a_plan_for_another_model_is_refused() -> None:
    plans = {}
    for name in ("split", "residual"):
        graph = prune.trace(SMALL[name](), IMAGE)
        plans[name] = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.4, round_to=1)
    with pytest.raises(prune.PruneError, match=r"^the plan is for another model: Residual has no module 'cv1"):
        prune.apply(SMALL["residual"](), plans["split"])
    narrow = prune.apply(SMALL["split"](), plans["split"])
    with pytest.raises(prune.PruneError, match=r"^the plan is for another model: '\S+' has \d+ channels"):
        prune.apply(prune.apply(narrow, prune_again(narrow)), plans["split"])


def other(plan: prune.PrunePlan, **changes: dict) -> prune.PrunePlan:
    """The plan with some entries changed, and without those that are None."""
    fields = {name: {**getattr(plan, name), **change} for name, change in changes.items()}
    return replace(plan, **{n: {k: v for k, v in field.items() if v is not None} for n, field in fields.items()})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keep_inputs": {"out": (0, 99)}}, "another model: 'out' has 12 input channels, the plan keeps number 99"),
        ({"keep": {"out": (0, -1)}}, "another model: 'out' has 4 channels, the plan keeps number -1"),
        ({"keep_inputs": {"out": None}}, "another model: 'out' is a Conv2d, the plan cuts a BatchNorm"),
        ({"keep": {"cv1.act": (0,)}}, "another model: 'cv1.act' is a SiLU, the plan cuts a BatchNorm"),
        (
            {"keep_inputs": {"cv1.bn": (0,)}},
            "another model: 'cv1.bn' is a BatchNorm2d, the plan cuts a convolution or linear layer",
        ),
        ({"keep_inputs": {"in": (0,)}}, "another model: Split has no module 'in'"),
        ({"parts": {"m.m": 4}}, "another model: Split has no module 'm.m'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_one_line(changes: dict, message: str) -> None:
    model = SMALL["split"]()
    plan = prune_again(model)
    with pytest.raises(prune.PruneError) as error:
        prune.apply(model, other(plan, **changes))
    assert str(error.value) == f"the plan is for {message}"
    with pytest.raises(prune.PruneError, match=r"^the plan keeps none of the channels of 'cv1.conv'$"):
        prune.apply(model, other(plan, keep={"cv1.conv": ()}))
    with pytest.raises(prune.PruneError, match=r"^the plan says which inputs of 'out' to keep, and not which outputs$"):
        prune.apply(model, other(plan, keep={"out": None}))


def test_a_plan_for_a_narrower_model_of_the_same_names_is_refused() -> None:
    narrow, wide = (nn.Sequential(Block(3, width), Block(width, 8), nn.Conv2d(8, 4, 1)) for width in (8, 16))
    with pytest.raises(prune.PruneError) as error:
        prune.apply(wide, prune_again(narrow))
    before = [sum(p.numel() for p in model.parameters()) for model in (wide, narrow)]
    assert str(error.value) == (
        f"the plan is for another model: Sequential has {before[0]:,} parameters, the plan's model had {before[1]:,}"
    )


def prune_again(model: nn.Module) -> prune.PrunePlan:
    graph = prune.trace(model, IMAGE)
    return prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.4, round_to=1)


def test_a_pruned_network_can_be_pruned_again() -> None:
    model = yolo("yolov8n", width=0.0625)
    for _ in range(2):
        graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
        plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.6, round_to=1)
        smaller = prune.apply(model, plan, adapter=YOLO_ADAPTER)
        assert prune.verify(model, smaller, plan, IMAGE, adapter=YOLO_ADAPTER) < 1e-10
        model = smaller


def test_what_is_infinitely_dear_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 4, 1))
    graph = prune.trace(model, torch.rand(1, 3, 8, 8))
    scores = prune.score(graph, "bn_scale")  # the second layer has no scale to go by
    plan = prune.make_plan(graph, scores, flops=0.4, round_to=1)
    assert [(each.before, each.after) for each in plan.groups if each.before != each.after] == [(16, 4)]
    with pytest.raises(prune.PruneError, match="ratio=0.9 cannot be met") as error:
        prune.make_plan(graph, scores, ratio=0.9, round_to=1)
    reason = "32 of 48 channels, those of '2', have an infinite cost and stay: no BatchNorm with scales follows them"
    assert reason in str(error.value) and "use l1 or obs" in str(error.value) and "max_ratio" not in str(error.value)
    with pytest.raises(prune.PruneError, match="1.000 .* as narrow as protect, max_ratio=0.95 and round_to=32 allow"):
        prune.make_plan(graph, scores, ratio=0.9, round_to=32)  # not met by any cost
    with pytest.raises(prune.PruneError, match="those of '0' and 1 other group, .* stay: this importance asks for it"):
        every = prune.score(graph, lambda graph, _: [torch.full((len(g.channels),), torch.inf) for g in graph.groups])
        prune.make_plan(graph, every, ratio=0.9, round_to=1)


def test_costs_that_are_no_number_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        model[0].weight[3] = torch.nan
    graph = prune.trace(model, torch.rand(1, 3, 8, 8))
    with pytest.raises(prune.PruneError, match=r"the cost of channels of '0' is NaN"):
        prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.5)
