"""What holds for every shipped loss: where it is zero, which way it pulls, and the inputs that it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from distill import losses
from distill.losses.base import LossModule, Networks
from distill.losses.context import LossContext, Outputs
from distill.losses.spec import LossSpec
from distill.training.task import DistillationTask
from distill.training.teacher import Teacher
from tests.distill.contexts import context, leaves, outputs

NETWORKS = (
    "crosskd",
    "pseudo_labels",
    "ultralytics",
)  # need networks of ultralytics', see yolo/test_losses_networks.py
NAMES = [name for name in losses.BUILTIN if name not in NETWORKS]
SOFTMAX = ("kl", "dkd", "nkd", "dist")
CASES = [
    *((name, False) for name in NAMES if name != "objectness_bce"),
    *((name, True) for name in NAMES if name not in ("dfl_kl", *SOFTMAX)),
]
# Its convolutions are random until they have learned, so what comes of them says nothing of the student.
COMPARING = [case for case in CASES if case[0] != "feature_mgd"]


def loss_of(name: str, **options) -> Callable[[LossContext], Tensor]:
    """A shipped loss as a task makes it for features of 6 channels, but with the same mask in each call."""
    (loss,) = losses.build([LossSpec(name, 1.0, options)])
    if isinstance(loss.call, LossModule):
        loss.call.setup(Networks(nn.Identity(), nn.Identity(), (6, 6)))

    def call(ctx: LossContext) -> Tensor:
        torch.manual_seed(0)
        return loss.call(ctx)

    return call


def reads(name: str) -> set[str]:
    """What of `leaves` a loss may move."""
    kinds = {"feature": {"near", "far"}, "box": {"sides"}, "dfl": {"sides"}, "objectness": {"objectness"}}
    kinds |= {"mask": {"coefficients", "prototypes"}, "keypoint": {"points"}, "angle": {"angles"}}
    return kinds.get(name.partition("_")[0], {"scores"})


@pytest.mark.parametrize(("name", "objectness"), COMPARING)
def test_equal_outputs_cost_nothing(name, objectness):
    same = [outputs(leaves(0, objectness)) for _ in range(2)]
    assert loss_of(name)(context(*same)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("name", "objectness"), CASES)
def test_a_step_down_the_gradient_brings_the_student_nearer(name, objectness):
    loss = loss_of(name)
    student = {key: value.requires_grad_() for key, value in leaves(1, objectness).items()}
    teacher = leaves(2, objectness)
    before = loss(context(outputs(student), outputs(teacher)))
    gradients = torch.autograd.grad(before, list(student.values()), allow_unused=True)
    pairs = list(zip(student.items(), gradients, strict=True))
    moved = {key: value.detach() - (0 if grad is None else 0.1 * grad / grad.norm()) for (key, value), grad in pairs}
    assert 0 < loss(context(outputs(moved), outputs(teacher))) < before
    assert {key for (key, _), grad in pairs if grad is not None} == reads(name)


@pytest.mark.parametrize(("name", "objectness"), COMPARING)
def test_the_better_of_two_students_costs_less(name, objectness):
    loss, teacher, error = loss_of(name), leaves(3, objectness), leaves(4, objectness)
    students = ({key: value + miss * error[key] for key, value in teacher.items()} for miss in (0.1, 0.3, 1.0))
    values = [loss(context(outputs(student), outputs(teacher))).item() for student in students]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize(("name", "objectness"), CASES)
def test_a_loss_does_not_depend_on_the_size_of_the_batch(name, objectness):
    loss = loss_of(name, **({"mask": 0.0} if name == "feature_mgd" else {}))
    pair = leaves(4, objectness), leaves(5, objectness)
    once = loss(context(*map(outputs, pair)))
    twice = loss(context(*(outputs({key: torch.cat((value, value)) for key, value in leaf.items()}) for leaf in pair)))
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


CERTAIN = {key: 50 * value.sign() for key, value in leaves(6, True).items()}
OPPOSITE = {key: -value for key, value in CERTAIN.items()}
FLAT = {key: torch.zeros_like(value) for key, value in CERTAIN.items()}
BLIND = FLAT | {"scores": FLAT["scores"] - 50, "objectness": FLAT["objectness"] - 50}
POINT = FLAT | {"sides": FLAT["sides"] + 50 * torch.eye(8)[0]}  # boxes without a size: all sides at a distance of 0
USUAL = leaves(7, True)
EXTREMES = {
    "certain of opposites": (CERTAIN, OPPOSITE),
    "certain of the same": (CERTAIN, CERTAIN),
    "constant": (FLAT, FLAT),
    "constant student": (FLAT, USUAL),
    "constant teacher": (USUAL, FLAT),
    "teacher that sees nothing": (USUAL, BLIND),
    "nothing anywhere": (BLIND, BLIND),
    "points": (POINT, POINT),
    "points of the student": (POINT, USUAL),
    "points of the teacher": (USUAL, POINT),
}


@pytest.mark.parametrize("inputs", EXTREMES)
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NAMES), ("score_bce", {"weighting": "difference"})]
)
def test_value_and_gradient_are_finite_for_the_worst_of_inputs(name, options, inputs):
    student, teacher = ({key: value.clone() for key, value in leaf.items()} for leaf in EXTREMES[inputs])
    for value in student.values():
        value.requires_grad_()
    loss = loss_of(name, **options)(context(outputs(student), outputs(teacher)))
    gradients = torch.autograd.grad(loss, list(student.values()), allow_unused=True)
    assert loss.isfinite() and loss > -1e-4
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize(("name", "objectness"), CASES)
def test_arithmetic_is_float32_for_half_precision_networks(name, objectness):
    half = [{key: value.bfloat16() for key, value in leaves(seed, objectness).items()} for seed in (8, 9)]
    same = [{key: value.float() for key, value in leaf.items()} for leaf in half]
    value, expected = (loss_of(name)(context(outputs(a), outputs(b))) for a, b in (half, same))
    assert value.dtype == torch.float32
    # Boxes are decoded by the network's own code, here in the network's precision.
    of_boxes = name.partition("_")[0] in ("box", "mask", "keypoint", "angle")
    assert value.item() == pytest.approx(expected.item(), rel=0.1 if of_boxes else 1e-6)


class Everything(nn.Module):
    """A head that gives all that a loss can ask for, on a grid of 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 3 + 4 * 8 + 1 + 5 + 5 * 3 + 1, 1)


def run(network: Everything, images: Tensor, points: Sequence[str]) -> Outputs:
    features = network.stem(images)
    rows = network.head(features).flatten(2).transpose(1, 2)
    scores, sides, objectness, coefficients, points, angles = rows.split((3, 32, 1, 5, 15, 1), -1)
    sides = sides.unflatten(-1, (4, 8))
    distance = (sides.softmax(-1) * torch.arange(8)).sum(-1)
    boxes = torch.cat((-distance[..., :2], distance[..., 2:]), -1)
    more = {"mask_coefficients": coefficients, "prototypes": features, "keypoints": points.unflatten(-1, (5, 3))}
    more |= {"spreads": torch.full((5,), 0.2), "angles": angles[..., 0]}
    return Outputs((features,), scores, sides, lambda: boxes, objectness_logits=objectness[..., 0], **more)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_task_a_loss_teaches_the_student_and_leaves_the_teacher_alone(name):
    torch.manual_seed(0)
    teacher = Teacher(Everything(), losses.build([LossSpec(name)]), run)
    task = DistillationTask(Everything(), [teacher], run=run)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert list(task({"img": images})) == [name, "loss"]
    task({"img": images})["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in task.student.stem.parameters())
    assert all(p.grad is None for p in task.teachers[0].network.parameters())
    if name != "feature_mgd":  # which draws a mask
        assert task({"img": images})["loss"] == task({"img": images})["loss"]


def sizes(doc: str) -> list[tuple[int, ...]]:
    """The shapes of a loss's tensors, as its docstring gives them."""
    letters = {"B": 2, "A": 20, "nc": 3, "R": 8, "C": 6, "D": 6, "H": 4, "W": 5, "4": 4, "K": 5, "3": 3, "h": 6, "w": 7}
    shapes = re.search(r"Shape: (.*) -> scalar", doc).group(1)
    return [tuple(letters[each] for each in re.findall(r"\w+", shape)) for shape in re.findall(r"\(.*?\)", shapes)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "feature_mgd"])
def test_a_loss_is_a_function_of_tensors_of_the_shapes_that_its_docstring_gives(name):
    function, doc = getattr(losses, name), getattr(losses, name).__doc__
    for other in ("box_iou", "dkd"):
        if f"as for `{other}`" in doc:
            doc = getattr(losses, other).__doc__
    generator = torch.Generator().manual_seed(0)
    student, teacher, *rest = (torch.rand(shape, generator=generator) for shape in sizes(doc))
    student.requires_grad_()
    loss = function(student, teacher, *(each.long() if each.ndim == 1 else each for each in rest))
    loss.backward()
    assert loss.shape == () and loss.isfinite() and student.grad.any()


def test_a_loss_has_the_value_in_any_training_loop_that_it_has_in_a_run():
    student, teacher = outputs(leaves(1, True)), outputs(leaves(2, True))
    classes = [Outputs((), torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]
    target = torch.tensor([0, 2, 4, 1])
    quality = losses.anchor_quality(teacher.scores, teacher.objectness)
    levels = zip(student.features, teacher.features, strict=True)
    rows = [each.scores[:, 0] for each in classes]
    for name, ctx, value in (
        ("box_iou", context(student, teacher), losses.box_iou(student.boxes, teacher.boxes, quality)),
        ("score_bce", context(student, teacher), losses.score_bce(student.scores, teacher.scores, quality, True)),
        ("feature_cwd", context(student, teacher), torch.stack([losses.feature_cwd(*pair) for pair in levels]).mean()),
        ("dkd", context(*classes, targets={"cls": target[:, None]}), losses.dkd(*rows, target)),
    ):
        assert loss_of(name)(ctx) == value, name
