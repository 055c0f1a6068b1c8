from __future__ import annotations

import pytest
import torch

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.prune.networks import SMALL, randomize, yolo

IMAGES = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def planned(name: str, **options) -> tuple[torch.nn.Module, prune.PrunePlan]:
    torch.manual_seed(0)
    model = randomize(SMALL[name]())
    graph = prune.trace(model, IMAGES[:1])
    return model, prune.plan_in_rounds(graph, images=IMAGES, round_to=1, **options)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_can_be_cut_in_rounds_exactly(name: str) -> None:
    flops = (
        0.822 if name == "attending" else 0.4
    )  # most of that one are the products of its attention, which stay whole
    model, plan = planned(name, flops=flops, rounds=3)
    assert plan.flops_after <= flops * plan.flops_before
    assert prune.verify(model, prune.apply(model, plan), plan, IMAGES[:1]) < 1e-10


def test_a_detector_of_parts_is_cut_in_rounds_exactly() -> None:
    model, images = yolo("yolov8n", width=0.0625), torch.rand(4, 3, 64, 64)
    graph = prune.trace(model, images[:1], adapter=YOLO_ADAPTER)
    plan = prune.plan_in_rounds(graph, images=images, flops=0.4, rounds=2, round_to=1)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(model, student, plan, images[:1], adapter=YOLO_ADAPTER) < 1e-10


def test_one_round_is_score_and_plan() -> None:
    model, plan = planned("residual", flops=0.6)  # less than a halving
    graph = prune.trace(model, IMAGES[:1])
    assert plan == prune.make_plan(graph, prune.score(graph, "obs", batches=IMAGES), flops=0.6, round_to=1)


def test_budgets_of_the_full_model_hold_through_all_rounds() -> None:
    _, free = planned("residual", ratio=0.6, rounds=3)
    _, bound = planned("residual", ratio=0.6, rounds=3, max_ratio=0.65)
    assert any(w.after < 0.35 * w.before for w in free.groups)
    assert all(w.after >= 0.35 * w.before for w in bound.groups)
    assert sum(w.after for w in bound.groups) <= 0.4 * sum(w.before for w in bound.groups)


def test_later_rounds_ask_what_is_left_and_not_the_full_network() -> None:
    _, once = planned("residual", flops=0.3, rounds=1)
    _, again = planned("residual", flops=0.3, rounds=3)
    assert once.keep != again.keep
    assert planned("residual", flops=0.3, rounds=3)[1] == again


def test_importances_of_the_weights_need_no_images() -> None:
    graph = prune.trace(randomize(SMALL["residual"]()), IMAGES[:1])
    plan = prune.plan_in_rounds(graph, "l1", flops=0.2, round_to=1)
    assert plan == prune.make_plan(graph, prune.score(graph, "l1"), flops=0.2, round_to=1)
    with pytest.raises(prune.PruneError, match="needs images"):
        prune.plan_in_rounds(graph, "obs", flops=0.2, round_to=1)
    with pytest.raises(prune.PruneError, match="cannot be met"):
        prune.plan_in_rounds(graph, "obs", images=IMAGES, flops=1e-6)
    with pytest.raises(prune.PruneError, match=r"^rounds=0 must be 1 or more$"):
        prune.plan_in_rounds(graph, "l1", rounds=0, flops=0.2)
