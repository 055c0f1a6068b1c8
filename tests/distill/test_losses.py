"""Losses: exact values, which way they pull and what they ignore; and losses found by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill import losses
from distill.context import LossContext, Outputs
from distill.errors import DistillError
from distill.losses.box import box_iou, dfl_kl
from distill.losses.feature import feature_pkd
from distill.losses.logit import objectness_bce, score_bce
from distill.recipe_losses import LossSpec

WITHOUT_OBJECTNESS = [score_bce, box_iou, dfl_kl, feature_pkd]
WITH_OBJECTNESS = [score_bce, objectness_bce, box_iou, feature_pkd]
CASES = [*((loss, False) for loss in WITHOUT_OBJECTNESS), *((loss, True) for loss in WITH_OBJECTNESS)]
CENTRES = torch.rand(20, 2, generator=torch.Generator().manual_seed(9)) * 32


def leaves(seed: int, objectness: bool = False) -> dict[str, Tensor]:
    """What a head with levels of 4x4 and 2x2 cells gives for two images: 3 classes, 8 bins to a side."""
    make = torch.Generator().manual_seed(seed)
    shapes = {"near": (2, 6, 4, 4), "far": (2, 6, 2, 2), "scores": (2, 20, 3), "sides": (2, 20, 4, 8)}
    if objectness:
        shapes["objectness"] = (2, 20)
    return {name: torch.randn(shape, generator=make) for name, shape in shapes.items()}


def outputs(given: dict[str, Tensor]) -> Outputs:
    def decode() -> Tensor:
        distance = (given["sides"].softmax(-1) * torch.arange(8)).sum(-1)
        return torch.cat((CENTRES - distance[..., :2], CENTRES + distance[..., 2:]), -1)

    neck = (given["near"], given["far"])
    strides = torch.tensor([8.0] * 16 + [16.0] * 4)
    return Outputs(neck, given["scores"], given["sides"], decode, strides, objectness_logits=given.get("objectness"))


def context(student: Outputs, teacher: Outputs, keep: list[list[int]] | None = None) -> LossContext:
    index = None if keep is None else tuple(torch.tensor(channels) for channels in keep)
    return LossContext(torch.zeros(2, 3, 32, 32), student, teacher, keep=index)


def anchors(
    probabilities: list[float], boxes: list[list[float]] | None = None, objectness: list[float] | None = None
) -> Outputs:
    """One image, one class, an anchor for each probability."""
    logits = torch.logit(torch.tensor(probabilities))[None, :, None]
    sides, there = torch.zeros(1, len(probabilities), 4, 2), None
    if objectness is not None:
        there = torch.logit(torch.tensor(objectness))[None]
    return Outputs((), logits, sides, lambda: torch.tensor(boxes)[None], objectness_logits=there)


@pytest.mark.parametrize(("loss", "objectness"), CASES)
def test_equal_outputs_cost_nothing(loss, objectness):
    same = [outputs(leaves(0, objectness)) for _ in range(2)]
    assert loss(context(*same)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "objectness"), CASES)
def test_a_step_down_the_gradient_brings_the_student_nearer(loss, objectness):
    student = {name: value.requires_grad_() for name, value in leaves(1, objectness).items()}
    teacher = leaves(2, objectness)
    before = loss(context(outputs(student), outputs(teacher)))
    gradients = torch.autograd.grad(before, list(student.values()), allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    pairs = zip(student.items(), gradients, strict=True)
    moved = {name: value.detach() - (0 if grad is None else 0.1 * grad / grad.norm()) for (name, value), grad in pairs}
    assert 0 < loss(context(outputs(moved), outputs(teacher))) < before
    reaches = {name for (name, _), grad in zip(student.items(), gradients, strict=True) if grad is not None}
    assert ("objectness" in reaches) is (loss is objectness_bce)  # no other loss may move it


def test_score_bce_has_the_value_of_its_formula():
    student, teacher = torch.tensor([0.3, 0.2]), torch.tensor([0.9, 0.6])
    kl = teacher * (teacher / student).log() + (1 - teacher) * ((1 - teacher) / (1 - student)).log()
    weight = 0.25 + 0.75 * teacher
    expected = (weight * kl).sum() / 1.5
    value = score_bce(context(anchors([0.3, 0.2]), anchors([0.9, 0.6])), background=0.25)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_score_bce_sees_false_alarms_by_its_background_weight():
    alarm, silent = anchors([0.8, 0.7]), anchors([0.8, 1e-4])
    values = [score_bce(context(alarm, silent), background=weight).item() for weight in (0.0, 0.1, 1.0)]
    assert values[0] < 1e-3 < values[1] < values[2]


def test_score_bce_leaves_the_background_to_objectness_where_there_is_one():
    """Without objectness a false alarm on the second anchor costs; with it, what the class says there means nothing."""
    for objectness, sees in (([0.8, 1e-6], False), (None, True)):
        teacher = anchors([0.9, 1e-6], objectness=objectness)
        quiet, alarm = (anchors([0.9, score], objectness=objectness) for score in (1e-6, 0.99))
        assert score_bce(context(quiet, teacher)).item() == pytest.approx(0, abs=1e-6)
        assert (score_bce(context(alarm, teacher), background=1.0).item() > 1e-3) is sees


def test_score_bce_with_objectness_has_the_value_of_its_formula():
    student, teacher, there = torch.tensor([0.3, 0.2]), torch.tensor([0.9, 0.6]), torch.tensor([0.5, 0.25])
    kl = teacher * (teacher / student).log() + (1 - teacher) * ((1 - teacher) / (1 - student)).log()
    ctx = context(anchors([0.3, 0.2], objectness=[0.1, 0.1]), anchors([0.9, 0.6], objectness=[0.5, 0.25]))
    assert score_bce(ctx).item() == pytest.approx((there * teacher * kl).sum().item(), rel=1e-5)  # Σ q < 1


def test_objectness_bce_has_the_value_of_its_formula():
    student, teacher = torch.tensor([0.3, 0.2, 0.5]), torch.tensor([0.9, 0.6, 0.01])
    kl = teacher * (teacher / student).log() + (1 - teacher) * ((1 - teacher) / (1 - student)).log()
    expected = ((0.25 + 0.75 * teacher) * kl).sum() / 1.51
    scores = [0.5, 0.5, 0.5]
    ctx = context(anchors(scores, objectness=student.tolist()), anchors(scores, objectness=teacher.tolist()))
    assert objectness_bce(ctx, background=0.25).item() == pytest.approx(expected.item(), rel=1e-5)


def test_objectness_bce_sees_false_alarms_by_its_background_weight_and_prefers_the_better_student():
    scores, teacher = [0.5, 0.5], [0.8, 1e-4]

    def value(objectness: list[float], background: float) -> float:
        ctx = context(anchors(scores, objectness=objectness), anchors(scores, objectness=teacher))
        return objectness_bce(ctx, background=background).item()

    alarms = [value([0.8, 0.7], background) for background in (0.0, 0.1, 1.0)]
    assert alarms[0] < 1e-3 < alarms[1] < alarms[2]
    assert value([0.7, 1e-3], 0.1) < value([0.5, 1e-2], 0.1) < value([0.2, 0.3], 0.1)


def test_objectness_bce_on_a_head_without_it_says_what_fits():
    bare, full = outputs(leaves(0)), outputs(leaves(0, objectness=True))
    for student, teacher in ((bare, bare), (full, bare), (bare, full)):
        with pytest.raises(DistillError, match="'objectness_bce'.*'score_bce'"):
            objectness_bce(context(student, teacher))


def test_box_iou_has_the_value_of_its_formula_and_ignores_background():
    student = anchors([0.5] * 3, [[0.0, 0, 4, 2], [0.0, 0, 2, 2], [9.0, 9, 10, 10]])
    teacher = anchors([0.8, 0.8, 1e-4], [[2.0, 0, 6, 2], [0.0, 0, 2, 2], [0.0, 0, 1, 1]])
    # IoU 1/3 and 1; the third anchor's boxes do not touch, but the teacher sees nothing there.
    assert box_iou(context(student, teacher)).item() == pytest.approx((2 / 3 * 0.64) / (2 * 0.64), rel=1e-4)


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


def test_feature_pkd_is_one_minus_the_correlation_of_each_channel():
    student, teacher = outputs(leaves(5)), outputs(leaves(6))
    levels = []
    for s, t in zip(student.features, teacher.features, strict=True):
        pairs = zip(s.transpose(0, 1).flatten(1), t.transpose(0, 1).flatten(1), strict=True)
        levels.append(torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())
    assert feature_pkd(context(student, teacher)).item() == pytest.approx(torch.stack(levels).mean().item(), rel=1e-4)


def test_feature_pkd_compares_each_channel_with_the_one_it_was_cut_from():
    teacher, keep = leaves(7), [[1, 2, 5], [0, 3, 4]]
    cut = {**teacher, "near": 3 * teacher["near"][:, keep[0]] + 1, "far": 2 * teacher["far"][:, keep[1]]}
    right = feature_pkd(context(outputs(cut), outputs(teacher), keep))
    wrong = feature_pkd(context(outputs(cut), outputs(teacher), [[2, 1, 5], keep[1]]))
    assert right.item() == pytest.approx(0, abs=1e-5) and wrong > 0.1
    with pytest.raises(DistillError, match="another teacher"):
        feature_pkd(context(outputs(cut), outputs(teacher)))


@pytest.mark.parametrize(("loss", "objectness"), CASES)
def test_arithmetic_is_float32_for_half_precision_networks(loss, objectness):
    half = [{name: value.bfloat16() for name, value in leaves(seed, objectness).items()} for seed in (8, 9)]
    same = [{name: value.float() for name, value in leaf.items()} for leaf in half]
    value, expected = (loss(context(outputs(a), outputs(b))) for a, b in (half, same))
    assert value.dtype == torch.float32
    # Boxes are decoded by the network's own code, here in the network's precision.
    assert value.item() == pytest.approx(expected.item(), rel=0.1 if loss is box_iou else 1e-6)


def test_every_shipped_loss_resolves_and_describes_itself():
    rows = losses.describe()
    assert [row.name for row in rows] == list(losses.BUILTIN)
    assert all(row.help.endswith(".") for row in rows)
    assert {row.name: dict(row.options) for row in rows}["dfl_kl"] == {"focus": 2.0, "temperature": 1.0}


def test_a_recipe_keeps_the_losses_that_a_head_can_have():
    specs = [LossSpec(name) for name in (*losses.BUILTIN, "my.module:dfl_kl")]
    fit, lines = losses.fitting(specs, {"dist"})
    assert [spec.name for spec in fit] == ["score_bce", "box_iou", "dfl_kl", "feature_pkd", "my.module:dfl_kl"]
    assert lines == ["loss objectness_bce left out: this head has no objectness"]
    fit, lines = losses.fitting(iter(specs), {"objectness"})
    assert [spec.name for spec in fit] == ["score_bce", "objectness_bce", "box_iou", "feature_pkd", "my.module:dfl_kl"]
    assert lines == ["loss dfl_kl left out: this head predicts no distributions over box sides"]
    assert losses.fitting(specs, {"dist", "objectness"}) == (specs, []) and losses.fitting([], set()) == ([], [])
    assert set(losses.NEEDS) <= set(losses.BUILTIN)


def test_listing_names_loads_no_torch():
    code = "import sys, distill.losses; assert 'torch' not in sys.modules and distill.losses.BUILTIN"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = '''
import torch

def my_kd(ctx, temperature=1.0):
    """Squares."""
    return temperature * sum((s - t).square().mean() for s, t in ctx.features("neck"))

class Learned(torch.nn.Module):
    """Learns."""
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, ctx):
        return self.layer(ctx.student.scores).square().mean()

number = 3
'''
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    return tmp_path / "mine.py"


def test_a_users_function_and_module_are_built_with_their_options(file: Path):
    function = LossSpec(f"{file}:my_kd", 0.5, {"temperature": 2.0})
    module = LossSpec(f"{file}:Learned", 1.0, {"width": 3})
    first, second = losses.build([function, module])
    ctx = context(outputs(leaves(0)), outputs(leaves(1)))
    pairs = ctx.features()
    expected = 2 * sum((s - t).square().mean() for s, t in pairs)
    assert (first.name, first.weight, first.call(ctx).item()) == ("my_kd", 0.5, pytest.approx(expected.item()))
    assert second.name == "Learned" and isinstance(second.call, torch.nn.Module) and second.call(ctx).requires_grad


def test_user_losses_are_found_beside_the_recipe_and_in_packages(file: Path):
    row = losses.describe(["mine.py:my_kd"], file.parent)[0]
    assert (row.help, dict(row.options)) == ("Squares.", {"temperature": 1.0})
    assert losses.resolve("distill.losses.box:box_iou") is box_iou


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score_bec", "no loss 'score_bec', did you mean 'score_bce'"),
        ("mime.py:my_kd", "no file .*mime.py, did you mean 'mine.py'"),
        ("mine.py:my_dk", "nothing named 'my_dk' in mine.py, did you mean 'my_kd'"),
        ("mine.py:number", "'number' in mine.py is int, not a function"),
        ("broken.py:x", "running .*broken.py failed: ModuleNotFoundError: No module named"),
        ("no_such_package:x", "importing no_such_package failed"),
        ("distill.losses.box:box_uoi", "nothing named 'box_uoi'.*did you mean 'box_iou'"),
    ],
)
def test_a_loss_that_is_not_there_is_one_clear_line(file: Path, name: str, message: str):
    with pytest.raises(DistillError, match=message) as error:
        losses.resolve(name, file.parent)
    assert "\n" not in str(error.value)


def test_an_option_that_a_loss_does_not_take_is_named(file: Path):
    with pytest.raises(DistillError, match="'dfl_kl' has no option 'temprature', did you mean 'temperature'"):
        losses.build([LossSpec("dfl_kl", 1.0, {"temprature": 2})])
    with pytest.raises(DistillError, match="needs its option 'width'"):
        losses.build([LossSpec(f"{file}:Learned", 1.0)])
