"""Schedules: chosen from the optimizer steps there will be, and said in one line."""

from __future__ import annotations

import itertools
import math

import pytest

from distill.losses.spec import ALWAYS, FADES, Ramp
from distill.training import schedule
from distill.training.schedule import Schedule


def test_a_short_recovery_takes_small_batches_and_a_short_warm_up():
    plan = schedule.recovery(205, 16, 10)
    assert (plan.batch, plan.steps) == (8, 10 * math.ceil(205 / 8))
    assert plan.warmup_steps < plan.steps / 10 and plan.mosaic == 0


def test_a_long_recovery_keeps_its_batch():
    plan = schedule.recovery(118_287, 16, 10)
    assert (plan.batch, plan.steps, plan.warmup_steps) == (16, 73_930, 100)
    assert 0 < plan.close_mosaic < plan.epochs
    assert not plan.freeze_bn and plan.bn_momentum < schedule.recovery(205, 16, 10).bn_momentum


@pytest.mark.parametrize(("batch", "keep", "expected"), [(64, False, 4), (64, True, 64), (2, False, 2)])
def test_batches_shrink_to_four_at_most_and_never_grow(batch, keep, expected):
    assert schedule.recovery(100, batch, 3, keep_batch=keep).batch == expected


@pytest.mark.parametrize(("batch", "processes", "expected"), [(16, 2, 4), (16, 8, 8), (12, 3, 6), (24, 3, 6)])
def test_processes_that_share_a_batch_have_the_same_of_it(batch, processes, expected):
    assert schedule.recovery(100, batch, 3, processes=processes).batch == expected


def test_the_learning_rate_rises_then_falls_to_its_end():
    plan = Schedule(epochs=4, batch=8, steps=100, lr=1e-3, lrf=0.1, warmup_steps=10)
    rates = [plan.lr_at(step / 100) for step in range(101)]
    assert 0 < rates[0] < rates[9] < max(rates) == rates[10] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-4)
    assert plan.lr_at(0.55) == pytest.approx((1e-3 + 1e-4) / 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_even_the_shortest_run_has_learning_rates(steps):
    plan = schedule.recovery(4 * steps, 8, 1)
    assert (plan.batch, plan.steps) == (4, steps) and all(plan.lr_at(step / steps) > 0 for step in range(steps))


def test_a_recovery_averages_over_more_of_its_steps_than_a_new_network_does():
    assert schedule.recovery(400, 8, 5).averaged > schedule.teacher(400, 8, 5).averaged > 0


def test_a_new_network_that_sees_an_image_a_few_times_sees_it_nearly_as_it_is():
    short, long = schedule.teacher(160, 4, 12), schedule.teacher(160, 4, 100)
    assert short.scale < long.scale and short.translate < long.translate
    assert schedule.teacher(160_000, 16, 12).scale == short.scale  # by epochs, not by steps


def test_every_schedule_describes_itself_in_one_line():
    plans = [schedule.recovery(205, 16, 10), schedule.teacher(400, 16, 60), schedule.sparsify(205, 16, 20)]
    lines = [plan.describe() for plan in plans]
    assert not any("\n" in line for line in lines)
    assert lines[0].startswith("10 epochs, 260 steps of 8 images; AdamW, lr 1.0e-03 to 1.0e-05")
    assert "no mosaic" in lines[0] and "mosaic 1, none in the last 12 epochs" in lines[1]


@pytest.mark.parametrize(
    ("ramp", "factors"),
    [
        (ALWAYS, [1, 1, 1, 1, 1]),
        (Ramp(warmup=0.5), [0, 0.5, 1, 1, 1]),
        (Ramp(until=0.75), [1, 1, 1, 0, 0]),
        (Ramp(0.5, 0.75), [0, 0.5, 1, 0, 0]),
        (Ramp(fade="linear"), [1, 0.75, 0.5, 0.25, 0]),
        (Ramp(fade="cosine"), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        (Ramp(0.25, 0.75, "cosine"), [0, 1, 0.5, 0, 0]),
    ],
)
def test_a_ramp_says_how_much_of_a_weight_counts(ramp: Ramp, factors: list[float]):
    assert [ramp.at(quarter / 4) for quarter in range(5)] == pytest.approx(factors)


@pytest.mark.parametrize("fade", FADES)
def test_only_what_has_ended_is_over(fade: str):
    ramp = Ramp(0.2, 0.6, fade)
    assert [ramp.over(tenth / 10) for tenth in range(11)] == [tenth >= 6 for tenth in range(11)]
    assert ramp.at(0.599) > 0 and not ramp.lasts
    assert ALWAYS.lasts and not any(Ramp(0.2, 1, fade).over(tenth / 10) for tenth in range(11))
