from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.cut.plan import plan_from_channels
from prune.program.raw import raw_copy, tensors
from prune.recovery.regression import _symmetric
from tests.prune.networks import SMALL, Block, narrow, randomize, yolo


def cut(model: nn.Module, images: torch.Tensor, ratio: float = 0.4) -> tuple[nn.Module, prune.PrunePlan]:
    graph = prune.trace(model, images[:1], adapter=YOLO_ADAPTER)
    scores = prune.score(graph, "obs", batches=images)
    plan = prune.make_plan(graph, scores, ratio=ratio, round_to=1)
    return prune.apply(model, plan, adapter=YOLO_ADAPTER), plan


def raw(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return tensors(YOLO_ADAPTER.outputs(model(images)))


def distance(student: nn.Module, model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        pairs = zip(
            raw(raw_copy(student, YOLO_ADAPTER), images), raw(raw_copy(model, YOLO_ADAPTER), images), strict=True
        )
        return sum((a - b).square().mean().item() for a, b in pairs)


@pytest.mark.parametrize("name", [*SMALL, "yolov8n"])
def test_outputs_come_closer_on_images_that_repair_did_not_see(name: str) -> None:
    torch.manual_seed(0)
    model, side = narrow(name)
    images, unseen = torch.rand(24, 3, side, side), torch.rand(8, 3, side, side)
    student, plan = cut(model, images)
    before = distance(student, model, unseen)
    layers = prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert distance(student, model, unseen) < 0.7 * before
    assert any(layer.changed for layer in layers)
    assert all(layer.error_after <= layer.error_before for layer in layers if layer.changed)


def test_positions_are_weighed_once_for_all_plans_of_a_model() -> None:
    torch.manual_seed(0)
    model, side = narrow("residual")
    images = torch.rand(24, 3, side, side)
    _, plan = cut(model, images, 0.2)
    weights = prune.repair_weights(model, plan, images, adapter=YOLO_ADAPTER)
    for ratio in (0.2, 0.5):
        student, plan = cut(model, images, ratio)
        twin = copy.deepcopy(student)
        prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
        prune.repair(twin, model, plan, images, adapter=YOLO_ADAPTER, weights=weights)
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), twin.parameters(), strict=True))
    other = {key: torch.rand_like(value) for key, value in weights.items()}
    third, plan = cut(model, images, 0.5)
    prune.repair(third, model, plan, images, adapter=YOLO_ADAPTER, weights=other)
    assert not all(torch.equal(a, b) for a, b in zip(third.parameters(), twin.parameters(), strict=True)), "they count"


def test_a_twin_that_was_cut_is_made_up_for_exactly() -> None:
    model = randomize(SMALL["residual"]())
    with torch.no_grad():  # stem: channels 8-15 are channels 0-7 again
        model.stem.conv.weight[8:] = model.stem.conv.weight[:8]
        for tensor in (*model.stem.bn.parameters(), *model.stem.bn.buffers()):
            if tensor.dim():
                tensor[8:] = tensor[:8]
    images = torch.rand(48, 3, 16, 16)
    graph = prune.trace(model, images[:1])
    stem = graph.groups[0].channels
    plan = plan_from_channels(graph, set(graph.group_of) - set(stem[8:]))
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    before = distance(student, model, images)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert distance(student, model, images) < 1e-4 * before


def test_linear_layers_with_more_inputs_than_images_are_solved_too() -> None:
    """96 columns behind a flatten and a mean far from zero: the ridge and the origin keep it solvable."""
    model = randomize(SMALL["depthwise"]())
    images = 50 + torch.rand(12, 3, 16, 16)
    student, plan = cut(model, images)
    before = distance(student, model, images)
    layers = prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert distance(student, model, images) < before
    assert {"fc1", "fc2", "dw.conv", "grouped.conv"} <= {layer.name for layer in layers}


@pytest.mark.parametrize("columns", [9, 144, 145, 400])
def test_a_covariance_made_in_stripes_is_the_whole_of_it(columns: int) -> None:
    x, weights = torch.randn(2, 50, columns, dtype=torch.float64), torch.rand(50, 1)
    torch.testing.assert_close(_symmetric(x * weights, x), torch.einsum("gpi,p,gpj->gij", x, weights[:, 0].double(), x))


def test_a_student_that_is_right_stays_as_it_is() -> None:
    model = randomize(SMALL["split"]())
    images = torch.rand(24, 3, 16, 16)
    graph = prune.trace(model, images[:1])
    plan = plan_from_channels(graph, set(graph.group_of))
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert distance(student, model, images) < 1e-8


def test_only_the_student_changes_and_its_modes_come_back() -> None:
    model = yolo("yolov8n", width=0.0625)
    images = torch.rand(12, 3, 64, 64)
    student, plan = cut(model, images)
    student.train()
    state, images_before = {k: v.clone() for k, v in model.state_dict().items()}, images.clone()
    scales = {k: v.clone() for k, v in student.state_dict().items() if "running_var" in k or "bn.weight" in k}
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and torch.equal(images, images_before)
    assert all(module.training for module in student.modules())
    assert all(torch.equal(student.state_dict()[k], v) for k, v in scales.items())  # BatchNorm is not re-estimated
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in model.parameters()]


def test_the_same_seed_gives_the_same_student() -> None:
    model, images = randomize(SMALL["pyramid"]()), torch.rand(12, 3, 16, 16)
    student, plan = cut(model, images)
    twin = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    for each in (student, twin):
        prune.repair(each, model, plan, images, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_batches_and_a_tensor_are_the_same_and_no_images_are_refused() -> None:
    model, images = randomize(SMALL["split"]()), torch.rand(32, 3, 16, 16)
    student, plan = cut(model, images)
    twin = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    prune.repair(twin, model, plan, iter(images.split(16)))
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    with pytest.raises(prune.PruneError, match="^no images"):
        prune.repair(student, model, plan, [])
    next(module for module in twin.modules() if isinstance(module, Block)).act = nn.Sequential(nn.ReLU(), nn.ReLU())
    with pytest.raises(prune.PruneError, match="no pruned copy of it$"):
        prune.repair(twin, model, plan, images)


@pytest.mark.parametrize("name", [*SMALL, "yolov8n"])
def test_without_memory_values_are_computed_again_and_the_result_is_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = randomize(SMALL[name]()) if name in SMALL else yolo(name, width=0.0625)
    images = torch.rand(48, 3, 16, 16) if name in SMALL else torch.rand(24, 3, 64, 64)
    before = images.clone()
    student, plan = cut(model, images)
    twin = copy.deepcopy(student)
    records = []
    for network, memory in ((student, 2**40), (twin, 1)):
        monkeypatch.setattr(sys.modules["prune.recovery.pair"], "CACHE_BYTES", memory)
        layers = prune.repair(network, model, plan, images, adapter=YOLO_ADAPTER)
        records.append((layers, prune.reconstruct(network, model, plan, images, steps=3, adapter=YOLO_ADAPTER)))
    assert records[0] == records[1]
    assert torch.equal(images, before)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", [*SMALL, "yolov5n"])
def test_recentred_statistics_leave_the_outputs_and_are_those_of_the_images(name: str) -> None:
    torch.manual_seed(0)
    model, side = narrow(name)
    images = torch.rand(32, 3, side, side)
    student, plan = cut(model, images)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)

    def in_train_mode() -> float:
        """How far the network is from itself in eval mode where BatchNorm uses the batch's own statistics."""
        twin = copy.deepcopy(student)
        with torch.no_grad():
            pairs = zip(raw(twin.train(), images), raw(raw_copy(student, YOLO_ADAPTER), images), strict=True)
            return sum((a - b).square().mean().item() for a, b in pairs)

    before, repaired, modes = in_train_mode(), copy.deepcopy(student), [m.training for m in student.modules()]
    prune.recentre(student, images, adapter=YOLO_ADAPTER)
    assert distance(student, repaired, images) < 1e-6
    assert in_train_mode() < 1e-3 * before
    assert [m.training for m in student.modules()] == modes
    assert not any(module._forward_pre_hooks for module in student.modules())


@pytest.mark.parametrize("between", [None, prune.recentre])
def test_a_student_that_was_repaired_before_is_repaired_again_no_worse(between: Any) -> None:
    """The constants of the first time stand in its BatchNorms; the second must not count them again."""
    model = randomize(SMALL["residual"]())
    images, unseen = torch.rand(48, 3, 16, 16), torch.rand(16, 3, 16, 16)
    student, plan = cut(model, images)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    once = distance(student, model, unseen)
    if between:
        between(student, images)
    prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
    assert distance(student, model, unseen) < 1.05 * once


def test_a_batch_norm_behind_two_layers_or_without_statistics_takes_no_constant() -> None:
    class Two(nn.Module):
        def __init__(self, tracks: bool) -> None:
            super().__init__()
            self.stem, self.out = Block(3, 16), nn.Conv2d(12, 4, 1)
            self.a, self.b = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
            self.bn = nn.BatchNorm2d(12, track_running_stats=tracks)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.out(self.bn(self.a(x)).relu() + self.bn(self.b(x)).relu())

    for tracks in (True, False):
        torch.manual_seed(0)
        model, images, unseen = randomize(Two(tracks)), torch.rand(24, 3, 8, 8), torch.rand(8, 3, 8, 8)
        student, plan = cut(model, images)
        statistics, before = copy.deepcopy(student.bn).state_dict(), distance(student, model, unseen)
        prune.repair(student, model, plan, images, adapter=YOLO_ADAPTER)
        assert distance(student, model, unseen) < 0.7 * before
        assert all(torch.equal(value, statistics[name]) for name, value in student.bn.state_dict().items())


def test_what_cannot_be_repaired_is_refused() -> None:
    images = torch.rand(8, 3, 16, 16)
    model = randomize(SMALL["residual"]())
    student, plan = cut(model, images)
    other, _ = cut(model, images, ratio=0.2)
    for solve in (prune.repair, prune.reconstruct):
        with pytest.raises(prune.PruneError, match="^the student is not cut by this plan: 'stem.conv' has 1. channels"):
            solve(other, model, plan, images)
        with pytest.raises(prune.PruneError, match="^the plan is for another model: "):
            solve(student, Block(3, 8), plan, images)
        with pytest.raises(
            prune.PruneError, match="^'stem.conv.weight' is float64: call .float\\(\\) on the model first"
        ):
            solve(student, copy.deepcopy(model).double(), plan, images)
        with pytest.raises(prune.PruneError, match="^the student is not cut by this plan: 'stem.conv' has 0 channels"):
            solve(nn.Sequential(), model, plan, images)
    double = copy.deepcopy(student).double()
    with pytest.raises(prune.PruneError, match="^'stem.conv.weight' is float64"):
        prune.recentre(double, images)
    assert not any(module._forward_pre_hooks for module in double.modules())
