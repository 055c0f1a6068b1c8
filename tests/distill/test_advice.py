"""A result that was not accepted comes with what to do about it; words and figures that say something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.report import training
from distill.report.advice import advice
from distill.report.details import Error
from distill.report.format import apart, percent_text
from distill.results.curve import CurvePoint, CurveResults, CurveSetting
from distill.results.results import Results
from tests.distill import test_report

results = test_report.results  # the fixture


def run(results: dict[str, Any], **recipe: Any) -> Results:
    """A run that lost 0.031 of mAP and was not accepted, with these keys in its recipe."""
    results["recipe"] |= {"repair": {"images": 256}, "distill": {"epochs": 50, "losses": {}, "labels": 1.0}} | recipe
    results["models"]["student"] |= {"map50_95": 0.6, "per_class": {"cat": 0.669, "dog": 0.531}}
    return test_report.typed(results)


def curve(**scores: float) -> CurveResults:
    """A curve whose points are named after their budget in percent."""
    points = tuple(CurvePoint(int(k[1:]) / 100, 1.77 * int(k[1:]) / 100, 10**6, 0.1, v, 1.0) for k, v in scores.items())
    return CurveResults(
        1, "half", "flops", CurveSetting({}, "00", 0), "best.pt", "data.yaml", 320, "a CPU", True, "mAP50-95", 8,
        0.631, 1.77, 2_500_000, 0.005, points, (), 1.0,
    )  # fmt: skip


def test_an_accepted_run_gets_no_advice(results: dict[str, Any]) -> None:
    assert advice(replace(run(results), accepted=True), Path("run")) == []
    assert advice(replace(run(results), accepted=None), Path("run")) == []


def test_the_curve_names_the_budget_that_would_be_accepted(results: dict[str, Any]) -> None:
    lines = advice(run(results), Path("run"), curve(p90=0.630, p70=0.627, p50=0.615))
    assert lines[-1] == "70% of the FLOPs would be accepted before any training, by the curve below: `prune.flops=0.7`."
    assert "No budget" in advice(run(results), Path("run"), curve(p90=0.6))[-1]
    at_the_run_itself = advice(run(results), Path("run"), curve(p90=0.630, p49=0.629))
    assert not any("curve" in line for line in at_the_run_itself)


def test_without_a_curve_the_command_that_measures_it_is_named(results: dict[str, Any]) -> None:
    assert "`distill plan 'my run/recipe.yaml' --curve --out 'my run'`" in advice(run(results), Path("my run"))[-1]
    assert not any("--curve" in line for line in advice(run(results, prune=None), Path("run")))


@pytest.mark.parametrize(
    ("epochs", "scores", "says"),
    [
        (0, [], "Nothing was trained: `distill.epochs=50`."),
        (50, [0.5, 0.55, 0.59, 0.6], "Training was not over, mAP50-95 rose by 0.010 in the last quarter: `distill.epochs=100`."),
        (50, [0.5, 0.6, 0.6, 0.6], None),
        (10, [0.5, 0.6, 0.6, 0.6], "Training was short, 10 epochs: `distill.epochs=50`."),
    ],
)  # fmt: skip
def test_training_that_was_short_or_not_over(
    results: dict[str, Any], epochs: int, scores: list[float], says: str | None
) -> None:
    results["history"] = [{"epoch": i, "map50_95": score} for i, score in enumerate(scores, 1)]
    lines = advice(run(results, distill={"epochs": epochs, "losses": {}, "labels": 1.0}), Path("run"))
    assert (says in lines) if says else not any("raining" in line and "epochs=" in line for line in lines)


def test_repair_that_saw_few_of_the_images(results: dict[str, Any]) -> None:
    results["data"]["train_images"] = 2000
    lines = advice(run(results, repair={"images": 96}), Path("run"))
    assert "Repair saw 96 of 2000 training images: `repair.images=384`." in lines
    results["data"]["train_images"] = 96
    assert any("which is few" in line for line in advice(run(results), Path("run")))
    assert any("not repaired" in line for line in advice(run(results, repair=None), Path("run")))


def test_the_class_that_lost_most_is_named_if_it_is_one(results: dict[str, Any]) -> None:
    def lines(**teacher: float) -> list[str]:
        results["models"]["teacher"]["per_class"] = teacher
        return advice(run(results), Path("run"))

    assert any("in one class, dog (−0.059)" in line for line in lines(cat=0.67, dog=0.59))
    assert not any("in one class" in line for line in lines(cat=0.719, dog=0.581))  # 0.05 in each


def test_a_near_miss_is_called_one(results: dict[str, Any]) -> None:
    near = run(results)
    near = replace(near, models=near.models | {"student": replace(near.student, map50_95=0.6238)})
    assert advice(near, Path("run"))[0].startswith("The limit is missed by 0.002.")
    assert not advice(run(results), Path("run"))[0].startswith("The limit is missed")


def test_a_fall_that_is_none_is_not_called_one() -> None:
    layers = [Error("a", 0.2412, 0.0081, True), Error("b", 0.3, 0.3, False)]
    assert training.fell(layers) == "the median error of these fell from 24% to 0.81%"
    assert (
        training.fell([Error("a", 1e-6, 1e-7, True)]) == "the median error of these was less than 0.01% and stays there"
    )
    assert training.fell([Error("a", 0.1, 0.1, False)]).startswith("none of them was better for it")
    assert training.fell([Error("a", 0.01, 0.02, True)]) == "the median error of these rose from 1% to 2%"


def test_figures_that_differ_are_shown_to_differ() -> None:
    assert apart(0.09214, 0.09231) == ("0.0921", "0.0923")
    assert apart(0.09231, 0.09184) == ("0.0923", "0.0918") and apart(0.5, 0.6) == ("0.500", "0.600")
    assert [percent_text(x) for x in (0, 1e-6, 0.00034, 0.0123, 0.5, 10291.3)] == [
        "0%", "less than 0.01%", "0.034%", "1.2%", "50%", "1029130%",
    ]  # fmt: skip


def test_a_schedule_reads_as_words_with_units() -> None:
    values = {
        "epochs": 10, "batch": 8, "steps": 260, "optimizer": "AdamW", "lr": 1e-3, "lrf": 0.01, "warmup_steps": 13,
        "momentum": 0.9, "weight_decay": 5e-4, "bn_momentum": 0.03, "freeze_bn": False, "mosaic": 0.3, "close_mosaic": 2,
        "scale": 0.1, "translate": 0.05, "fliplr": 0.5, "averaged": 0.2, "val_every": 1,
    }  # fmt: skip
    assert training.schedule(values) == [
        ("length", "10 epochs, 260 steps of 8 images"),
        ("optimizer", "AdamW, weight decay 0.0005, first beta 0.9"),
        ("learning rate", "up to 1e-3 in 13 steps of warm-up, then down to 1e-5 by cosine"),
        ("BatchNorm", "statistics move by 3% a step"),
        (
            "augmentation",
            "scaled by up to ±10%, moved by up to 5% of the size, flipped in 50% of the cases, "
            + "mosaic of four images in 30% of the cases, but in the last 2 epochs",
        ),
        ("weights", "averaged over the last 20% of the steps so far"),
        ("validation", "after each epoch"),
    ]
    assert training.schedule({"epochs": 2, "lr": 3e-4}) == [("learning rate", "up to 3e-4")]
    assert training.schedule(None) == []
