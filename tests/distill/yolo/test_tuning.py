"""The highest learning rate that a short trial can bear; and that trying leaves no trace."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from distill.losses import WeightedLoss, resolve
from distill.losses.spec import Ramp
from distill.training import tuning
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.training.tuning import Trials
from distill.yolo.data import dataset as datasets
from distill.yolo.data.images import calibration
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import distillation, teacher_of
from distill.yolo.training.tuning import YoloBench
from tests.distill.yolo.test_trainer import tiny, write_images

box_iou = resolve("box_iou")
score_bce = resolve("score_bce")

SCHEDULE = Schedule(epochs=20, batch=4, steps=60)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


def trials(data: datasets.DataSet, schedule: Schedule = SCHEDULE, seed: int = 0) -> Trials:
    return Trials(YoloBench(data, 64), schedule, 64, CPU, seed)


def task(labels: float = 0.0) -> DistillationTask:
    """A student that is its teacher but for some noise."""
    teacher = tiny()
    student = copy.deepcopy(teacher)
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=make)
    losses = [WeightedLoss("score_bce", 1.0, score_bce), WeightedLoss("box_iou", 1.0, box_iou)]
    return distillation(student, [teacher_of(teacher, losses)], labels=labels)


def test_the_highest_rate_that_ends_near_the_best_one_is_found(labelled, monkeypatch):
    losses = {10.0: math.inf, 1e-2: 2.0, 1e-3: 1.04, 3e-4: 1.0, 1e-4: 1.01}  # of the trials; 5.0 before them
    ends = iter([5.0, *(loss for loss in losses.values() if math.isfinite(loss))])
    monkeypatch.setattr(Trials, "_train", lambda trials, learner, batches, trial, limit: losses[trial.lr] < math.inf)
    monkeypatch.setattr(Trials, "_mean_loss", lambda trials, learner, batches: next(ends))
    search = trials(labelled, SCHEDULE).search_lr(task(), candidates=(*losses, 1e-5))
    assert search.tried == losses, "after a rate that ends higher than the one before, no lower one is tried"
    assert (search.lr, search.start, search.limit) == (1e-3, 5.0, 1.05)


def test_a_rate_that_trains_is_found_between_one_too_high_and_one_too_low(labelled):
    search = trials(labelled, SCHEDULE).search_lr(task(), candidates=(10.0, 1.0, 1e-3, 1e-7))
    assert search.lr == 1e-3 and search.tried[1e-3] < search.start < search.tried[1e-7] * 1.05


def test_a_rate_that_diverges_is_infinitely_bad_and_the_lowest_is_taken_where_all_do(labelled):
    search = trials(labelled, SCHEDULE).search_lr(task(), candidates=(1e30, 1e29))
    assert search.tried == {1e30: math.inf, 1e29: math.inf} and search.lr == 1e29


def test_one_hard_batch_does_not_end_a_trial(labelled):
    distilling, calls = task(), 0

    def spiky(ctx):
        nonlocal calls
        calls += 1
        return box_iou(ctx) * (1000.0 if calls == 11 else 1.0)  # eight judge the start; the third of the lessons

    distilling.losses = [WeightedLoss("spiky", 1.0, spiky)]
    search = trials(labelled, SCHEDULE).search_lr(distilling, candidates=(1e-5,))
    assert calls > 11 and math.isfinite(search.tried[1e-5])


def test_a_trial_of_a_long_training_ends_at_a_low_rate_too(labelled, monkeypatch):
    tried, train = [], Trials._train
    monkeypatch.setattr(Trials, "_train", lambda *args: tried.append(args[3]) or train(*args))
    for steps in (60, 100_000):
        monkeypatch.setattr(tuning, "TRIAL_STEPS", 12)
        long = dataclasses.replace(SCHEDULE, steps=steps, warmup_steps=min(100, steps // 20))
        trials(labelled, long).search_lr(task(), candidates=(1e-3,))
    for trial in tried:
        rates = [trial.lr_at(step / trial.steps) for step in range(trial.steps)]
        assert max(rates) == pytest.approx(1e-3) and rates[0] < 5e-4 and rates[-1] < 5e-4
    assert [trial.steps for trial in tried] == [6, 12]


def test_what_trials_hold_is_bounded(labelled, monkeypatch):
    monkeypatch.setattr(tuning, "CACHE_BYTES", 7 * SCHEDULE.batch * 3 * 64**2)
    tried, train = [], Trials._train
    monkeypatch.setattr(Trials, "_train", lambda *args: tried.append(len(args[2])) or train(*args))
    trials(labelled, dataclasses.replace(SCHEDULE, steps=600)).search_lr(task(), candidates=(1e-3,))
    assert tried == [7]


def test_losses_that_warm_up_are_judged_at_their_full_weight(labelled):
    slow = task()
    slow.losses = [dataclasses.replace(loss, ramp=Ramp(warmup=0.1)) for loss in slow.losses]
    search = [trials(labelled, SCHEDULE).search_lr(each, candidates=(1e-3,)) for each in (slow, task())]
    assert search[0] == search[1] and search[0].start > 0


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_the_same_seed_finds_the_same_and_nothing_changes(labelled: datasets.DataSet, labels: float) -> None:
    distilling = task(labels)
    before = {key: value.clone() for key, value in distilling.state_dict().items()}
    args = copy.copy(getattr(distilling.student, "args", None))
    first, second = (trials(labelled, SCHEDULE, 5).search_lr(distilling, candidates=(1e-3, 1e-4)) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[key]) for key, value in distilling.state_dict().items())
    assert getattr(distilling.student, "args", None) == args and distilling._checked == 0


def test_a_folder_of_images_is_enough(labelled: datasets.DataSet) -> None:
    folder = datasets.load(labelled.path.parent / "images" / "train", names={0: "square", 1: "disc"})
    search = trials(folder, SCHEDULE).search_lr(task(1.0), candidates=(1e-3,))
    assert math.isfinite(search.tried[1e-3])


def test_batch_statistics_are_used_where_they_leave_the_student_as_it_is(labelled: datasets.DataSet) -> None:
    distilling = task()
    large = trials(labelled, dataclasses.replace(SCHEDULE, batch=12))
    images = calibration(labelled.train, 4, 64)
    with torch.no_grad():
        before = distilling.student.eval()(images)[0]
        large.recentre(distilling.student, YOLO_ADAPTER)
        torch.testing.assert_close(distilling.student.eval()(images)[0], before, rtol=1e-3, atol=1e-2)
    assert large.tolerates_batch_stats(distilling)
    with torch.no_grad():  # statistics that no batch has: with those of the batch it is another network
        for norm in distilling.student.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean += 30 * (norm.running_var + norm.eps).sqrt()
                norm.bias += 30 * norm.weight
    assert not large.tolerates_batch_stats(distilling)


@pytest.mark.parametrize("labels", [0.0, 2.0])
def test_balanced_losses_pull_equally_hard_whatever_their_weight(labelled: datasets.DataSet, labels: float) -> None:
    distilling = task(labels)
    distilling.losses = [dataclasses.replace(distilling.losses[0], weight=1000.0), distilling.losses[1]]
    factors = trials(labelled).balance_losses(distilling)
    distilling.losses = [dataclasses.replace(loss, weight=1.0) for loss in distilling.losses]
    distilling.scale(factors)
    again = trials(labelled).balance_losses(distilling)
    assert [loss.weight for loss in distilling.losses] == list(factors.values())
    assert again == pytest.approx(factors)  # of the losses themselves: their weights have no part in it
    if not labels:
        assert max(factors.values()) / min(factors.values()) > 1.5 and min(factors.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("labels, most", [(1.0, 4.0), (0.0, 100.0)])
def test_a_loss_that_hardly_pulls_is_not_blown_up(labelled: datasets.DataSet, labels: float, most: float) -> None:
    distilling = task(labels)
    faint = dataclasses.replace(distilling.losses[0], call=lambda ctx: 1e-9 * ctx.student.scores.square().mean())
    distilling.losses = [faint, distilling.losses[1]]
    assert trials(labelled).balance_losses(distilling)[faint.name] == pytest.approx(most)
