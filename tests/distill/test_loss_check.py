"""Every loss once forward and back between the networks of a recipe, cut as far as it says, before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.cli.main import main
from distill.engine.preflight import check_network
from distill.engine.teachers import open_teachers
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets
from tests.distill.yolo.test_trainer import tiny, write_images

LOSSES = """
calls = []

def whole(ctx):
    pairs = zip(ctx.student.features, ctx.teacher.features)
    return sum((student - teacher).square().mean() for student, teacher in pairs)

def detached(ctx):
    return whole_of(ctx).detach()

def whole_of(ctx):
    return sum((student - teacher).square().mean() for student, teacher in ctx.features())

def of_labels(ctx):
    return whole_of(ctx) * len(ctx.targets["cls"])

def of_classes(ctx):
    return ctx.student.scores[..., 1].mean()

def counted(ctx):
    calls.append(ctx)
    return whole_of(ctx)
"""
CUT = ("prune.flops=0.3", "prune.round_to=1", "imgsz=64", "export=[]")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loss_check")
    write_images(root / "data")
    (root / "mine.py").write_text(LOSSES)
    checkpoint.save(tiny(), root / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    return root


def words(here: Path, *losses: str) -> list[str]:
    return [f"data={here}/data/data.yaml", *CUT, f"distill.losses={{{', '.join(f'{each}: 1' for each in losses)}}}"]


def recipe(here: Path, *losses: str, more: tuple[str, ...] = ()) -> Recipe:
    return recipes.load("half", [f"model={here}/best.pt", *words(here, *losses), *more])


def check_losses_of(wanted: Recipe, data: str | None = None) -> None:
    teacher = checkpoint.load(str(wanted.model))
    images = None if data is None else datasets.load(data, teacher.names)
    check_network(wanted, teacher).run(wanted, open_teachers(wanted, teacher), images)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("whole", "loss 'whole' failed at mine.py:6: RuntimeError: The size of tensor a "),
        ("detached", "loss 'detached' has no gradient to the student: it detaches it, or does not use it\n"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run", "compare"])
def test_what_would_fail_after_the_cut_fails_before_anything(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str, command: str
) -> None:
    out = ["--out", str(tmp_path / "out")] if command in ("run", "compare") else []
    arms = ["--arms", "ours"] if command == "compare" else []
    given = [f"model={here}/best.pt", *words(here, "box_iou", f"{here}/mine.py:{name}")]
    assert main([command, "half", *given, *out, *arms, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.removeprefix("arm ours: ").startswith(says) and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_not_cut_has_all_channels(here: Path) -> None:
    check_losses_of(recipe(here, "box_iou", f"{here}/mine.py:whole", more=("prune=null",)))


def test_every_shipped_loss_passes_with_and_without_a_cut(here: Path) -> None:
    names = (
        "score_bce score_dist box_iou box_giou box_l1 box_bckd dfl_kl feature_pkd feature_cwd feature_at feature_fgd"
    )
    names += " feature_mgd crosskd pseudo_labels ultralytics"
    for more in ((), ("prune=null",)):
        check_losses_of(recipe(here, *names.split(), more=more), f"{here}/data/data.yaml")


def test_labels_are_there_only_where_the_training_has_some(here: Path) -> None:
    wanted = recipe(here, f"{here}/mine.py:of_labels")
    check_losses_of(wanted)
    check_losses_of(wanted, f"{here}/data/data.yaml")
    fails = r"^loss 'of_labels' failed at mine.py:15: TypeError: 'NoneType' object is not subscriptable$"
    with pytest.raises(DistillError, match=fails):
        check_losses_of(wanted, f"{here}/data/images/train")
    with pytest.raises(DistillError, match=fails):  # in a batch that mixes both
        check_losses_of(recipe(here, f"{here}/mine.py:of_labels", more=(f"unlabelled={here}/data/images/val",)))


def test_a_network_that_is_trained_first_has_the_classes_of_the_data(here: Path) -> None:
    train = ["model=null", "teacher.train={model: yolov5n.yaml, width: 0.1}"]
    for name, fails in (("of_classes", False), ("detached", True)):
        wanted = recipes.load("half", [*train, *words(here, f"{here}/mine.py:{name}")])
        loss_check, teachers = check_network(wanted, None), open_teachers(wanted, None)
        if fails:
            with pytest.raises(DistillError, match="has no gradient"):
                loss_check.run(wanted, teachers, None)
        else:
            loss_check.run(wanted, teachers, None)


def test_other_teachers_take_part(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tiny(seed=1), tmp_path / "big.pt", names={0: "square", 1: "disc"}, imgsz=64)
    given = [f"model={here}/best.pt", f"teachers={{original: 1, {tmp_path}/big.pt: 1}}"]
    for name, status in (("counted", 0), ("detached", 2)):
        assert main(["check", "half", *given, *words(here, f"{here}/mine.py:{name}"), "--quiet"]) == status
    assert capsys.readouterr().err == (
        "loss 'original/detached' has no gradient to the student: it detaches it, or does not use it\n"
    )


@pytest.fixture
def opened(here: Path) -> Iterator[tuple[Recipe, Detector]]:
    wanted = recipe(here, f"{here}/mine.py:counted", "feature_mgd")
    yield wanted, checkpoint.load(str(wanted.model))


def test_the_same_losses_are_run_once_and_the_runs_random_numbers_stay(opened: tuple[Recipe, Detector]) -> None:
    wanted, teacher = opened
    teachers, loss_check = open_teachers(wanted, teacher), check_network(wanted, teacher)
    calls = teachers[0].losses[0].call.func.__globals__["calls"]  # type: ignore[attr-defined]
    before, count = torch.random.get_rng_state(), len(calls)
    weights = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    loss_check.run(wanted, teachers, None)
    loss_check.run(wanted, teachers, None)
    assert len(calls) == count + 1 and torch.equal(torch.random.get_rng_state(), before)
    ctx = calls[-1]
    student, whole = ctx.student.features[0].shape[1], ctx.teacher.features[0].shape[1]
    assert student < whole and ctx.images.shape == (2, 3, 64, 64)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.model.state_dict().items())
    loss_check.run(wanted, [replace(teachers[0], specs=teachers[0].specs[:1])], None)
    assert len(calls) == count + 2
