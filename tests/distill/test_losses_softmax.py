"""Losses on the scores of a classifier: values worked by hand, and how their two parts make up the whole."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from distill import losses
from distill.errors import DistillError
from distill.losses.context import Outputs
from tests.distill.contexts import classes, context

dist, dkd, kl, nkd = map(losses.resolve, ("dist", "dkd", "kl", "nkd"))  # as a run calls them, with a context


def logits(seed: int, images: int = 3, count: int = 5):
    rows = 2 * torch.randn(images, count, generator=torch.Generator().manual_seed(seed))
    return classes(rows.exp().tolist())


def test_kl_has_the_value_of_its_formula():
    student, teacher = classes([[0.25, 0.75], [0.5, 0.5]]), classes([[0.5, 0.5], [0.5, 0.5]])
    ctx = context(student, teacher)
    assert kl(ctx, temperature=1.0).item() == pytest.approx(0.5 * math.log(4 / 3) / 2, rel=1e-5)
    # At T = 2 odds of 1:9 become 1:3, and equal ones stay.
    ctx = context(classes([[0.1, 0.9]]), classes([[0.5, 0.5]]))
    assert kl(ctx, temperature=2.0).item() == pytest.approx(4 * 0.5 * math.log(4 / 3), rel=1e-5)


def test_kl_has_a_gradient_of_the_same_size_at_any_temperature():
    sizes = []
    for temperature in (20.0, 40.0):
        student, teacher = logits(0), logits(1)
        student.class_logits.requires_grad_()
        kl(context(student, teacher), temperature=temperature).backward()
        sizes.append(student.class_logits.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_dkd_has_the_value_of_its_formula():
    student, teacher = classes([[0.5, 0.25, 0.25]]), classes([[0.2, 0.6, 0.2]])
    ctx = context(student, teacher, targets={"cls": torch.tensor([1])})
    own = 0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75)
    others = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert dkd(ctx, temperature=1.0).item() == pytest.approx(own + 8 * others, rel=1e-5)
    assert dkd(ctx, alpha=3.0, beta=0.5, temperature=1.0).item() == pytest.approx(3 * own + 0.5 * others, rel=1e-5)


def test_dist_has_the_value_of_its_formula():
    student, teacher = classes([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]), classes([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])

    def correlation(first, second):
        return statistics.correlation(first, second)

    rows = [correlation([0.6, 0.3, 0.1], [0.5, 0.3, 0.2]), correlation([0.2, 0.2, 0.6], [0.1, 0.3, 0.6])]
    # Of two images a class rises from one to the other in both networks; the teacher's second class is constant, so there is
    # no relation to lose.
    columns = [1.0, 1.0, 1.0]
    ctx = context(student, teacher)
    assert dist(ctx, gamma=0.0).item() == pytest.approx(1 - statistics.mean(rows), rel=1e-4)
    assert dist(ctx, beta=0.0).item() == pytest.approx(1 - statistics.mean(columns), abs=1e-6)
    assert dist(ctx, beta=0.0, gamma=0.0).item() == 0
    backwards = context(classes([[0.1, 0.9], [0.9, 0.1]]), classes([[0.9, 0.1], [0.1, 0.9]]))
    assert dist(backwards, beta=2.0, gamma=3.0).item() == pytest.approx(2 * 2 + 3 * 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_of_dkd_make_up_kl_where_the_others_weigh_what_the_target_leaves(temperature):
    for seed in range(3):
        ctx = context(logits(seed, images=1), logits(seed + 9, images=1), targets={"cls": torch.tensor([seed])})
        left = 1 - (ctx.teacher.scores[0, 0] / temperature).softmax(0)[seed].item()
        assert dkd(ctx, alpha=1.0, beta=left, temperature=temperature).item() == pytest.approx(
            kl(ctx, temperature=temperature).item(), rel=1e-4
        )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_nkd_is_the_papers_loss_less_what_the_teacher_itself_would_get(temperature):
    target = [2, 0, 4]
    ctx = context(logits(3), logits(4), targets={"cls": torch.tensor(target)})

    def paper(student: torch.Tensor) -> float:
        total = 0.0
        for row, teacher, y in zip(student, ctx.teacher.scores[:, 0], target, strict=True):
            s, t = row.softmax(0), teacher.softmax(0)
            soft_s, soft_t = (row / temperature).exp(), (teacher / temperature).exp()
            rest_s, rest_t = soft_s.sum() - soft_s[y], soft_t.sum() - soft_t[y]
            others = sum(soft_t[i] / rest_t * (soft_s[i] / rest_s).log() for i in range(5) if i != y)
            total -= (t[y] * s[y].log() + 1.5 * temperature**2 * others).item() / len(target)
        return total

    expected = paper(ctx.student.scores[:, 0]) - paper(ctx.teacher.scores[:, 0])
    assert nkd(ctx, temperature=temperature).item() == pytest.approx(expected, rel=1e-4)


def test_nkd_goes_on_below_zero_for_a_student_that_is_surer_of_the_target():
    ctx = context(classes([[0.9, 0.05, 0.05]]), classes([[0.6, 0.2, 0.2]]))
    assert nkd(ctx).item() == pytest.approx(0.6 * math.log(0.6 / 0.9), rel=1e-5)


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_the_target_is_the_label_and_without_labels_what_the_teacher_believes(loss):
    student, teacher = logits(5), logits(6)
    believed = teacher.scores[:, 0].argmax(1)
    bare, same, other = (
        loss(context(student, teacher, targets=targets))
        for targets in (None, {"cls": believed[:, None].float()}, {"cls": (believed + 1) % 5})
    )
    assert bare == same != other


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_without_one_class_to_an_image_and_others_beside_it_there_is_one_clear_line(loss):
    with pytest.raises(DistillError, match=r"one class to an image: 3 rows of scores, but targets of shape \(7, 1\)"):
        loss(context(logits(0), logits(1), targets={"cls": torch.zeros(7, 1)}))
    with pytest.raises(DistillError, match="there is only one; use 'kl'"):
        loss(context(logits(0, count=1), logits(1, count=1)))


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_a_teacher_that_is_sure_still_tells_how_the_others_compare(loss):
    teacher = torch.tensor([[[50.0, 2.0, 0.0]]])
    values = []
    for others in ([2.0, 0.0], [0.0, 2.0]):
        student = torch.tensor([[[50.0, *others]]])
        ctx = context(*(Outputs((), scores) for scores in (student, teacher)))
        values.append((loss(ctx).item(), kl(ctx, temperature=1.0).item()))
    (right, _), (wrong, overlooked) = values
    assert right == pytest.approx(0, abs=1e-6)
    assert wrong > 0.1 and overlooked < 1e-6
