"""Losses on class scores and objectness of detectors: values worked out otherwise, and what is done with background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import losses
from distill.errors import DistillError
from tests.distill.contexts import anchors, context, leaves, outputs

# As a run calls them, with a context.
objectness_bce, score_bce, score_dist = map(losses.resolve, ("objectness_bce", "score_bce", "score_dist"))


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


def gap(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of two probabilities of yes or no."""
    return teacher * (teacher / student).log() + (1 - teacher) * ((1 - teacher) / (1 - student)).log()


@pytest.mark.parametrize("objectness", [False, True])
def test_score_bce_by_difference_has_the_value_and_the_gradient_of_its_formula(objectness):
    student, teacher = leaves(3, objectness), leaves(4, objectness)
    s, t = (leaf["scores"].sigmoid() for leaf in (student, teacher))
    quality = t.amax(-1) * (teacher["objectness"].sigmoid() if objectness else 1)
    weight = (quality[..., None] if objectness else 1) * (s - t).abs() ** 1.5
    student["scores"].requires_grad_()
    ctx = context(outputs(student), outputs(teacher))
    value = score_bce(ctx, weighting="difference", gamma=1.5)
    assert value.item() == pytest.approx(((weight * gap(s, t)).sum() / quality.sum()).item(), rel=1e-4)
    value.backward()  # of the cross-entropy alone: the weight has none
    torch.testing.assert_close(student["scores"].grad, weight * (s - t) / quality.sum(), rtol=1e-4, atol=1e-6)


def test_score_bce_by_difference_sees_false_alarms_and_forgets_the_background_that_is_right():
    teacher = anchors([0.8, *[1e-3] * 100])

    def share(first: float, **options) -> float:
        """Of what 100 anchors, a little off, cost together: what one more cost that is far off."""
        alarm, silent = (
            score_bce(context(anchors([0.8, score, *[2e-3] * 99]), teacher), **options) for score in (first, 2e-3)
        )
        return ((alarm - silent) / silent).item()

    assert share(0.7, weighting="difference") > 100 * share(0.7)


def test_score_bce_refuses_a_weighting_that_it_does_not_know():
    ctx = context(*(outputs(leaves(seed)) for seed in (0, 1)))
    with pytest.raises(DistillError, match="'score_bce': weighting is 'quality' or 'difference', not 'qualty'"):
        score_bce(ctx, weighting="qualty")


@pytest.mark.parametrize("focus", [2.0, 1.0])
def test_score_dist_is_one_minus_the_correlation_within_anchors_and_within_classes(focus):
    student, teacher = leaves(5), leaves(6)
    s, t = (leaf["scores"].sigmoid().flatten(0, 1).double().numpy() for leaf in (student, teacher))
    weight = t.max(1) ** focus
    rows = np.array([1 - np.corrcoef(*pair)[0, 1] for pair in zip(s, t, strict=True)])
    columns = []
    for pair in zip(s.T, t.T, strict=True):
        (ss, st), (_, tt) = np.cov(*pair, aweights=weight, ddof=0)
        columns.append(1 - st / (ss * tt) ** 0.5)
    expected = {"inter": (weight * rows).sum() / weight.sum(), "intra": np.mean(columns)}
    ctx = context(outputs(student), outputs(teacher))
    for one, other in (("inter", "intra"), ("intra", "inter")):
        # The floor under the variance shows in the third digit, in anchors whose classes are about equally likely.
        assert score_dist(ctx, focus=focus, **{one: 1.0, other: 0.0}).item() == pytest.approx(expected[one], rel=2e-3)
    assert score_dist(ctx, focus=focus, inter=2.0, intra=0.5).item() == pytest.approx(
        2 * expected["inter"] + 0.5 * expected["intra"], rel=2e-3
    )


def test_score_dist_forgives_scale_and_shift_and_ignores_the_background():
    teacher, student = leaves(7), leaves(8)
    probability = teacher["scores"].sigmoid()
    moved = student | {"scores": torch.logit(0.5 * probability + 0.2)}
    assert score_dist(context(outputs(moved), outputs(teacher))).item() == pytest.approx(0, abs=1e-3)
    nothing = torch.arange(20) >= 10
    blind = teacher | {"scores": teacher["scores"] - 20 * nothing[:, None]}
    values = [
        score_dist(context(outputs(off), outputs(blind)))
        for off in (student, student | {"scores": student["scores"] + nothing[:, None]})
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5) and values[0] > 0.1


def test_score_dist_of_one_class_is_its_correlation_over_anchors():
    s, t = [0.2, 0.5, 0.6, 0.3], [0.1, 0.9, 0.5, 0.4]
    (ss, st), (_, tt) = np.cov(s, t, aweights=np.square(t), ddof=0)
    # The weights sum to more than 1: what is divided by is that.
    ctx = context(anchors(s), anchors(t))
    assert score_dist(ctx).item() == pytest.approx(1 - st / (ss * tt) ** 0.5, rel=1e-3)
    assert score_dist(ctx, inter=9.0) == score_dist(ctx)


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
