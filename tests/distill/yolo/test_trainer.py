"""Training inside ultralytics' loop: three uses, one trainer; killed, resumed, repeated; and what it leaves behind."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from distill.errors import DistillError, RunError
from distill.losses import WeightedLoss, resolve
from distill.losses.context import LossContext
from distill.losses.spec import TAKEN, Ramp
from distill.machine.console import Console
from distill.training.schedule import Schedule
from distill.yolo.data import dataset as datasets
from distill.yolo.data.images import build_dataset, calibration
from distill.yolo.families.outputs import distillation, label_terms, run, teacher_of
from distill.yolo.training.train import Trained, train
from tests.distill.yolo.originals import network

box_iou = resolve("box_iou")
score_bce = resolve("score_bce")

CFG = {
    "nc": 2,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "C3", [16]], [-1, 1, "Conv", [24, 3, 2]], [[3, 4], 1, "Detect", ["nc"]]],
}
# An average of tau steps or fewer is the last step, so that short tests see what training did.
SHORT = Schedule(epochs=3, batch=4, steps=9, lr=2e-3)
LONGER = replace(SHORT, epochs=15, batch=2, steps=90, lr=1e-2, warmup_steps=5, bn_momentum=0.3, scale=0.1, val_every=5)


def tiny(seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(copy.deepcopy(CFG), verbose=False).eval()
    # The network has been cut since it was built: from its yaml, one of another shape would come.
    model.yaml["head"][1] = [-1, 1, "Conv", [32, 3, 2]]
    return model


def write_images(folder: Path) -> Path:
    """Light squares and dark discs on noise: 12 images to train on, 6 to measure on."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image = random.integers(90, 150, (64, 64, 3), dtype=np.uint8)
            x, y, half = random.integers(16, 48, 2).tolist() + [int(random.integers(6, 12))]
            if index % 2:
                cv2.circle(image, (x, y), half, (10, 10, 10), -1)
            else:
                cv2.rectangle(image, (x - half, y - half), (x + half, y + half), (250, 250, 250), -1)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            row = f"{index % 2} {x / 64} {y / 64} {half / 32} {half / 32}\n"
            (folder / "labels" / split / f"{index}.txt").write_text(row)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [square, disc]\n")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def unlabelled(labelled: datasets.DataSet) -> datasets.DataSet:
    return datasets.load(labelled.path.parent / "images" / "train", names={0: "square", 1: "disc"})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks as small as these gain nothing from threads, and lose all to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def go(model: DetectionModel, data: datasets.DataSet, folder: Path, schedule: Schedule = SHORT, **options) -> Trained:
    quiet = Console(quiet=True)
    return train(model, data, schedule, **{"folder": folder, "console": quiet, "imgsz": 64, "device": "cpu"} | options)


class Interrupted(Exception):
    pass


class Interrupting(Console):
    """Ends a training where its last epoch begins."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def bar(self, label: str, total: int, unit: str = ""):
        if label == "epoch 3/3":
            raise Interrupted
        return super().bar(label, total, unit)


def weights(result: Trained) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in result.model.state_dict().values()])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory) -> Trained:
    return go(tiny(), labelled, tmp_path_factory.mktemp("trained"), LONGER)


def test_training_from_labels_learns_to_detect(trained):
    assert [row["epoch"] for row in trained.history] == list(range(1, 16))
    measured = {row["epoch"]: row["map50_95"] for row in trained.history if row["map50_95"] is not None}
    assert list(measured) == [5, 10, 15]
    assert trained.map50_95 == max(measured.values()) == measured[trained.best_epoch] > 0.1
    assert trained.history[-1]["lr"] < 0.1 * max(row["lr"] for row in trained.history)


def test_training_leaves_the_network_the_data_and_the_process_as_they_were(labelled, tmp_path):
    model, beside, level = tiny(), files(labelled.path.parent), LOGGER.level
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    go(model, labelled, tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (torch.get_num_threads(), LOGGER.level) == (threads, level)
    assert not torch.are_deterministic_algorithms_enabled()
    assert files(tmp_path) == {"run/args.yaml", "run/weights/last.pt", "run/weights/best.pt"}
    assert files(labelled.path.parent) == beside


def test_the_result_is_the_given_network_with_other_weights(labelled, tmp_path):
    model = tiny()
    result = go(model, labelled, tmp_path / "run", replace(SHORT, epochs=1, steps=3, bn_momentum=0.5)).model
    assert type(result) is DetectionModel and not result.training
    assert [(n, p.shape, p.dtype) for n, p in result.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in model.named_parameters()
    ]
    momenta = [[m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] for net in (model, result)]
    assert momenta[0] == momenta[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in result.modules())
    assert set(vars(result)) == set(vars(model)) and result.names == {0: "square", 1: "disc"}
    assert not any("distill" in type(value).__module__ for value in vars(result).values())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_as_they_are_and_weights_do_not(labelled, tmp_path, frozen):
    model = tiny()
    result = go(model, labelled, tmp_path / "run", replace(SHORT, epochs=1, steps=3, freeze_bn=frozen)).model
    before, after = model.state_dict(), result.state_dict()
    statistics = [name for name in before if "running" in name]
    assert all(torch.equal(before[name], after[name]) for name in statistics) == frozen
    assert not all(torch.equal(before[name], after[name]) for name in before if name.endswith("conv.weight"))


def test_distilling_without_labels_brings_the_student_nearer_and_measures_no_map(trained, unlabelled, tmp_path):
    teacher, student = trained.model, copy.deepcopy(trained.model)
    with torch.no_grad():
        for level in student.model[-1].cv3:  # it has forgotten what the classes look like
            level[-1].weight.zero_()
            level[-1].bias.zero_()
    task = distillation(
        student, [teacher_of(teacher, [WeightedLoss("bce", 1.0, score_bce), WeightedLoss("iou", 1.0, box_iou)])]
    )
    plan = replace(SHORT, epochs=6, steps=18, lr=2e-2, bn_momentum=0.0)
    result = go(student, unlabelled, tmp_path / "run", plan, task=task)
    assert (result.best_epoch, result.map50_95) == (6, None)
    assert result.history[0].keys() == {"epoch", "lr", "bce", "iou", "map50_95", "map50"}
    images = calibration(unlabelled.train + unlabelled.val, 12, 64)
    with torch.no_grad():
        start, end, aim = (run(model, images) for model in (student, result.model, teacher))
        assert score_bce(LossContext(images, end, aim)) < 0.7 * score_bce(LossContext(images, start, aim))
    assert all(torch.equal(a, b) for a, b in zip(task.student.parameters(), student.parameters(), strict=True))


def test_labels_and_teacher_together_are_all_in_the_history(labelled, tmp_path):
    student = tiny()
    task = distillation(student, [teacher_of(tiny(1), [WeightedLoss("bce", 2.0, score_bce)])], labels=0.5)
    row = go(student, labelled, tmp_path / "run", replace(SHORT, epochs=1, steps=3), task=task).history[0]
    assert row.keys() == {"epoch", "lr", "box_loss", "cls_loss", "dfl_loss", "bce", "map50_95", "map50"}


def test_a_loss_that_ends_keeps_its_column_and_a_resumed_run_does_not_miss_it(labelled, tmp_path):
    student = tiny()
    losses = [
        WeightedLoss("bce", 2.0, score_bce, Ramp(until=0.5, fade="cosine")),
        WeightedLoss("iou", 1.0, box_iou, Ramp(warmup=0.5)),
    ]
    whole = go(student, labelled, tmp_path / "whole", task=distillation(student, [teacher_of(tiny(1), losses)]))
    assert [row["bce"] != 0 for row in whole.history] == [True, True, False]
    assert all(row.keys() == whole.history[0].keys() >= {"bce", "iou"} for row in whole.history)
    with pytest.raises(Interrupted):
        go(
            student,
            labelled,
            tmp_path / "run",
            task=distillation(student, [teacher_of(tiny(1), losses)]),
            console=Interrupting(),
        )
    resumed = go(
        student, labelled, tmp_path / "run", task=distillation(student, [teacher_of(tiny(1), losses)]), resume=True
    )
    assert resumed.history == whole.history and torch.equal(weights(resumed), weights(whole))


def test_a_penalty_is_told_how_far_training_is_and_pulls(labelled, tmp_path):
    told = []

    def penalty(model: nn.Module, progress: float) -> torch.Tensor:
        told.append(progress)
        return 10 * sum(m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.BatchNorm2d))

    def scales(result: Trained) -> float:
        return sum(m.weight.abs().sum().item() for m in result.model.modules() if isinstance(m, nn.BatchNorm2d))

    pulled = go(tiny(), labelled, tmp_path / "a", penalty=penalty)
    free = go(tiny(), labelled, tmp_path / "b")
    assert told == pytest.approx([step / 9 for step in range(9)])
    assert scales(pulled) < scales(free) - 0.1
    assert "penalty" in pulled.history[0] and pulled.best_epoch == 3, "the last epoch, where the penalty has worked"


def test_the_same_seed_gives_the_same_weights(labelled, tmp_path):
    plan = replace(SHORT, epochs=2, steps=6, mosaic=0.5)
    runs = [go(tiny(), labelled, tmp_path / str(index), plan, seed=seed) for index, seed in enumerate((3, 3, 4))]
    first, second, other = runs
    assert torch.equal(weights(first), weights(second)) and first.history == second.history
    assert not torch.equal(weights(first), weights(other))


# Run as a program: it trains, and dies as `kill -9` would have it in the middle of the second epoch.
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_trainer as here

class Death(here.Console):
    @contextmanager
    def bar(self, label, total, unit=""):
        with super().bar(label, total, unit) as bar:
            advance, seen = bar.advance, []
            def fatal(n=1, note=""):
                seen.append(note)
                if label == "epoch 2/3" and len(seen) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                advance(n, note)
            bar.advance = fatal
            yield bar

data = here.datasets.load(sys.argv[2])
here.go(here.tiny(), data, Path(sys.argv[3]), console=Death(quiet=True))
"""


def test_a_killed_training_goes_on_after_its_last_epoch_as_if_nothing_had_been(labelled, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(labelled.path), str(tmp_path / "run")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=one_thread)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = go(tiny(), labelled, tmp_path / "run", resume=True)
    whole = go(tiny(), labelled, tmp_path / "whole")
    assert resumed.history == whole.history and resumed.best_epoch == whole.best_epoch
    assert torch.equal(weights(resumed), weights(whole))


class Losing(Console):
    """Takes an image away where the second epoch begins."""

    def __init__(self, image: Path) -> None:
        super().__init__(quiet=True)
        self.image = image

    def bar(self, label: str, total: int, unit: str = ""):
        if label == "epoch 2/3":
            self.image.unlink()
        return super().bar(label, total, unit)


def test_an_image_that_vanishes_is_one_line_and_training_goes_on_when_it_is_back(tmp_path):
    data = datasets.load(write_images(tmp_path / "data"))
    image = data.train[2]
    kept = image.read_bytes()
    with pytest.raises(
        RunError, match=f"{image.name}: this image cannot be read; it could when the data were checked$"
    ):
        go(tiny(), data, tmp_path / "run", console=Losing(image))
    done = torch.load(tmp_path / "run/weights/last.pt", weights_only=True)["progress"]["history"]
    image.write_bytes(kept)
    resumed = go(tiny(), data, tmp_path / "run", resume=True)
    assert len(done) == 1 and resumed.history[0] == done[0] and len(resumed.history) == 3


def test_resuming_a_finished_training_gives_its_result_again(labelled, tmp_path):
    first = go(tiny(), labelled, tmp_path / "run", resume=True)  # nothing to resume: begins
    stamp = (tmp_path / "run/weights/last.pt").stat().st_mtime_ns
    again = go(tiny(), labelled, tmp_path / "run", resume=True)
    assert (tmp_path / "run/weights/last.pt").stat().st_mtime_ns == stamp
    assert torch.equal(weights(first), weights(again)) and first.history == again.history


def test_a_damaged_or_foreign_state_is_refused(labelled, tmp_path):
    plan = replace(SHORT, epochs=1, steps=3)
    go(tiny(), labelled, tmp_path / "run", plan)
    other = DetectionModel({**copy.deepcopy(CFG), "head": [[[1, 2], 1, "Detect", ["nc"]]]}, verbose=False)
    last = tmp_path / "run/weights/last.pt"
    content = torch.load(last, weights_only=True)
    content["progress"]["stopped"] = False
    torch.save(content, last)
    with pytest.raises(DistillError, match="another network"):
        go(other, labelled, tmp_path / "run", SHORT, resume=True)
    last.write_bytes(b"no checkpoint")
    with pytest.raises(DistillError, match="damaged"):
        go(tiny(), labelled, tmp_path / "run", plan, resume=True)


def test_training_ends_when_patience_does(trained, labelled, tmp_path):
    still = replace(SHORT, epochs=9, steps=27, lr=1e-12, bn_momentum=0.0)
    result = go(trained.model, labelled, tmp_path / "run", still, patience=3)
    assert result.map50_95 > 0.1 and len(result.history) == 4 and result.best_epoch == 1
    again = go(trained.model, labelled, tmp_path / "run", still, patience=3, resume=True)
    assert again.history == result.history


def test_a_loss_that_teaches_nothing_and_one_that_explodes_end_the_run_by_name(labelled, tmp_path):
    student = tiny()
    task = distillation(
        student, [teacher_of(tiny(1), [WeightedLoss("silent", 1.0, lambda ctx: 0 * ctx.student.scores.sum())])]
    )
    with pytest.raises(DistillError, match="'silent' is zero"):
        go(student, labelled, tmp_path / "a", task=task)
    with pytest.raises(DistillError, match="became (nan|inf) in epoch 1: choose a smaller lr"):
        go(tiny(), labelled, tmp_path / "b", penalty=lambda model, progress: next(model.parameters()).sum() * torch.inf)


def test_what_a_loss_has_frozen_of_its_own_stays_as_it_is(labelled, tmp_path):
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.free = nn.Conv2d(2, 2, 1).requires_grad_(False), nn.Conv2d(2, 2, 1)

        def forward(self, ctx: LossContext) -> torch.Tensor:
            scores = ctx.student.scores.mT[..., None]  # (B, classes, A, 1)
            return self.free(self.fixed(scores)).square().mean()

    student, projected = tiny(), Projected()
    task = distillation(student, [teacher_of(tiny(1), [WeightedLoss("projected", 1.0, projected)])])
    go(student, labelled, tmp_path / "run", task=task)
    states = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=True)["states"]["learned"]
    assert torch.equal(states["0.fixed.weight"], projected.fixed.weight)
    assert not torch.equal(states["0.free.weight"], projected.free.weight)


@pytest.mark.parametrize("kind", ["anchors", "dfl"])
def test_no_loss_may_be_called_as_a_term_of_the_labels_is(labelled, kind):
    model = tiny() if kind == "dfl" else network("deep and wide", nc=2, boxes=2)
    loader = build_dataloader(build_dataset(labelled, "train", imgsz=64, batch=2, augment=False), 2, workers=0)
    batch = next(iter(loader))
    batch["img"] = batch["img"].float() / 255
    model.args = get_cfg()
    assert label_terms(model, run(model, batch["img"]), batch).keys() <= set(TAKEN)


def test_without_labels_and_without_a_teacher_there_is_nothing_to_learn(unlabelled, tmp_path):
    with pytest.raises(DistillError, match="no labels"):
        go(tiny(), unlabelled, tmp_path / "run")
    assert not (tmp_path / "run").exists()
