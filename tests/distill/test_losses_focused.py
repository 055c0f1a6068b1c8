"""A loss that counts an anchor by the teacher's quality leaves out those that see background, and nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import losses
from distill.losses import context as contexts
from distill.losses.context import Decode, LossContext, Outputs

CASES = [("box_iou", {}), ("box_giou", {"focus": 1.0}), ("box_l1", {}), ("dfl_kl", {}), ("score_bce", {})]
ANCHORS = 500


def network(seed: int, seen: Tensor, objectness: bool = False) -> tuple[Outputs, list[Tensor], list[int]]:
    """Outputs for two images, what they were made of, and how many boxes were decoded at a time."""
    make = torch.Generator().manual_seed(seed)
    centres = torch.arange(ANCHORS)[:, None].expand(-1, 2).float()
    sides, scores = torch.randn(2, ANCHORS, 4, 8, generator=make), torch.randn(2, ANCHORS, 3, generator=make)
    there = seen if objectness else None
    scores = scores if objectness else scores + seen[..., None]
    parts = [each.requires_grad_() for each in (sides, scores)]
    decoded: list[int] = []

    def decode(predicted: Tensor, anchor: Any) -> Tensor:
        distance = (predicted.softmax(-1) * torch.arange(8)).sum(-1)
        decoded.append(distance.numel() // 4)
        return torch.cat((centres[anchor] - distance[..., :2], centres[anchor] + distance[..., 2:]), -1)

    strides = torch.full((ANCHORS,), 8.0)
    decode_some = Decode(sides, decode)
    outputs = Outputs((), scores, sides, decode_some, strides, objectness_logits=there)
    return outputs, parts, decoded


def pair(objectness: bool) -> tuple[LossContext, list[Tensor], list[int]]:
    seen = torch.linspace(-30, 3, ANCHORS).repeat(2, 1)  # one in eight holds an object
    student, parts, decoded = network(0, seen, objectness)
    with torch.no_grad():
        teacher, _, _ = network(1, seen, objectness)
    return LossContext(torch.zeros(2, 3, 32, 32), student, teacher), parts, decoded


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("objectness", [False, True])
def test_value_and_gradient_are_those_of_all_anchors(monkeypatch, name, options, objectness):
    results = []
    for negligible in (contexts.NEGLIGIBLE, -1.0):
        monkeypatch.setattr(contexts, "NEGLIGIBLE", negligible)
        ctx, parts, decoded = pair(objectness)
        value = losses.resolve(name)(ctx, **options)
        gradients = torch.autograd.grad(value, parts, allow_unused=True)
        results.append((value, torch.cat([each.flatten() for each in gradients if each is not None]), sum(decoded)))
    (value, gradient, some), (expected, full, every) = results
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (gradient - full).norm() < 1e-4 * full.norm()
    assert every in (0, 2 * ANCHORS) and some <= 0.6 * every  # fewer are decoded


def test_what_is_left_out_holds_less_than_is_negligible():
    ctx = pair(False)[0]
    some, weight = ctx.focused(2.0), ctx.quality**2
    assert some.student.class_logits.shape[1] < ANCHORS
    assert (some.quality**2).sum() >= (1 - contexts.NEGLIGIBLE) * weight.sum()
    assert ctx.focused(2.0) is some  # losses of the same power share what is decoded
    assert ctx.focused(0.0).quality.numel() == 2 * ANCHORS  # all weigh the same


def test_an_anchor_keeps_what_belongs_to_it():
    ctx = pair(True)[0]
    image, anchor = torch.tensor([1, 0, 1]), torch.tensor([7, 0, 499])
    picked = ctx.teacher.pick(image, anchor)
    for name in ("scores", "dist", "objectness", "boxes"):
        torch.testing.assert_close(getattr(picked, name)[0], getattr(ctx.teacher, name)[image, anchor])
    assert picked.strides.tolist() == [8.0] * 3
    part = ctx.teacher.part(slice(1, 2))
    torch.testing.assert_close(part.boxes, ctx.teacher.boxes[1:])


def test_a_teacher_that_gives_no_number_is_not_left_out():
    ctx, _, _ = pair(False)
    ctx.teacher.class_logits.data[0, 0] = torch.nan
    assert losses.resolve("box_iou")(ctx).isnan()
