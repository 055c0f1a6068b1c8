"""Losses that need the networks: the student's features through the teacher's head, and the teacher's boxes as labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from ultralytics.cfg import get_cfg

import prune
from distill import losses
from distill.engine.planning import trace
from distill.errors import DistillError
from distill.losses.context import Channels, LossContext, Outputs
from distill.losses.spec import LossSpec
from distill.training.task import DistillationTask
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import distillation, label_terms, run, teacher_of
from distill.yolo.families.points import keep_at
from distill.yolo.kind import YOLO
from tests.distill.yolo import originals

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
FAMILIES = ("dfl", "depthwise", "anchors")


def network(family: str) -> Any:
    """An untrained network of a family: with distributions, with a head whose first layers are depthwise, with anchors."""
    if family == "anchors":
        return originals.network(nc=2).eval()
    model = originals.tiny("yolov8n.yaml" if family == "dfl" else "yolo11n.yaml").eval()
    model.args = get_cfg(overrides={"imgsz": 64})
    for branch in model.model[-1].cv3:  # as if it were trained: it sees something, and not the same everywhere
        branch[-1].weight.data.mul_(30)
        branch[-1].bias.data.fill_(-1)
    return model


@cache
def cut(family: str) -> tuple[Any, Any, prune.PrunePlan]:
    """A network, the same one with fewer channels, and what was cut."""
    model = network(family)
    graph = trace(YOLO, model, 64)
    budget: dict[str, float] = {"ratio": 0.6} if family == "anchors" else {"flops": 0.3}
    plan = prune.make_plan(graph, prune.score(graph, "l1"), round_to=1, **budget)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    if family != "anchors":
        student.args = model.args
    return checkpoint.fused(model), student, plan


def cut_task(family: str, name: str, **options: Any) -> DistillationTask:
    """A loss between a network and the same one with fewer channels."""
    teacher, student, plan = copy.deepcopy(cut(family))
    made = losses.build([LossSpec(name, options=options)])
    return distillation(student, [teacher_of(teacher, made, keep_at(teacher, plan, ["neck"]))], labels=0.0)


def context(task: DistillationTask, noise: float) -> LossContext:
    """Of a student whose features are the teacher's kept ones, with noise."""
    with torch.no_grad():
        teacher = run(task.teachers[0].network, IMAGES)
    channels = {"neck": [Channels(keep) for keep in task.teachers[0].keep["neck"]]}
    levels = list(zip(teacher.neck, channels["neck"], strict=True))
    assert any(len(meet.keep) < own.shape[1] for own, meet in levels)
    torch.manual_seed(0)
    kept = [own[:, meet.keep] for own, meet in levels]
    neck = tuple((own + noise * torch.randn_like(own)).requires_grad_() for own in kept)
    return LossContext(IMAGES, replace(run(task.student, IMAGES), neck=neck), teacher, channels=channels)


@pytest.mark.parametrize("family", FAMILIES)
def test_crosskd_is_zero_for_the_teachers_features_and_pulls_others_to_them(family: str) -> None:
    task = cut_task(family, "crosskd")
    call = task.losses[0].call
    ctx = context(task, noise=3.0)
    assert call(context(task, noise=0.0)).item() == pytest.approx(0, abs=1e-5)
    before = call(ctx)
    assert before > 0 and all(not weight.requires_grad for weight in call.parameters())
    gradients = torch.autograd.grad(before, list(ctx.student.neck))
    moved = tuple(
        own.detach() - 0.1 * grad / grad.norm() for own, grad in zip(ctx.student.neck, gradients, strict=True)
    )
    assert call(replace(ctx, student=replace(ctx.student, neck=moved))) < before
    assert not torch.autograd.grad(call(ctx), [ctx.student.class_logits], allow_unused=True)[0]


def test_crosskd_is_what_the_teacher_says_with_the_students_features_in_place() -> None:
    task = cut_task("dfl", "crosskd", box=0.0)
    ctx = context(task, noise=3.0)
    features = [own.clone() for own in ctx.teacher.features]
    for level, own in enumerate(features):
        own[:, ctx.channels["neck"][level].keep] = ctx.student.features[level]
    teacher: Any = task.teachers[0].network
    head = teacher.model[-1]
    head.training = True
    scores = head(features)["scores"].transpose(1, 2)
    expected = losses.score_bce(scores, ctx.teacher.scores, ctx.quality, weighting="difference", gamma=1.0)
    assert task.losses[0].call(ctx).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["crosskd", "pseudo_labels"])
def test_the_loss_trains_a_cut_student_of_every_family(family: str, name: str) -> None:
    task = cut_task(family, name, **({"threshold": 1e-3} if name == "pseudo_labels" else {}))
    task.train()
    before = {key: value.clone() for key, value in task.learned.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in task.parameters() if each.requires_grad], 1e-4)
    task({"img": IMAGES})["loss"].backward()
    optimizer.step()
    assert any(each.grad is not None and each.grad.any() for each in task.student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in task.learned.state_dict().items())
    assert all(each.grad is None for each in task.teachers[0].network.parameters())


def teacher_that_sees(probabilities: list[float], boxes: list[list[float]], objectness: float | None = None) -> Outputs:
    """Outputs of one image; two classes, of which each box is of the second."""
    rest = torch.full((len(probabilities),), 0.01)
    scores = torch.logit(torch.stack((rest, torch.tensor(probabilities)), 1))[None]
    there = None if objectness is None else torch.logit(torch.full((1, len(probabilities)), objectness))
    return Outputs((), scores, decode=lambda: torch.tensor(boxes)[None], objectness_logits=there)


def test_labels_are_the_boxes_that_the_teacher_is_sure_of_one_to_an_object() -> None:
    boxes = [[16.0, 8, 48, 24], [16.0, 8, 48, 26], [-8.0, 0, 8, 32], [40.0, 40, 60, 60]]
    image = torch.zeros(1, 3, 32, 64)
    (loss,) = losses.build([LossSpec("pseudo_labels", options={"threshold": 0.5})])
    made = loss.call.labels(LossContext(image, None, teacher_that_sees([0.9, 0.8, 0.7, 0.3], boxes)))
    assert made["batch_idx"].tolist() == [0, 0] and made["cls"].tolist() == [[1], [1]]
    assert made["bboxes"].tolist() == [[0.5, 0.5, 0.5, 0.5], [0.0625, 0.5, 0.125, 1.0]]  # the second is cut at the edge
    unsure = loss.call.labels(LossContext(image, None, teacher_that_sees([0.9, 0.8, 0.7, 0.3], boxes, objectness=0.5)))
    assert unsure["bboxes"].shape == (0, 4) and unsure["cls"].shape == (0, 1)


@pytest.mark.parametrize("family", ["dfl", "anchors"])
def test_pseudo_labels_cost_what_the_same_labels_cost(family: str) -> None:
    task = cut_task(family, "pseudo_labels", threshold=1e-3)
    call = task.losses[0].call
    ctx = context(task, noise=3.0)
    made = call.labels(ctx)
    assert len(made["cls"]) > 2 and set(made["batch_idx"].tolist()) == {0, 1}
    expected = sum(label_terms(task.student, ctx.student, {"img": IMAGES, **made}).values())
    assert call(ctx).item() == pytest.approx(expected.item(), rel=1e-6)
    (sure,) = losses.build([LossSpec("pseudo_labels", options={"threshold": 1.0})])  # of nothing
    assert len(sure.call.labels(ctx)["cls"]) == 0


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(DistillError, match=r"^loss 'pseudo_labels': threshold is above 0 and at most 1, not 0$"):
        losses.build([LossSpec("pseudo_labels", options={"threshold": 0})])
