"""Losses on the anchors alone whose boxes the teacher's NMS keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision

from distill import losses
from distill.errors import DistillError
from distill.losses.selection import kept
from distill.losses.spec import LossSpec
from tests.distill.contexts import anchors, context, leaves, outputs

SELECTING = ("score_bce", "score_dist", "box_iou", "box_giou", "box_l1", "dfl_kl")


def test_what_is_kept_is_what_torchvisions_nms_keeps() -> None:
    make = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 300, 2, generator=make) * 20
    boxes = torch.cat((corners, corners + 5 + torch.rand(3, 300, 2, generator=make) * 5), -1)
    probabilities = torch.rand(3, 300, 2, generator=make)
    best, label = probabilities.max(-1)
    for overlap in (0.3, 0.6):
        found = kept(boxes, probabilities, overlap, most=300)
        for image in range(3):
            wanted = torchvision.ops.batched_nms(boxes[image], best[image], label[image], overlap)
            assert sorted(wanted.tolist()) == torch.where(found[image])[0].tolist()
        fewer = kept(boxes, probabilities, overlap, most=100)
        assert torch.equal(fewer, found & (best >= best.topk(100, 1).values[:, -1:]))


def test_of_two_boxes_on_one_object_the_surer_one_teaches() -> None:
    student = anchors([0.5] * 3, [[0.0, 0, 4, 2], [0.0, 0, 2, 2], [9.0, 9, 10, 10]])
    teacher = anchors([0.8, 0.7, 0.6], [[2.0, 0, 6, 2], [2.0, 0, 6, 2.1], [9.0, 9, 11, 10]])
    loss = losses.resolve("box_iou")
    # IoU 1/3 and 1/2 of the two that stay; the second box lies on the first.
    expected = (0.64 * 2 / 3 + 0.36 / 2) / 1.0
    assert loss(context(student, teacher), anchors="kept").item() == pytest.approx(expected, rel=1e-5)
    assert loss(context(student, teacher)).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", SELECTING)
def test_every_loss_that_the_quality_weighs_can_select(name: str) -> None:
    student, teacher = outputs(leaves(1)), outputs(leaves(2))
    near = torch.rand(2, 20, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0, 20, 20])
    teacher = replace(teacher, decode=lambda: near)  # all boxes are on one object
    (whole,), (few,) = (losses.build([LossSpec(name, options=each)]) for each in ({}, {"anchors": "kept"}))
    values = whole.call(context(student, teacher)), few.call(context(student, teacher))
    assert all(value > 0 for value in values) and values[0] != values[1]
    assert losses.describe([name])[0].options["anchors"] == "all"
    same = few.call(context(teacher, teacher))
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_other_losses_do_not_take_the_option_and_another_word_is_refused() -> None:
    with pytest.raises(DistillError, match=r"loss 'feature_pkd' has no option 'anchors'"):
        losses.build([LossSpec("feature_pkd", options={"anchors": "kept"})])
    (loss,) = losses.build([LossSpec("box_iou", options={"anchors": "some"})])
    with pytest.raises(DistillError, match=r"^a loss's option anchors is 'all' or 'kept', not 'some'$"):
        loss.call(context(outputs(leaves(1)), outputs(leaves(2))))
