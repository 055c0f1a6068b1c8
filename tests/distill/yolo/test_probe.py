"""The highest learning rate that a short trial can bear; and that trying leaves no trace."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from distill.losses import Loss
from distill.losses.box import box_iou
from distill.losses.logit import score_bce
from distill.losses.spec import Span
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.data import dataset as datasets
from distill.yolo.data.images import calibration
from distill.yolo.heads.outputs import distillation
from distill.yolo.training import tuning as probe
from distill.yolo.training.tuning import balance, bears_batch_statistics, find_lr, recentre
from tests.distill.yolo.test_trainer import tiny, write_images

COURSE = Schedule(epochs=20, batch=4, steps=60)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


def task(labels: float = 0.0) -> DistillationTask:
    """A student that is its teacher but for some noise."""
    teacher = tiny()
    student = copy.deepcopy(teacher)
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=make)
    losses = [Loss("score_bce", 1.0, score_bce), Loss("box_iou", 1.0, box_iou)]
    return distillation(student, teacher, losses, labels=labels)


def test_the_highest_rate_that_gets_back_to_where_it_began_is_found(labelled):
    found = find_lr(task(), labelled, COURSE, imgsz=64, device=CPU, candidates=(10.0, 1.0, 1e-3, 1e-7))
    assert found.lr == 1e-3 and list(found.tried) == [10.0, 1.0, 1e-3]  # nothing below is tried
    assert found.tried[1e-3] <= found.limit < found.tried[1.0] and found.limit == 1.05 * found.start


def test_a_rate_that_diverges_is_infinitely_bad_and_the_lowest_is_taken_where_none_gets_back(labelled):
    found = find_lr(task(), labelled, COURSE, imgsz=64, device=CPU, candidates=(1e30, 1e29))
    assert found.tried == {1e30: math.inf, 1e29: math.inf} and found.lr == 1e29


def test_one_hard_batch_does_not_end_a_trial(labelled):
    given, calls = task(), 0

    def spiky(ctx):
        nonlocal calls
        calls += 1
        return box_iou(ctx) * (1000.0 if calls == 11 else 1.0)  # eight judge the start; the third of the lessons

    given.losses = [Loss("spiky", 1.0, spiky)]
    found = find_lr(given, labelled, COURSE, imgsz=64, device=CPU, candidates=(1e-5,))
    assert calls > 11 and math.isfinite(found.tried[1e-5])


def test_a_trial_of_a_long_training_ends_at_a_low_rate_too(labelled, monkeypatch):
    trials, train = [], probe._train
    monkeypatch.setattr(probe, "_train", lambda *args: trials.append(args[2]) or train(*args))
    for steps in (60, 100_000):
        monkeypatch.setattr(probe, "STEPS", 12)
        long = dataclasses.replace(COURSE, steps=steps, warmup_steps=min(100, steps // 20))
        find_lr(task(), labelled, long, imgsz=64, device=CPU, candidates=(1e-3,))
    for trial in trials:
        rates = [trial.lr_at(step / trial.steps) for step in range(trial.steps)]
        assert max(rates) == pytest.approx(1e-3) and rates[0] < 5e-4 and rates[-1] < 5e-4
    assert [trial.steps for trial in trials] == [6, 12]


def test_what_trials_hold_is_bounded(labelled, monkeypatch):
    monkeypatch.setattr(probe, "HELD", 7 * COURSE.batch * 3 * 64**2)
    trials, train = [], probe._train
    monkeypatch.setattr(probe, "_train", lambda *args: trials.append(len(args[1])) or train(*args))
    find_lr(task(), labelled, dataclasses.replace(COURSE, steps=600), imgsz=64, device=CPU, candidates=(1e-3,))
    assert trials == [7]


def test_losses_that_warm_up_are_judged_at_their_full_weight(labelled):
    slow = task()
    slow.losses = [dataclasses.replace(loss, span=Span(warmup=0.1)) for loss in slow.losses]
    found = [find_lr(each, labelled, COURSE, imgsz=64, device=CPU, candidates=(1e-3,)) for each in (slow, task())]
    assert found[0] == found[1] and found[0].start > 0


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_the_same_seed_finds_the_same_and_nothing_changes(labelled: datasets.DataSet, labels: float) -> None:
    given = task(labels)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    args = copy.copy(getattr(given.student, "args", None))
    options = {"imgsz": 64, "device": CPU, "candidates": (1e-3, 1e-4), "seed": 5}
    first, second = (find_lr(given, labelled, COURSE, **options) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert getattr(given.student, "args", None) == args and given._seen == 0


def test_a_folder_of_images_is_enough(labelled: datasets.DataSet) -> None:
    folder = datasets.load(labelled.path.parent / "images" / "train", names={0: "square", 1: "disc"})
    found = find_lr(task(1.0), folder, COURSE, imgsz=64, device=CPU, candidates=(1e-3,))
    assert math.isfinite(found.tried[1e-3])


def test_batch_statistics_are_used_where_they_leave_the_student_as_it_is(labelled: datasets.DataSet) -> None:
    given, where = task(), {"imgsz": 64, "device": CPU}
    large = dataclasses.replace(COURSE, batch=12)
    images = calibration(labelled.train, 4, 64)
    with torch.no_grad():
        before = given.student.eval()(images)[0]
        recentre(given.student, labelled, large, **where)
        torch.testing.assert_close(given.student.eval()(images)[0], before, rtol=1e-3, atol=1e-2)
    assert bears_batch_statistics(given, labelled, large, **where)
    with torch.no_grad():  # statistics that no batch has: with those of the batch it is another network
        for norm in given.student.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean += 30 * (norm.running_var + norm.eps).sqrt()
                norm.bias += 30 * norm.weight
    assert not bears_batch_statistics(given, labelled, large, **where)


@pytest.mark.parametrize("labels", [0.0, 2.0])
def test_balanced_losses_pull_equally_hard_whatever_their_weight(labelled: datasets.DataSet, labels: float) -> None:
    given = task(labels)
    given.losses = [dataclasses.replace(given.losses[0], weight=1000.0), given.losses[1]]
    factors = balance(given, labelled, COURSE, imgsz=64, device=CPU)
    given.losses = [dataclasses.replace(loss, weight=1.0) for loss in given.losses]
    given.scale(factors)
    again = balance(given, labelled, COURSE, imgsz=64, device=CPU)
    assert [loss.weight for loss in given.losses] == list(factors.values())
    assert again == pytest.approx(factors)  # of the losses themselves: their weights have no part in it
    if not labels:
        assert max(factors.values()) / min(factors.values()) > 1.5 and min(factors.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("labels, most", [(1.0, 4.0), (0.0, 100.0)])
def test_a_loss_that_hardly_pulls_is_not_blown_up(labelled: datasets.DataSet, labels: float, most: float) -> None:
    given = task(labels)
    faint = dataclasses.replace(given.losses[0], call=lambda ctx: 1e-9 * ctx.student.scores.square().mean())
    given.losses = [faint, given.losses[1]]
    assert balance(given, labelled, COURSE, imgsz=64, device=CPU)[faint.name] == pytest.approx(most)
