"""Losses on boxes: values worked by hand, and what they make of boxes far away, small or on background."""

from __future__ import annotations

import pytest
import torch

from distill import losses
from distill.errors import DistillError
from distill.losses.context import Outputs
from tests.distill.contexts import anchors, context, leaves, outputs

# As a run calls them, with a context.
NAMES = ("box_iou", "box_giou", "box_l1", "box_bckd", "dfl_kl")
box_iou, box_giou, box_l1, box_bckd, dfl_kl = map(losses.resolve, NAMES)
SCALE_FREE = [box_iou, box_giou, box_l1]


def test_box_iou_has_the_value_of_its_formula_and_ignores_background():
    student = anchors([0.5] * 3, [[0.0, 0, 4, 2], [0.0, 0, 2, 2], [9.0, 9, 10, 10]])
    teacher = anchors([0.8, 0.8, 1e-4], [[2.0, 0, 6, 2], [0.0, 0, 2, 2], [0.0, 0, 1, 1]])
    # IoU 1/3 and 1; the third anchor's boxes do not touch, but the teacher sees nothing there.
    assert box_iou(context(student, teacher)).item() == pytest.approx((2 / 3 * 0.64) / (2 * 0.64), rel=1e-4)


def test_box_giou_has_the_value_of_its_formula():
    student = anchors([0.5] * 2, [[0.0, 0, 2, 2], [0.0, 0, 1, 1]])
    teacher = anchors([0.9, 0.6], [[1.0, 1, 3, 3], [3.0, 0, 4, 1]])
    # 1 of 7 is shared and the hull is 9; nothing is shared, and 2 of a hull of 4 are empty.
    first, second = 1 - 1 / 7 + 2 / 9, 1 + 2 / 4
    expected = (0.81 * first + 0.36 * second) / 1.17
    assert box_giou(context(student, teacher)).item() == pytest.approx(expected, rel=1e-5)
    expected = (0.9 * first + 0.6 * second) / 1.5
    assert box_giou(context(student, teacher), focus=1.0).item() == pytest.approx(expected, rel=1e-5)


def test_box_bckd_weighs_a_box_by_how_far_its_scores_are_off():
    boxes = [[0.0, 0, 2, 2], [0.0, 0, 1, 1], [0.0, 0, 4, 2]], [[1.0, 1, 3, 3], [3.0, 0, 4, 1], [2.0, 0, 6, 2]]
    student, teacher = anchors([0.4, 0.6, 0.9], boxes[0]), anchors([0.9, 0.6, 0.1], boxes[1])
    # IoU 1/7, 0 and 1/3; the scores of the second anchor agree, and the third is a false alarm.
    first, third = 1 - 1 / 7, 2 / 3
    expected = (0.5 * first + 0.8 * third) / (0.9 + 0.6 + 0.1)
    assert box_bckd(context(student, teacher)).item() == pytest.approx(expected, rel=1e-5)
    expected = (0.25 * first + 0.64 * third) / 1.6
    assert box_bckd(context(student, teacher), gamma=2.0).item() == pytest.approx(expected, rel=1e-5)
    # Objectness times class probability is what counts: 0.8 of 0.5 and 0.5 of 0.8 are the same.
    student, teacher = (
        anchors([score], [box], [there])
        for score, box, there in ((0.8, [0.0, 0, 2, 2], 0.5), (0.5, [1.0, 1, 3, 3], 0.8))
    )
    assert box_bckd(context(student, teacher)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "pulls"), [(box_giou, True), (box_l1, True), (box_iou, False)])
def test_boxes_that_do_not_touch_are_drawn_together(loss, pulls):
    boxes = torch.tensor([[[0.0, 0, 1, 1]]], requires_grad=True)
    student = Outputs((), torch.zeros(1, 1, 1), decode=lambda: boxes)
    teacher = anchors([0.9999], [[5.0, 0, 6, 1]])
    loss(context(student, teacher)).backward()
    right_side = boxes.grad[0, 0, 2]
    assert (right_side < 0) if pulls else not boxes.grad.any()  # down the gradient, to the right


def test_box_l1_has_the_value_of_its_formula():
    student = anchors([0.5] * 2, [[1.0, 0, 4, 5], [0.0, 0, 2, 2]])
    teacher = anchors([0.9, 0.6], [[0.0, 0, 4, 2], [0.0, 0, 2, 2]])
    # Left is off by 1 of a width of 4, and bottom by 3 of a height of 2.
    expected = 0.81 * (1 / 4 + 3 / 2) / 4 / 1.17
    assert box_l1(context(student, teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_box_l1_measures_a_teachers_box_below_a_pixel_as_one_pixel():
    student, teacher = anchors([0.5], [[0.0, 0, 2, 2]]), anchors([0.9999], [[0.0, 0, 0, 0.5]])
    assert box_l1(context(student, teacher), focus=0.0).item() == pytest.approx((2 + 1.5) / 4, rel=1e-5)


@pytest.mark.parametrize("loss", SCALE_FREE)
def test_a_box_counts_the_same_at_any_size(loss):
    student, teacher = [[1.0, 0, 14, 23], [5.0, 5, 25, 15]], [[0.0, 0, 14, 20], [2.0, 6, 24, 18]]
    values = []
    for scale in (1, 10):
        pair = ([[scale * x for x in box] for box in boxes] for boxes in (student, teacher))
        values.append(loss(context(*(anchors([0.9, 0.6], boxes) for boxes in pair))).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] > 0.01


@pytest.mark.parametrize("loss", SCALE_FREE)
def test_a_box_on_background_counts_for_nothing(loss):
    teacher = anchors([0.8, 1e-4], [[0.0, 0, 4, 4], [0.0, 0, 4, 4]])
    values = [
        loss(context(anchors([0.5, 0.5], [[0.0, 0, 4, 5], there]), teacher)).item()
        for there in ([0.0, 0, 4, 4], [50.0, 50, 99, 99])
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] > 0.01


def test_dfl_kl_has_the_value_of_its_formula():
    student, teacher = leaves(3), leaves(4)
    s, t = ((leaf["sides"] / 2).softmax(-1) for leaf in (student, teacher))
    weight = teacher["scores"].sigmoid().amax(-1) ** 1.5
    expected = 4 * (weight * (t * (t / s).log()).sum((-1, -2)) / 4).sum() / weight.sum()
    value = dfl_kl(context(outputs(student), outputs(teacher)), focus=1.5, temperature=2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dfl_kl_on_a_head_without_distributions_says_what_fits():
    bare = Outputs((), torch.zeros(1, 4, 1))
    with pytest.raises(DistillError, match="'dfl_kl'.*'box_iou'"):
        dfl_kl(context(bare, bare))
