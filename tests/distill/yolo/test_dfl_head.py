"""The sensitivity of ultralytics' Detect head, with distributions over box sides and without (`reg_max: 1`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.registry import fitting
from distill.losses.spec import LossSpec
from distill.yolo.families import ultralytics_dfl
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import sensitivity_of
from distill.yolo.families.table import gives_of
from prune.importance.statistics import measure_sensitivity
from prune.program.interpret import Program
from prune.program.raw import raw_copy
from tests.distill.yolo.test_match import IMAGES, dfl

ANCHORS, STEP = 6, 1e-3


def raw_outputs(bins: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    boxes = torch.rand(1, 4 * bins, ANCHORS, dtype=torch.float64) * 3 + 0.5
    return {"scores": torch.randn(1, 3, ANCHORS, dtype=torch.float64) * 2, "boxes": boxes}


def squared_gradients(head: Any, raw: dict[str, Tensor], draws: int = 1) -> dict[str, Tensor]:
    leaves = {name: values.clone().requires_grad_() for name, values in raw.items()}
    total = {name: torch.zeros_like(values) for name, values in raw.items()}
    for _ in range(draws):
        gradients = torch.autograd.grad(ultralytics_dfl.sensitivity(head, leaves), list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient**2 / draws
    return total


def distance(bins: int, raw: dict[str, Tensor], moved: dict[str, Tensor]) -> Tensor:
    """Between the outputs and moved ones, such that it is a sum of squares of what was moved, if that is little."""
    p = raw["scores"].sigmoid()
    scores = 2 * (F.binary_cross_entropy_with_logits(moved["scores"], p) - F.binary_cross_entropy(p, p)) * p.numel()
    before, after = (each["boxes"].unflatten(1, (4, bins)).permute(0, 3, 1, 2) for each in (raw, moved))
    best = p.amax(1)  # (1, A)
    if bins > 1:
        changed = 2 * F.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none").sum(
            (2, 3)
        )
    else:
        cells, strides = torch.zeros(ANCHORS, 2), torch.full((ANCHORS, 1), 8.0)
        old, new = (ultralytics_dfl.decode(sides, cells, strides).double() for sides in (before, after))
        size = (old[..., 2:] - old[..., :2]).repeat(1, 1, 2)
        changed = ultralytics_dfl.BOX**2 * ((new - old) / size).square().sum(-1)
    return scores + (best * changed).sum()


@pytest.mark.parametrize("bins", [1, 5])
def test_the_squared_gradient_is_the_metric_of_the_outputs(bins: int) -> None:
    """In expectation, the diagonal of the distance's Gauss-Newton matrix, here by finite differences."""
    draws, raw = 3000, raw_outputs(bins)
    found = squared_gradients(SimpleNamespace(reg_max=bins), raw, draws)
    for name, values in raw.items():
        for place in range(values.numel()):
            both = []
            for step in (STEP, -STEP):
                moved = {key: each.clone() for key, each in raw.items()}
                moved[name].view(-1)[place] += step
                both.append(distance(bins, raw, moved))
            expected = sum(both).item() / 2 / STEP**2  # type: ignore[union-attr]
            ratio = found[name].view(-1)[place].item() / expected
            assert abs(ratio - 1) < 6 * (2 / draws) ** 0.5, (name, place)  # a mean of squares of normal numbers


@pytest.mark.parametrize("value", [-1e4, -1.0, 0.0, 1e-9, 1e4])
def test_sensitivity_is_finite_for_any_distances(value: float) -> None:
    raw = {name: torch.full_like(each, value) for name, each in raw_outputs(1).items()}
    for each in (raw, {name: values.bfloat16() for name, values in raw.items()}):
        found = squared_gradients(SimpleNamespace(reg_max=1), each)
        assert all(gradient.isfinite().all() for gradient in found.values())


def test_boxes_without_distributions_are_seen_by_whatever_prunes_or_repairs() -> None:
    model = dfl(reg_max=1)
    program = Program(raw_copy(model, YOLO_ADAPTER), IMAGES, YOLO_ADAPTER)
    layers = [name for name, module in model.named_modules() if ".cv2." in name and isinstance(module, torch.nn.Conv2d)]
    found = measure_sensitivity(program, layers, [IMAGES], sensitivity_of(model)).channels
    assert found.keys() == set(layers) and all(channels.min() > 0 for channels in found.values())


def test_losses_on_distributions_are_left_out_for_a_head_without() -> None:
    assert gives_of(dfl()) == {"dist"} and gives_of(dfl(reg_max=1)) == frozenset()
    fit, lines = fitting([LossSpec("dfl_kl"), LossSpec("box_iou")], gives_of(dfl(reg_max=1)))
    assert [spec.name for spec in fit] == ["box_iou"]
    assert len(lines) == 1 and lines[0].startswith("loss dfl_kl left out: this head ")
