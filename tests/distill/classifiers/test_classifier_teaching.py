"""Classifiers as students and teachers: outputs, sensitivity, features that a cut keeps, and other teachers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from distill import losses
from distill.classifiers import network, teaching, upstream
from distill.classifiers.kind import CLASSIFIERS
from distill.errors import DistillError
from distill.kinds.opened import Opened, Taught
from distill.losses.spec import LossSpec
from distill.training.trial import try_out
from tests.distill.classifiers.colours import NAMES, SIZE, build, cut

IMAGES = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def opened(model: torch.nn.Module, names: dict[int, str] = NAMES, source: str = "a.pt") -> Opened:
    return Opened(model, dict(names), SIZE, Path(source), None)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet", "torchvision/squeezenet1_1"])
def test_outputs_are_the_logits_and_what_the_last_layer_reads(name: str) -> None:
    model = build(name)
    outputs = network.run(model, IMAGES, ["neck"])
    assert torch.equal(outputs.scores[:, 0], model(IMAGES)) and outputs.scores.shape == (4, 1, 2)
    (feature,) = outputs.features
    assert feature.dim() == 4 and [tuple(feature.shape[1:])] == [shape[1:] for shape in teaching.neck(model, SIZE)]
    last = model.get_submodule(network.head_of(model))
    logits = last(feature) if isinstance(last, torch.nn.Conv2d) else last(feature.flatten(1))
    if logits.dim() == 2:
        torch.testing.assert_close(logits, outputs.scores[:, 0])


def test_the_squared_sensitivity_is_the_metric_of_a_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(20_000, 1).requires_grad_()
    network.sensitivity(logits).backward()
    p = logits.detach()[0].softmax(0)
    found = logits.grad.T @ logits.grad / len(logits)
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), atol=0.01, rtol=0.05)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet"])
def test_features_of_a_student_meet_the_channels_that_it_kept(name: str) -> None:
    model = build(name)
    student, plan = cut(model, ratio=0.5)
    specs = [LossSpec("kl"), LossSpec("dkd"), LossSpec("nkd"), LossSpec("dist"), LossSpec("feature_pkd")]
    taught = Taught("original", CLASSIFIERS.fused(model), losses.build(specs), True)
    task = CLASSIFIERS.task(student, [taught], plan, size=SIZE, labels=1.0, unlabelled=1.0, features=("neck",))
    batch = {"img": IMAGES, "cls": torch.tensor([0, 1, 0, 1])}
    try_out(task.train(), batch)
    terms = task.eval()(batch)
    assert set(terms) == {"cls", "kl", "dkd", "nkd", "dist", "feature_pkd", "loss"}
    assert terms["cls"].item() == pytest.approx(F.cross_entropy(student(IMAGES), batch["cls"]).item(), rel=1e-5)
    with torch.no_grad():
        ctx_student, ctx_teacher = (network.run(each, IMAGES).features[0] for each in (student, model))
    (kept,) = teaching.neck_keep(model, plan)
    assert len(kept) == ctx_student.shape[1] and max(kept) < ctx_teacher.shape[1]


def test_a_whole_copy_of_the_teacher_costs_nothing() -> None:
    model = build()
    taught = Taught("original", model, losses.build([LossSpec("kl"), LossSpec("dist"), LossSpec("feature_pkd")]), True)
    task = CLASSIFIERS.task(
        copy.deepcopy(model), [taught], None, size=SIZE, labels=0.0, unlabelled=1.0, features=("neck",)
    )
    values, _ = task.eval().values({"img": IMAGES})
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in values.values())


def test_another_teacher_has_its_classes_put_in_order_and_its_own_normalisation() -> None:
    student, other = build(), build("timm/test_efficientnet", seed=3)
    other.pretrained_cfg = {**other.pretrained_cfg, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    swapped = opened(other, {0: "red", 1: "blue"}, "big.pt")
    pairing = CLASSIFIERS.pair(opened(student), swapped)
    assert torch.equal(pairing.teacher.model(IMAGES), other(IMAGES)[:, [1, 0]]) and pairing.teacher.names == NAMES
    run = network.run_as(upstream.input_of(other), upstream.input_of(student))
    pixels = torch.rand(2, 3, SIZE, SIZE)
    mean, std = (torch.tensor(student.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    found = run(other, (pixels - mean) / std).scores[:, 0]
    torch.testing.assert_close(found, other((pixels - 0.5) / 0.5), rtol=1e-4, atol=1e-4)
    taught = Taught("big", other, losses.build([LossSpec("kl"), LossSpec("feature_pkd")]), False)
    task = CLASSIFIERS.task(student, [taught], None, size=SIZE, labels=0.0, unlabelled=1.0, features=("neck",))
    try_out(task.train(), {"img": IMAGES})
    assert len(task.learned) == 1  # features go through a projector
    with pytest.raises(DistillError, match="big.pt has other classes than a.pt .green"):
        CLASSIFIERS.pair(opened(student), replace(swapped, names={0: "red", 1: "green"}))
    with pytest.raises(DistillError, match="has 2 classes and a.pt 3"):
        CLASSIFIERS.pair(opened(student, {0: "a", 1: "b", 2: "c"}), swapped)


def test_losses_of_detectors_are_left_out_with_a_word() -> None:
    specs = [LossSpec(name) for name in ("score_bce", "box_iou", "dfl_kl", "objectness_bce", "kl", "feature_pkd")]
    fit, lines = losses.fitting(specs, CLASSIFIERS.gives(build()), None, CLASSIFIERS.lacks)
    assert [spec.name for spec in fit] == ["kl", "feature_pkd"]
    assert lines[1] == "loss box_iou left out: a classifier predicts no boxes"
    with pytest.raises(DistillError, match="give a teacher of the same classes|trust|no single"):
        CLASSIFIERS.pair(opened(build(), {0: "a"}), opened(build()))
