"""A teacher of another order of classes, width, family or head: what compares with what, and that it can be learned from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from distill.errors import DistillError
from distill.losses import FeatureMGD, WeightedLoss, resolve
from distill.losses.context import LossContext, Outputs
from distill.losses.registry import BUILTIN, fitting
from distill.losses.registry import build as build_losses
from distill.losses.spec import LossSpec
from distill.training.schedule import Schedule
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.families.fit import fitted
from distill.yolo.families.match import UNLIKE, match
from distill.yolo.families.outputs import distillation, foreign_teacher, run
from distill.yolo.families.views import best_of_cell
from distill.yolo.training.learner import Learner
from tests.distill.yolo.originals import network, tiny

NAMES = {0: "circle", 1: "square", 2: "star"}
TWO = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "Conv", [24, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]],
}
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def dfl(width: int = 16, reg_max: int = 16, seed: int = 0) -> Any:
    """A network with ultralytics' head on two levels, of a given width."""
    torch.manual_seed(seed)
    described = copy.deepcopy(TWO) | {"reg_max": reg_max}
    described["backbone"][2][3][0] = width
    return awake(DetectionModel(described, verbose=False))


def awake(model: Any) -> Any:
    """The network with weights that make its outputs differ from place to place, as those of a trained one do."""
    for module in model.eval().modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            nn.init.normal_(module.weight, std=0.3)
    model.args, model.names = get_cfg(), dict(NAMES)
    return model


def detector(model: Any, names: dict[int, str] = NAMES, source: str = "big.pt") -> Detector:
    return Detector(model, dict(names), 64, Path(source), None)


def losses(*names: str) -> list[WeightedLoss]:
    return [WeightedLoss(name, 1.0, resolve(name)) for name in names]


def permuted(model: Any, order: list[int]) -> Any:
    """The same network, by hand, with its class i called by another id: what another data set's order makes of it."""
    twin = copy.deepcopy(model)
    head, place = twin.model[-1], dict(enumerate(order))
    for conv in [branch[-1] for branch in head.cv3] if hasattr(head, "cv3") else head.m:
        rows = list(range(len(conv.bias)))
        size = len(order) if hasattr(head, "cv3") else head.no
        for start in range(0, len(rows), size):
            for new, old in place.items():
                rows[start + size - len(order) + new] = start + size - len(order) + old
        conv.weight.data, conv.bias.data = conv.weight.data[rows], conv.bias.data[rows]
    twin.names = {new: model.names[old] for new, old in place.items()}
    return twin


# --- classes and strides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dfl, network])
def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(make: Any) -> None:
    student, teacher = make(seed=0), make(seed=1)
    other = permuted(teacher, [2, 0, 1])
    names = {i: NAMES[old] for i, old in enumerate([2, 0, 1])}
    assert not torch.allclose(run(other, IMAGES).scores, run(teacher, IMAGES).scores)
    found = fitted(detector(other, names), detector(student, source="best.pt"))
    assert found.names == NAMES and found.model.names == NAMES
    values = []
    for each in (teacher, found.model):
        kinds = losses("score_bce", "box_iou", "feature_pkd")
        task = distillation(copy.deepcopy(student), [foreign_teacher(each, kinds, student, "big")], labels=0.0)
        values.append({name: value.item() for name, value in task({"img": IMAGES}).items()})
    assert values[0] == values[1] and values[0]["score_bce"] > 0


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["circle", "square", "moon"], "it lacks 'star'; it has besides 'moon'"),
        (["circle", "square"], "it lacks 'star'"),
        (["circle", "square", "star", "moon"], "it has besides 'moon'"),
        (["circle", "star", "star"], "it lacks 'square'"),
    ],
)
def test_other_classes_are_named_in_one_line(names: list[str], says: str) -> None:
    with pytest.raises(DistillError) as caught:
        fitted(detector(dfl(), dict(enumerate(names))), detector(dfl(), source="best.pt"))
    assert str(caught.value) == (
        f"teacher big.pt has other classes than best.pt ({says}): give a teacher of the same classes, in any order"
    )


def test_other_strides_are_named_in_one_line() -> None:
    with pytest.raises(DistillError) as caught:
        fitted(detector(tiny()), detector(dfl(), source="best.pt"))
    assert str(caught.value) == (
        "teacher big.pt has cells of 8, 16, 32 pixels and best.pt of 8, 16: their outputs have no cells in common: "
        "give a teacher of the same strides"
    )


# --- one box to a cell -----------------------------------------------------------------------------------------------


def test_the_box_of_a_cell_is_the_one_with_the_highest_product_and_says_that_product() -> None:
    """Levels of 1x2 and 1x1 cells, two boxes each, in the order (level, box, row, column)."""
    objectness = torch.tensor(
        [[0.9, 0.2, 0.5, 0.8, 0.3, 0.6]]
    )  # boxes 0 and 1 of the first level's two cells, then the last
    classes = torch.tensor([[[0.1, 0.4], [0.9, 0.1], [0.5, 0.95], [0.2, 0.3], [0.9, 0.8], [0.2, 0.4]]])
    boxes = torch.arange(24.0).view(1, 6, 4)
    outputs = Outputs(
        (torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 1)),
        classes.logit(),
        decode=lambda: boxes,
        strides=torch.tensor([8.0, 8.0, 8.0, 8.0, 16.0, 16.0]),
        objectness_logits=objectness.logit(),
    )
    found = best_of_cell(outputs)
    # 0.36 against 0.475; 0.18 against 0.24; 0.27 against 0.24
    assert found.boxes.tolist() == boxes[:, [2, 3, 4]].tolist()
    expected = objectness[:, [2, 3, 4], None] * classes[:, [2, 3, 4]]
    torch.testing.assert_close(found.scores.sigmoid(), expected)
    assert found.strides is not None and found.strides.tolist() == [8.0, 8.0, 16.0]
    assert found.objectness is None and found.dist is None and found.neck is outputs.neck


def test_sure_and_impossible_boxes_have_finite_logits_and_gradients() -> None:
    logits = torch.tensor([[40.0, -40.0, 0.0, 90.0]], requires_grad=True)  # of both, so that 1 - p underflows
    outputs = Outputs((torch.zeros(1, 1, 2, 2),), logits[..., None], objectness_logits=logits)
    found = best_of_cell(outputs).scores
    assert found.isfinite().all() and found[0, 2, 0].item() == pytest.approx(torch.tensor(0.25).logit().item())
    found.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad != 0).all()


# --- what compares ---------------------------------------------------------------------------------------------------


def test_heads_that_are_alike_compare_as_they_are_and_others_by_cell() -> None:
    same = network(seed=1)
    same.model[-1].anchors.copy_(network().model[-1].anchors)
    cases = [
        (dfl(), dfl(32), frozenset({"dist"}), False),
        (dfl(), dfl(reg_max=8), frozenset(), True),
        (dfl(reg_max=1), dfl(32, reg_max=1), frozenset(), False),
        (network(), same, frozenset({"objectness"}), False),
        (network(), network(seed=1), frozenset(), True),  # of other anchors
        (network(), network(boxes=2), frozenset(), True),
        (dfl(), network(), frozenset(), True),
        (network(), dfl(), frozenset(), True),
    ]
    for student, teacher, gives, by_cell in cases:
        found = match(student, teacher)
        assert (found.gives, found.by_cell) == (gives, by_cell)
        ours, theirs = found.view(run(student, IMAGES), run(teacher, IMAGES))
        assert ours.scores.shape == theirs.scores.shape and ours.boxes.shape == theirs.boxes.shape
        assert ours.strides is not None and theirs.strides is not None and torch.equal(ours.strides, theirs.strides)
        if by_cell:
            assert ours.scores.shape[1] == 8 * 12 + 4 * 6
            assert (ours.dist, theirs.dist, ours.objectness, theirs.objectness) == (None, None, None, None)


@pytest.mark.parametrize(("ours", "theirs"), [(dfl, network), (network, dfl)])
def test_a_student_learns_from_a_teacher_with_another_head(ours: Any, theirs: Any) -> None:
    """A step of each loss that both can have moves the student towards the teacher; all gradients are numbers."""
    student, teacher = ours(seed=0), theirs(seed=1)
    kinds = [*losses("score_bce", "box_iou", "feature_pkd", "feature_fgd"), WeightedLoss("mgd", 1.0, FeatureMGD())]
    task = distillation(student, [foreign_teacher(teacher, kinds, student, "big")], labels=0.0)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        terms = task({"img": IMAGES})
        terms["loss"].backward()
        for name, parameter in task.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        values.append(terms["loss"].item())
        optimizer.step()
    assert values[-1] < values[0]


@pytest.mark.parametrize(("ours", "theirs"), [(dfl, network), (network, dfl)])
def test_every_loss_that_fits_both_heads_teaches(ours: Any, theirs: Any) -> None:
    student, teacher = ours(seed=0), theirs(seed=1)
    fit, left_out = fitting(map(LossSpec, BUILTIN), match(student, teacher).gives, UNLIKE)
    assert {line.split()[1] for line in left_out} == {
        *("objectness_bce", "dfl_kl", "mask_bce", "keypoint_oks", "angle_sin"),
        *("kl", "dkd", "nkd", "dist"),
    }
    batch = {"img": IMAGES, "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.5)}
    for loss in build_losses(
        spec for spec in fit if spec.name != "ultralytics"
    ):  # that needs ultralytics' head in both
        copied = copy.deepcopy(student)
        task = distillation(copied, [foreign_teacher(teacher, [loss], copied, "big")], labels=0.0)
        task(batch)["loss"].backward()
        gradients = [each.grad for each in copied.parameters() if each.grad is not None]
        assert any(each.any() for each in gradients) and all(each.isfinite().all() for each in gradients), loss.name


# --- projectors ------------------------------------------------------------------------------------------------------


def test_projectors_train_beside_the_student_start_alike_and_stay_behind(tmp_path: Path) -> None:
    student, teacher = dfl(16), dfl(32, seed=1)
    before = set(student.state_dict())

    def learner() -> Learner:
        task = distillation(student, [foreign_teacher(teacher, losses("feature_pkd"), student, "big")], labels=0.0)
        return Learner(student, task, None, Schedule(epochs=1, batch=2, steps=1))

    first, second = learner(), learner()
    made = {name: value for name, value in first.learned.state_dict().items() if value.ndim == 4}
    assert [tuple(value.shape) for value in made.values()] == [(32, 16, 1, 1), (24, 24, 1, 1)]
    assert all(torch.equal(value, second.learned.state_dict()[name]) for name, value in made.items())
    weights = {id(parameter) for parameter in first.parameters()}
    assert all(id(parameter) in weights and parameter.requires_grad for parameter in first.learned.parameters())
    loss, _ = first({"img": IMAGES})
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in first.learned.parameters())
    checkpoint.save(first.student_model, tmp_path / "s.pt", names=NAMES, imgsz=64)
    assert set(checkpoint.load(tmp_path / "s.pt").model.state_dict()) == before


def test_the_features_of_a_teacher_of_equal_width_are_projected_too() -> None:
    """Equal shapes do not make channels of two networks the same: those of the original alone compare as they are."""
    student, teacher = dfl(16), dfl(16, seed=1)
    seen: list[tuple[Tensor, Tensor]] = []

    def look(ctx: LossContext) -> Tensor:
        seen.extend(ctx.features())
        return sum((s - t).square().mean() for s, t in ctx.features())  # type: ignore[return-value]

    task = distillation(
        student, [foreign_teacher(teacher, [WeightedLoss("look", 1.0, look)], student, "big")], labels=0.0
    )
    task({"img": IMAGES})
    raw = run(student, IMAGES).features
    assert all(
        ours.shape == theirs.shape and not torch.equal(ours, own) for (ours, theirs), own in zip(seen, raw, strict=True)
    )


def test_a_large_real_architecture_teaches_a_small_one() -> None:
    """Three levels, depthwise branches in the head of YOLO11, other widths and depths."""
    torch.manual_seed(0)
    student, teacher = awake(build("yolov5n.yaml", NAMES, width=0.05)), awake(build("yolo11n.yaml", NAMES, width=0.1))
    found = fitted(detector(teacher, {0: "star", 1: "circle", 2: "square"}), detector(student))
    kinds = losses("score_bce", "box_iou", "dfl_kl", "feature_pkd")
    task = distillation(student, [foreign_teacher(found.model, kinds, student, "big")], labels=0.0)
    terms = task({"img": IMAGES[..., :64]})
    assert all(value.isfinite() and value > 0 for value in terms.values())
