"""Features run through the teacher's head: zero where they are equal, and only what the head feels counts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

import prune
from distill.context import LossContext, Outputs
from distill.errors import DistillError
from distill.losses import Loss
from distill.losses.box import box_iou, dfl_kl
from distill.losses.logit import objectness_bce, score_bce
from distill.yolo.outputs import distillation, run
from distill.yolo.through import FeatureHead
from tests.distill.yolo.originals import network
from tests.distill.yolo.test_trainer import tiny
from tests.prune.networks import randomize

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def teacher(name: str) -> Any:
    return randomize(tiny() if name == "dfl" else network("v7.0")).eval()


def direct(seen: Outputs, theirs: Outputs) -> torch.Tensor:
    """What the loss is made of, on outputs as they are. Boxes without an area have no overlap, even with themselves."""
    ctx = LossContext(IMAGES, seen, theirs)
    return score_bce(ctx) + box_iou(ctx) + (dfl_kl(ctx) if theirs.dist is not None else objectness_bce(ctx))


@pytest.mark.parametrize("name", ["dfl", "anchor"])
def test_features_of_a_whole_student_give_what_the_teachers_head_makes_of_them(name: str) -> None:
    full = teacher(name)
    student = copy.deepcopy(full)
    with torch.no_grad():
        for parameter in student.model[0].parameters():
            parameter.mul_(1.1)
    loss = FeatureHead()
    loss.meet(student, full)
    with torch.no_grad():
        ours, theirs = run(student, IMAGES), run(full, IMAGES)
    found = loss(LossContext(IMAGES, ours, theirs))
    torch.testing.assert_close(found, direct(ours, theirs))  # their heads are alike
    assert found > 1.001 * loss(LossContext(IMAGES, theirs, theirs))


@pytest.mark.parametrize("name", ["dfl", "anchor"])
def test_a_cut_student_takes_the_place_of_the_channels_that_it_kept(name: str) -> None:
    full = teacher(name)
    graph = prune.trace(full, IMAGES[:1])
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.6, round_to=1)
    student = prune.apply(full, plan)
    task = distillation(student, full, [Loss("feature_head", 1.0, FeatureHead())], keep_inputs=plan.keep_inputs)
    (loss,) = task.learned
    with torch.no_grad():
        ours, theirs = run(student, IMAGES), run(full, IMAGES)
        assert task.keep is not None
        kept = tuple(feature[:, keep] for feature, keep in zip(theirs.features, task.keep, strict=True))
        exact = LossContext(IMAGES, dataclasses.replace(ours, neck=kept), theirs, keep=task.keep)
        torch.testing.assert_close(loss(exact), direct(theirs, theirs))


def test_the_teachers_head_is_not_trained_and_the_students_has_no_part_in_it() -> None:
    full = teacher("dfl")
    task = distillation(copy.deepcopy(full), full, [Loss("feature_head", 1.0, FeatureHead())], labels=0.0)
    assert not list(task.learned.parameters())
    with torch.no_grad():
        for parameter in task.student.parameters():
            parameter.mul_(1.1)
    task({"img": IMAGES})["loss"].backward()
    student: Any = task.student
    felt = {number for number, block in enumerate(student.model) if any(p.grad is not None for p in block.parameters())}
    assert felt == set(range(len(student.model) - 1))


def test_without_a_head_it_says_so() -> None:
    with torch.no_grad(), pytest.raises(DistillError, match="^loss 'feature_head' is for detectors"):
        outputs = run(teacher("dfl"), IMAGES)
        FeatureHead()(LossContext(IMAGES, outputs, outputs))
