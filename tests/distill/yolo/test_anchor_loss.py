"""Our loss of the original YOLOv5's head against the original's own, of v7.0.

What the original says of fixed inputs is in anchor_loss.json. `python -m tests.oracle.loss` makes that file again, from
the root of the repository in an environment with yolov5==7.0.14, which holds v7.0's code.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.yolo.families.yolov5 import loss as module
from distill.yolo.families.yolov5.loss import anchor_loss, complete_iou
from tests.oracle.inputs import HYP, IMAGES, Case, cases, objects, uniform

CASES = cases()
ORIGINAL: dict[str, Any] = json.loads(Path(__file__).with_name("anchor_loss.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-6


def measure(case: Case) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Our loss by name, its total as the original has it, and that total's gradient to each map."""
    maps = [raw.requires_grad_() for raw in case.maps()]
    terms = anchor_loss(maps, case.targets, case.anchors(), case.hyp)
    total = torch.stack([*terms.values()]).sum() * IMAGES
    return {"total": total, **terms}, list(torch.autograd.grad(total, maps))


def differences(name: str) -> tuple[float, float]:
    """The largest of the values, relative where above 1, and of the gradients, relative to the largest in its map."""
    expected = ORIGINAL[name]
    losses, gradients = measure(CASES[name])
    value = max(abs(loss.item() - expected[key]) / max(1, abs(expected[key])) for key, loss in losses.items())
    gradient = 0.0
    for found, known in zip(gradients, expected["maps"], strict=True):
        flat = found.flatten().double()
        entries = torch.tensor(known["values"], dtype=torch.float64)
        mixed = (flat * (uniform(flat.shape, len(flat)).double() - 0.5)).sum()
        apart = torch.stack(
            (
                (flat[known["at"]] - entries).abs().max() / entries.abs().max(),
                abs(flat.square().sum() - known["squares"]) / known["squares"] / 2,
                abs(mixed - known["mixed"]) / known["squares"] ** 0.5,
            )
        )
        gradient = max(gradient, apart.max().item())
    return value, gradient


def test_every_case_is_known() -> None:
    assert list(ORIGINAL) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_original_s(name: str) -> None:
    value, gradient = differences(name)
    assert value <= TOLERANCE
    assert gradient <= TOLERANCE


def attached_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """CIoU as our own, but with a gradient through α."""
    iou = complete_iou(boxes, others)
    v = 4 / math.pi**2 * (torch.atan(others[:, 2] / others[:, 3]) - torch.atan(boxes[:, 2] / boxes[:, 3])) ** 2
    low = torch.maximum(boxes[:, :2] - boxes[:, 2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = torch.minimum(boxes[:, :2] + boxes[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    alpha = v / (1 - shared / (boxes[:, 2:].prod(1) + others[:, 2:].prod(1) - shared) + v + 1e-7)
    return iou - (alpha - alpha.detach()) * v.detach()


@pytest.mark.parametrize(
    ("name", "where", "wrong"),
    [
        ("plain", "BALANCE_OF_THREE", (4.0, 1.0, 0.25)),
        ("four levels", "BALANCE", (4.0, 1.0, 0.25, 0.07, 0.02)),
        ("plain", "REACH", 0.49),
        ("crowd", "NEIGHBOURS", ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))),
        ("focal", "FOCAL_ALPHA", 0.26),
        ("plain", "complete_iou", attached_iou),
        ("plain", "complete_iou", lambda boxes, others: complete_iou(boxes, others, eps=1e-5)),
    ],
)
def test_a_slip_would_be_seen(monkeypatch: pytest.MonkeyPatch, name: str, where: str, wrong: Any) -> None:
    monkeypatch.setattr(module, where, wrong)
    assert max(differences(name)) > 3 * TOLERANCE


def test_the_last_of_those_who_share_a_box_sets_its_objectness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values alone: the order of the matches shows nowhere else."""
    before, _ = measure(CASES["crowd"])
    match = module.match

    def backwards(*arguments: Any) -> module.Matches:
        m = match(*arguments)
        image, box, row, column = (index.flip(0) for index in m.where)
        return module.Matches((image, box, row, column), m.anchor.flip(0), m.place.flip(0), m.label.flip(0))

    monkeypatch.setattr(module, "match", backwards)
    after, _ = measure(CASES["crowd"])
    assert abs(before["obj"] - after["obj"]) > 1e-4
    torch.testing.assert_close((after["box"], after["cls"]), (before["box"], before["cls"]))


def test_without_targets_only_objectness_learns() -> None:
    losses, gradients = measure(CASES["no targets"])
    assert losses["box"].item() == losses["cls"].item() == 0
    assert all(loss.shape == () for loss in losses.values())
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[..., 4].all()
        assert not gradient[..., :4].any() and not gradient[..., 5:].any()


def test_a_single_class_has_no_class_loss() -> None:
    losses, gradients = measure(CASES["one class"])
    assert losses["cls"].item() == 0
    assert not any(gradient[..., 5:].any() for gradient in gradients)


def test_a_better_box_costs_less() -> None:
    """One object the size of an anchor in the middle of a cell: a raw 0 is exactly it."""
    case = CASES["equal boxes"]
    boxes, objectness = [], []
    for shift in (0.0, 0.25, 0.5, 1.0, 2.0):
        maps = [raw + torch.tensor([shift, shift, -shift, shift, 1.0, 0.0, 0.0, 0.0]) for raw in case.maps()[:1]]
        terms = anchor_loss(maps, case.targets, case.anchors()[:1], {**HYP, "anchor_t": 1.01})
        boxes.append(terms["box"].item())
        objectness.append(terms["obj"].item())
    assert boxes == sorted(boxes) and len({*boxes}) == len(boxes)
    assert boxes[0] == pytest.approx(0, abs=1e-6)
    assert objectness == sorted(objectness)  # who is sure of a bad box pays for that too


def test_a_box_by_hand() -> None:
    """2x2 boxes, one to the right of the other by one: IoU 2/6, d² 1, c² 13; and one twice as wide in the same place."""
    boxes, others = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([[1.0, 0, 2, 2], [0, 0, 4, 2]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = [2 / 6 - 1 / 13, 1 / 2 - v * v / (1 / 2 + v)]
    assert complete_iou(boxes, others).tolist() == pytest.approx(expected, abs=1e-6)


def test_half_precision_is_computed_in_full() -> None:
    case = CASES["plain"]
    halves = [raw.half().requires_grad_() for raw in case.maps()]
    terms = anchor_loss(halves, case.targets, case.anchors(), case.hyp)
    same = anchor_loss([raw.float() for raw in halves], case.targets, case.anchors(), case.hyp)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms == same
    total = torch.stack([*terms.values()]).sum()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, halves))
    # In half precision a sigmoid of -20 is 0, such a box has no size, and its aspect is 0 / 0.
    far = anchor_loss([raw * 10 for raw in halves], case.targets, case.anchors(), HYP)
    assert all(term.isfinite() for term in far.values())


def test_every_match_is_a_box_of_its_level() -> None:
    targets = torch.cat((objects(40, 9), CASES["border"].targets))
    matches = module.match(targets, torch.tensor([[2.0, 3.0], [4.0, 4.0]]), 5, 7, 4.0)
    assert len(matches.label) > len(targets)
    for index, size in zip(matches.where, (IMAGES, 2, 5, 7), strict=True):
        assert index.min() >= 0 and index.max() < size
    assert (matches.place[:, :2] >= -0.5).all() and (matches.place[:, :2] <= 1.5).all()  # what the head can say
    ratio = matches.place[:, 2:] / matches.anchor
    assert (torch.maximum(ratio, 1 / ratio) < 4).all()
