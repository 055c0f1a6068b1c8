"""Training and measuring classifiers: a run that was interrupted ends alike, and figures are timm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import accuracy

from distill.classifiers import data as datasets
from distill.classifiers import upstream
from distill.classifiers.data import VAL, ImageSet
from distill.classifiers.judge import Judge, measured, predict
from distill.classifiers.training import Bench, train, train_loader
from distill.errors import DistillError
from distill.machine.console import Console
from distill.training.schedule import Schedule
from distill.training.tuning import Trials
from tests.distill.classifiers.colours import SIZE, build, write

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=2, batch=4, steps=8, lr=2e-3, scale=0.1, translate=0.05, mosaic=None)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return datasets.load(write(tmp_path_factory.mktemp("colours")))


def go(data: ImageSet, folder: Path, schedule: Schedule = SCHEDULE, **options: Any) -> Any:
    return train(
        build(), data, schedule, folder=folder, console=Console(quiet=True), imgsz=SIZE, device="cpu", **options
    )


class Interrupted(Exception):
    """The process ends."""


def test_a_training_that_was_interrupted_goes_on_as_if_nothing_had_been(colours: ImageSet, tmp_path: Path) -> None:
    whole = go(colours, tmp_path / "whole")

    def stop(row: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        go(colours, tmp_path / "parts", on_epoch=stop)
    resumed = go(colours, tmp_path / "parts", resume=True)
    assert [row["epoch"] for row in resumed.history] == [1, 2] and resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert {"epoch", "lr", "cls", "top1", "top5"} == set(whole.history[0])
    assert whole.history[1]["lr"] < whole.history[0]["lr"] <= SCHEDULE.lr


def test_a_network_learns(colours: ImageSet, tmp_path: Path) -> None:
    longer = Schedule(epochs=6, batch=4, steps=24, lr=3e-3, scale=0.1, translate=0.05, averaged=0.2, mosaic=None)
    trained = go(colours, tmp_path / "run", longer)
    assert trained.history[-1]["cls"] < trained.history[0]["cls"] and trained.top1 >= 0.75


def test_a_short_schedule_varies_images_less(colours: ImageSet) -> None:
    config = upstream.input_of(build(), SIZE)
    transforms = [str(train_loader(colours, each, config).dataset.transform) for each in (SCHEDULE, Schedule(2, 4, 8))]
    assert "scale=(0.81, 1.0)" in transforms[0].replace("0.8100", "0.81") and "scale=(0.08, 1.0)" in transforms[1]


def test_top_1_and_top_5_are_timms(colours: ImageSet) -> None:
    make = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(50, 8, generator=make), torch.randint(0, 8, (50,), generator=make)
    found = measured(logits.topk(5).indices, targets, [str(number) for number in range(8)])
    first, fifth = accuracy(logits, targets, topk=(1, 5))
    assert found.top1 == pytest.approx(first.item() / 100) and found.top5 == pytest.approx(fifth.item() / 100)
    assert found.yardstick == ("top-1", found.top1) and found.figures.startswith("top-1 0.")
    share = sum(found.per_class[str(n)] * int((targets == n).sum()) for n in range(8)) / 50
    assert share == pytest.approx(found.top1)


def test_a_judge_measures_against_labels_and_the_teacher(colours: ImageSet) -> None:
    teacher, other = build(), build(seed=5)
    judge = Judge(lambda: teacher, colours, Console(quiet=True), imgsz=SIZE, batch=3, device=CPU)
    assert judge.evaluate(teacher).agreement == 1.0
    found = judge.evaluate(other)
    ours, theirs = (predict(each, colours, SIZE, 5, CPU)[:, 0] for each in (other, teacher))
    assert found.agreement == pytest.approx((ours == theirs).float().mean().item())
    assert found.top1 == pytest.approx((ours == torch.tensor(colours.classes[VAL])).float().mean().item())
    assert found.top5 is None and not other.training


def test_without_classes_agreement_is_the_figure(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    data = datasets.load(folder / "train")
    assert not data.labelled
    judge = Judge(build, data, Console(quiet=True), imgsz=SIZE, batch=4, device=CPU)
    assert judge.evaluate(build()).yardstick == ("agreement with the teacher", 1.0)
    with pytest.raises(DistillError, match="no classes, and training without a teacher needs them"):
        go(data, tmp_path / "run")


def test_trials_draw_the_same_batches_and_leave_no_trace(colours: ImageSet) -> None:
    bench = Bench(colours, upstream.input_of(build(), SIZE))
    trials = Trials(bench, SCHEDULE, SIZE, CPU, seed=3)
    assert torch.equal(trials.example_images(), trials.example_images())
