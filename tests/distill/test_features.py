"""`distill.features` in a recipe, checked before anything is done; and `distill ls features`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill
import prune
from distill.cli.main import main
from distill.engine.loss_check import LossCheck
from distill.engine.preflight import check_network
from distill.engine.teachers import open_teachers
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.distill.yolo.originals import NAMES, tiny

OWN = """
def both(ctx):
    "Squares."
    student, teacher = ctx.pair("model.4")
    return (student - teacher).square().mean() + ctx.student.scores.square().mean()

def said(ctx):
    student, teacher = ctx.pair("model.6")
    return (student - teacher).square().mean() + ctx.student.scores.square().mean()
said.reads = ("scores", "model.6")

def unreadable(ctx): ...
unreadable.reads = 3
"""


@pytest.fixture(scope="module")
def teacher() -> Detector:
    return Detector(tiny(), dict(NAMES), 64, Path("best.pt"), None)


def recipe(*words: str) -> Recipe:
    return replace(recipes.load("half", ["model=best.pt", "data=shapes", "prune.round_to=1", *words]), imgsz=64)


@pytest.fixture(scope="module")
def loss_check(teacher: Detector) -> LossCheck:
    """Runs losses between the network and a cut copy."""
    return check_network(recipe(), teacher)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distill.features=[neck, model.44]"], r"there is no module 'model\.44', did you mean 'model\.4'"),
        (
            ["distill.features=[model.6.cv1.conv]"],
            r"'model\.6\.cv1\.conv' is inside 'model\.6\.cv1', .*: name 'model\.6\.cv1'",
        ),
        (["distill.features=[model.9.m]"], r"'model\.9\.m' runs 3 times in one pass"),
        (["distill.features=[]"], r"loss 'feature_pkd' reads features, and distill\.features is empty"),
        (["distill.losses.feature_pkd.features=[model.99]"], r"no module 'model\.99'"),
        (["distill.losses.score_bce.features=[model.4]"], "loss 'score_bce' reads scores, quality and no others"),
        (
            ["distill.losses.feature_fgd=1", "distill.losses.feature_fgd.features=[model.1]"],
            "'model.1' has a grid of 16x16",
        ),
        (
            ["distill.losses={{root}/own.py:both: 1}"],
            r"features at 'model\.4'.*there are neck; distill\.features lists",
        ),
        (["distill.losses={{root}/own.py:unreadable: 1}"], "loss 'unreadable': its `reads` is a list of words"),
        (["distill.losses={{root}/own.py:both: {features: [model.4]}}"], None),
        (["distill.losses={{root}/own.py:said: 1}"], None),
        (["distill.features=[neck, model.4, model.6.cv1, model.9, model.12]"], None),
    ],
)
def test_points_are_checked_before_anything_is_done(
    teacher: Detector, loss_check: LossCheck, tmp_path: Path, words: list[str], says: str | None
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    wanted = recipe(*(word.replace("{root}", str(tmp_path)) for word in words))
    if says is None:
        loss_check.run(wanted, open_teachers(wanted, teacher), None)
        return
    with pytest.raises(DistillError, match=says) as error:
        loss_check.run(wanted, open_teachers(wanted, teacher), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.4.cv4", "model.9.m"])
def test_points_of_a_network_that_is_not_cut_are_checked_too(teacher: Detector, name: str) -> None:
    wanted = recipe("prune=null", f"distill.features=[{name}]")
    with pytest.raises(DistillError, match=f"features: .*'{name}'"):
        check_network(wanted, teacher).run(wanted, open_teachers(wanted, teacher), None)


@pytest.fixture(scope="module")
def folder(teacher: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and the plan of a run that has cut it."""
    root = tmp_path_factory.mktemp("features")
    checkpoint.save(copy.deepcopy(teacher.model), root / "best.pt", names=NAMES, imgsz=64)
    graph = prune.trace(teacher.model, torch.zeros(1, 3, 64, 64), adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.4, round_to=1)
    (root / "plan.json").write_text(plan.to_json())
    return root


def test_the_features_of_a_checkpoint_and_what_a_plan_keeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = distill.features(folder / "best.pt", plan=folder)
    plan = prune.PrunePlan.from_json((folder / "plan.json").read_text())
    by_point = {row.point: row for row in rows}
    block = by_point["model.4"]
    assert (block.module, block.height, block.stride, block.kept) == ("C2f", 8, 8, len(plan.keep["model.4.cv2.conv"]))
    assert block.kept is not None and block.kept < block.channels
    assert [(row.module, row.stride) for row in rows if row.point == "neck"] == [
        ("level 0", 8),
        ("level 1", 16),
        ("level 2", 32),
    ]
    assert not {"model.22", "model.4.cv1.conv", "model.4.cv1.bn", "model.9.m"} & by_point.keys()
    assert main(["ls", "features", f"model={folder}/best.pt", f"plan={folder}/plan.json"]) == 0
    text = capsys.readouterr().out
    assert text == f"{rows}\n" and max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].split() == ["feature", "module", "channels", "kept", "grid", "stride"]
    assert main(["ls", "features", f"model={folder}/best.pt", "imgsz=128"]) == 0
    assert "kept" not in (text := capsys.readouterr().out) and "16x16" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "model is not set: give model=best.pt"),
        (["model={root}/nix.pt"], "there is no"),
        (["model={root}/best.pt", "pln=x"], "unknown key 'pln', did you mean 'plan'?"),
        (["model={root}/best.pt", "plan={root}/best.pt"], "best.pt: "),
        (["model={root}/best.pt", "plan={root}/empty"], "give the folder of a run that has cut its network"),
        (["model={root}/best.pt", "plan={root}/other.json"], "the plan is for another model"),
    ],
)
def test_bad_words_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    text = (folder / "plan.json").read_text()
    (folder / "other.json").write_text(text.replace('"params_before": ', '"params_before": 1'))
    assert main(["ls", "features", *(word.replace("{root}", str(folder)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
