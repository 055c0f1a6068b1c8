"""The proof: the full model with the cut channels zeroed after BatchNorm and activation is the pruned model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.cut.plan import plan_from_channels
from prune.cut.verify import masked_outputs
from prune.program.raw import raw_copy, tensors
from tests.prune.networks import SMALL, randomize, yolo

ROUNDING = 1e-10
# s is as deep as n, and v8x as v8l: at one width they are one network. tests/bench/exact.py does every size in full.
SIZES = ["yolov5n", "yolov5m", "yolov5l", "yolov5x", "yolov8n", "yolov8m", "yolov8l", "yolo11n", "yolo11m"]


def random_plan(model: nn.Module, example: torch.Tensor, seed: int = 0) -> prune.PrunePlan:
    graph = prune.trace(model, example, adapter=YOLO_ADAPTER)
    return prune.make_plan(graph, prune.score(graph, "random", seed=seed), ratio=0.4, round_to=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, seed: int) -> None:
    model = randomize(SMALL[name](), seed)
    images = torch.rand(2, 3, 16, 16)
    plan = random_plan(model, images[:1], seed)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert sum(p.numel() for p in student.parameters()) == plan.params_after < plan.params_before
    assert prune.verify(model, student, plan, images, adapter=YOLO_ADAPTER) < ROUNDING


@pytest.mark.parametrize("name", SIZES)
def test_every_depth(name: str) -> None:
    """At a sixteenth of the width: which channels depend on which does not change with it."""
    model = yolo(name, width=0.0625)
    images = torch.rand(1, 3, 64, 64)
    plan = random_plan(model, images)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(model, student, plan, images, adapter=YOLO_ADAPTER) < ROUNDING


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n"])
def test_other_input_sizes_and_stock_inference(name: str) -> None:
    model = yolo(name, width=0.125)
    plan = random_plan(model, torch.rand(1, 3, 64, 64))
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(model, student, plan, torch.rand(2, 3, 96, 32), adapter=YOLO_ADAPTER) < ROUNDING
    decoded = student.eval()(torch.rand(1, 3, 64, 64))[0]
    assert decoded.shape == (1, 7, 84) and decoded.isfinite().all()


@pytest.mark.parametrize("name", ["residual", "split", "pyramid", "yolov8n"])
def test_train_mode_with_equal_gradients(name: str) -> None:
    model = (SMALL[name]() if name in SMALL else yolo(name, width=0.0625)).double()
    randomize(model).train()
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    plan = random_plan(copy.deepcopy(model).float(), images[:1].float())
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER).train()
    reference, outputs = (
        masked_outputs(model, plan, images, YOLO_ADAPTER),
        tensors(YOLO_ADAPTER.outputs(student(images))),
    )
    direction = [torch.rand_like(t) for t in outputs]
    for full, cut in zip(reference, outputs, strict=True):
        torch.testing.assert_close(cut, full, atol=ROUNDING, rtol=0)
    for results in (reference, outputs):
        torch.autograd.backward(list(results), list(direction))
    kept = dict(model.named_modules())
    for path, module in student.named_modules():
        if path in plan.keep and isinstance(module, nn.BatchNorm2d):
            torch.testing.assert_close(
                module.weight.grad, kept[path].weight.grad[list(plan.keep[path])], atol=1e-9, rtol=1e-9
            )


@pytest.mark.parametrize("side", ["keep", "keep_inputs"])
@pytest.mark.parametrize("name", ["residual", "split", "pyramid", "depthwise", "yolov5n", "yolov8n"])
def test_swapping_two_kept_channels_fails(name: str, side: str) -> None:
    model = randomize(SMALL[name]()) if name in SMALL else yolo(name, width=0.0625)
    images = torch.rand(1, 3, 64, 64) if name not in SMALL else torch.rand(1, 3, 16, 16)
    plan = random_plan(model, images)
    graph = prune.trace(model, images, adapter=YOLO_ADAPTER)
    layers = [graph.producers[g.index][0].name for g in graph.groups]
    if side == "keep_inputs":
        layers = [
            layer.name for layer in graph.layers if layer.kind == "conv" and set(layer.inputs) & set(graph.group_of)
        ]
    layers = [layer for layer in layers if len(getattr(plan, side)[layer]) > 1][: 6 if name in SMALL else 2]
    assert layers
    reference = masked_outputs(raw_copy(model.double(), YOLO_ADAPTER), plan, images.double(), YOLO_ADAPTER)
    for layer in layers:
        indices = list(getattr(plan, side)[layer])
        indices[0], indices[1] = indices[1], indices[0]
        wrong = replace(plan, **{side: {**getattr(plan, side), layer: tuple(indices)}})
        student = raw_copy(prune.apply(model, wrong, adapter=YOLO_ADAPTER).double(), YOLO_ADAPTER)
        pairs = zip(tensors(YOLO_ADAPTER.outputs(student(images.double()))), reference, strict=True)
        assert max((a - b).abs().max() for a, b in pairs) > 1000 * ROUNDING, layer


def test_the_model_is_untouched_and_nothing_of_ours_stays_in_the_student() -> None:
    model = yolo("yolov8n", width=0.0625)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    student = prune.apply(model, random_plan(model, torch.rand(1, 3, 64, 64)), adapter=YOLO_ADAPTER)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {type(m).__module__.split(".")[0] for m in student.modules()} <= {"torch", "ultralytics"}
    for (path, module), (_, original) in zip(student.named_modules(), model.named_modules(), strict=True):
        assert set(vars(module)) == set(vars(original)), path
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)


def test_parts_of_a_split_stay_equal_and_their_width_is_updated() -> None:
    model = yolo("yolov8n", width=0.125)
    student = prune.apply(model, random_plan(model, torch.rand(1, 3, 64, 64)), adapter=YOLO_ADAPTER)
    for block in (m for m in student.modules() if hasattr(m, "forward_split")):
        assert block.cv1.conv.out_channels == 2 * block.c
        images = torch.rand(1, block.cv1.conv.in_channels, 8, 8)
        torch.testing.assert_close(block.eval().forward_split(images), block(images))


def test_everything_kept_is_the_same_network() -> None:
    model = randomize(SMALL["split"]())
    graph = prune.trace(model, torch.rand(1, 3, 16, 16))
    plan = plan_from_channels(graph, set(graph.group_of))
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(prune.apply(model, plan, adapter=YOLO_ADAPTER).eval()(images), model.eval()(images))
