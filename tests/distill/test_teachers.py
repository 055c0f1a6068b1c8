"""Teachers beside or in place of the original: how a recipe names them, what is refused, and whole runs with them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import distill
from distill.cli.main import main
from distill.comparison.arms import start_of
from distill.engine.pipeline import STAGES
from distill.engine.preflight import preflight
from distill.engine.stage import shared_stages
from distill.errors import DistillError
from distill.losses.spec import LossSpec, TeacherSpec
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.recipe.teachers import names_of
from distill.results.results import Results
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.yolov5.saving import save_original
from tests.distill.tiny_runs import HEAD
from tests.distill.yolo.originals import network
from tests.distill.yolo.test_match import permuted
from tests.distill.yolo.test_trainer import CFG, tiny, write_images

NAMES = {0: "square", 1: "disc"}
RUN = (
    HEAD
    + """
distill: {epochs: 2, losses: {score_bce: 1.0, box_iou: 1.0}, lr: 1e-3}
export: []
latency: {runs: 1}
pictures: 0
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a network to cut, and others that may teach it: none of them was trained."""
    root = tmp_path_factory.mktemp("teachers")
    write_images(root / "data")
    checkpoint.save(tiny(), root / "best.pt", names=NAMES, imgsz=64)
    big: Any = tiny(seed=1)
    big.names = NAMES
    checkpoint.save(permuted(big, [1, 0]), root / "big.pt", names={0: "disc", 1: "square"}, imgsz=96)
    save_original(network(nc=2), root / "anchors.pt", names=NAMES, imgsz=64)
    checkpoint.save(network(), root / "three.pt", names={0: "square", 1: "disc", 2: "star"}, imgsz=64)
    save_original(network("P6", nc=2), root / "p6.pt", names=NAMES, imgsz=64)
    (root / "tiny.yaml").write_text(RUN.replace("{root}", str(root)))
    return root


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained networks may teach."""
    monkeypatch.setattr("distill.engine.stages.teacher.MIN_TEACHER_MAP", -1.0)


def recipe(root: Path, *words: str) -> Recipe:
    return recipes.load(root / "tiny.yaml", words, files=True)


# --- what a recipe says ----------------------------------------------------------------------------------------------


def test_teachers_have_weights_and_losses_of_their_own_and_come_back_from_a_file(root: Path, tmp_path: Path) -> None:
    big, anchors = str(root / "big.pt"), str(root / "anchors.pt")
    assert recipe(root).taught_by == (TeacherSpec("original"),) and recipe(root).foreign == ()
    assert recipe(root, f"teacher={big}").taught_by == (TeacherSpec(big),)
    read = recipe(root, f"teachers={{original: 1, {big}: 2.5, {anchors}: {{losses: {{score_bce: 3}}}}}}")
    own = (LossSpec("score_bce", 3.0),)
    assert read.teachers == (TeacherSpec("original"), TeacherSpec(big, 2.5), TeacherSpec(anchors, 1.0, own))
    assert read.losses_of(read.teachers[1]) == read.distill.losses and read.losses_of(read.teachers[2]) == own
    (tmp_path / "again.yaml").write_text(recipes.to_yaml(read))
    assert recipes.load(tmp_path / "again.yaml") == read
    words = (f"teachers.{big}.weight=4", f"teachers.{big}.losses.kl=1", "teachers.original=0.5")
    assert recipe(root, *words).teachers == (
        TeacherSpec(big, 4.0, (LossSpec("kl", 1.0),)),
        TeacherSpec("original", 0.5),
    )


def test_columns_call_each_teacher_by_a_name_of_its_own() -> None:
    specs = [TeacherSpec(name) for name in ("original", "a/big.pt", "b/big.pt", "original.pt", "runs/1/student.pt")]
    assert names_of(specs, ["student"]) == ("original", "big", "big-2", "original-2", "student-2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("teachers: {orignal: 1}", "2:12: teachers.orignal: there is no orignal in {cwd}, did you mean 'original'?"),
        (
            "teachers: {{root}/bgi.pt: 1}",
            "2:12: teachers.{root}/bgi.pt: there is no {root}/bgi.pt, did you mean 'big.pt'?",
        ),
        ("teachers: {original: 0}", "2:22: teachers.original.weight: expected a number > 0, got 0"),
        ("teachers: {original: -1}", "2:22: teachers.original.weight: expected a number > 0, got -1"),
        ("teachers: {original: much}", "2:22: teachers.original.weight: expected a number > 0, got 'much'"),
        ("teachers: [original]", "2:11: teachers: expected a mapping of teachers to weights, got a list"),
        (
            "teachers: {original: {wieght: 1}}",
            "2:23: teachers.original: unknown key 'wieght': a teacher has weight and losses",
        ),
        (
            "teachers: {original: {losses: {score_bec: 1}}}",
            "2:32: teachers.original.losses.score_bec: unknown name 'score_bec', did you mean 'score_bce'?",
        ),
        (
            "teachers: {{root}/big.pt: 1, {root}/./big.pt: 1}",
            "2:11: teachers: two teachers are {root}/big.pt: leave one out",
        ),
        ("teachers: {{root}/best.pt: 1}", "2:1: teachers: {root}/best.pt is the network of model: call it original"),
        (
            "teachers: {original: 1, {root}/best.pt: 1}",
            "2:1: teachers: {root}/best.pt is the network of model: leave it out",
        ),
        ("teacher: {root}/best.pt", "2:1: teacher: {root}/best.pt is the network of model: give another"),
        ("teacher: {root}/bgi.pt", "2:10: teacher.checkpoint: there is no {root}/bgi.pt, did you mean 'big.pt'?"),
        (
            "teachers: {original: 1}\nteacher: {root}/big.pt",
            "2:1: teachers and teacher.checkpoint are both set: leave one out",
        ),
    ],
)
def test_a_wrong_teacher_is_one_line_with_its_place(root: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        f"model: {root}/best.pt\n{text}\ndata: {root}/data/data.yaml\nprune: {{flops: 0.5}}\n".replace(
            "{root}", str(root)
        )
    )
    with pytest.raises(DistillError) as caught:
        recipes.load(file, files=True)
    place = says.partition(":")[0]
    assert place and str(caught.value) == f"{file}:" + says.replace("{root}", str(root)).replace(
        "{cwd}", str(Path.cwd())
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["model=null", "teacher={train: {}, checkpoint: {root}/big.pt}"],
            "teacher.checkpoint and teacher.train are both set",
        ),
        (["model=null", "teacher.train={}", "teachers={original: 1}"], "teachers and teacher.train are both set"),
        (
            ["model=yolov5n.yaml", "prune=null"],
            "yolov5n.yaml starts from random weights, which teach nothing: give teacher=",
        ),
        (
            ["model=yolov5n.yaml", "teacher={root}/big.pt"],
            "random weights, and there is nothing to cut: give prune=null",
        ),
        (
            ["model=yolov5n.yaml", "prune=null", "teachers={original: 1, {root}/big.pt: 1}"],
            "starts from random weights, which teach nothing: leave original out of teachers",
        ),
        (["model=yolov5n.yaml", "teacher={root}/big.pt", "prune=null"], "random weights: give repair=null"),
    ],
)
def test_what_excludes_each_other_is_one_line(root: Path, words: list[str], says: str) -> None:
    with pytest.raises(DistillError) as caught:
        recipe(root, *(word.replace("{root}", str(root)) for word in words))
    assert says in str(caught.value) and "\n" not in str(caught.value)


# --- what is opened --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "three.pt",
            "teacher {root}/three.pt has other classes than {root}/best.pt (it has besides 'star'): give a teacher of ",
        ),
        (
            "p6.pt",
            "teacher {root}/p6.pt has cells of 8, 16, 32, 64 pixels and {root}/best.pt of 8, 16: their outputs have no ",
        ),
        ("data/data.yaml", "{root}/data/data.yaml"),
    ],
)
def test_a_network_that_cannot_teach_is_refused_before_anything_is_done(
    root: Path, name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("check", "run", "plan"):
        out = ["--out", str(tmp_path / "out")] if command == "run" else []
        assert main([command, str(root / "tiny.yaml"), f"teacher={root / name}", *out]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(says.replace("{root}", str(root))) and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_check_says_what_each_teacher_gives_and_what_is_left_out(root: Path) -> None:
    words = [
        f"teachers={{original: 1, {root}/big.pt: 2, {root}/anchors.pt: 1}}",
        "distill.losses.dfl_kl=1",
        "distill.losses.feature_pkd=1",
    ]
    checked = preflight(recipe(root, *words))
    original, big, anchors = checked.teachers
    assert [each.name for each in checked.teachers] == ["original", "big", "anchors"]
    assert [loss.name for loss in big.losses] == ["score_bce", "box_iou", "dfl_kl", "feature_pkd"]
    assert [loss.weight for loss in big.losses] == [2.0, 2.0, 2.0, 2.0] and not big.by_cell and anchors.by_cell
    assert [loss.name for loss in anchors.losses] == ["score_bce", "box_iou", "feature_pkd"]
    assert big.network is not None and big.network.names == NAMES and original.network is None
    assert checked.notes[0].startswith("teacher anchors: loss dfl_kl left out: the heads of both do not predict")
    assert checked.warnings[0].startswith(f"{root}/big.pt was trained at 96 pixels, and imgsz is 64")
    said = str(checked)
    assert (
        "teacher big" in said and "by the best box of each cell" in said and "features through 1x1 projectors" in said
    )


def test_a_network_of_random_weights_has_the_classes_of_the_data(root: Path) -> None:
    # yolov5n has three levels, and so has its teacher here
    checkpoint.save(permuted(_three_levels(), [1, 0]), root / "levels.pt", names={0: "disc", 1: "square"}, imgsz=96)
    words = ["model=yolov5n.yaml", f"teacher={root}/levels.pt", "prune=null", "repair=null", "imgsz=auto"]
    checked = preflight(recipe(root, *words))
    assert checked.teacher is not None and checked.teacher.names == NAMES and checked.recipe.size == 96
    assert "with random weights" in str(checked) and "imgsz 96, as levels.pt was trained" in str(checked)
    unlabelled = preflight(recipe(root, *words, f"data={root}/data/images/train"))
    assert unlabelled.teacher is not None and unlabelled.teacher.names == {0: "disc", 1: "square"}
    again = preflight(recipe(root, *words, "seed=1"))
    assert again.teacher is not None
    first, other = (next(each.teacher.model.parameters()) for each in (checked, again))
    assert not torch.equal(first, other)


def _three_levels() -> Any:
    from distill.yolo.checkpoint.build import build

    return build("yolov5n.yaml", NAMES, width=0.05)


# --- what runs share -------------------------------------------------------------------------------------------------


def test_runs_with_other_teachers_share_the_cut_and_the_repair(root: Path) -> None:
    plain, taught = recipe(root), recipe(root, f"teacher={root}/big.pt")
    shared = ["teacher", "cut", "repair"]
    assert [stage.name for stage in shared_stages(STAGES, plain, taught)] == shared
    assert [stage.name for stage in shared_stages(STAGES, taught, recipe(root, f"teacher={root}/anchors.pt"))] == shared
    assert start_of(taught, plain) == start_of(plain, plain)
    sparse = replace(recipe(root, "sparsify={epochs: 1, distill: true}"), teacher=taught.teacher)
    assert [stage.name for stage in shared_stages(STAGES, sparse, replace(sparse, teacher=plain.teacher))] == [
        "teacher"
    ]
    fresh = ["model=yolov5n.yaml", f"teacher={root}/big.pt", "prune=null", "repair=null"]
    assert not shared_stages(STAGES, recipe(root, *fresh), recipe(root, *fresh, "seed=1"))[:1]


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_two_teachers_teach_a_cut_network_and_a_killed_run_goes_on(root: Path, seeing: None, tmp_path: Path) -> None:
    teachers = (
        f"teachers={{original: 1.0, {root}/big.pt: {{weight: 0.5, losses: {{score_bce: 1.0, feature_pkd: 1.0}}}}}}"
    )

    def kill(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.run(root / "tiny.yaml", _mapping(teachers), out=tmp_path / "killed", on_epoch=kill)
    resumed = distill.resume(tmp_path / "killed")
    whole = distill.run(root / "tiny.yaml", _mapping(teachers), out=tmp_path / "whole")
    assert isinstance(resumed, Results) and resumed.history == whole.history
    states = [checkpoint.load(tmp_path / name / "student.pt").model.state_dict() for name in ("killed", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[0].keys() == tiny().state_dict().keys()  # no projector
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"original/score_bce", "original/box_iou", "big/score_bce", "big/feature_pkd"} <= set(columns)
    assert "big/box_iou" not in columns and whole.tuning is not None and set(whole.tuning.factors) <= set(columns)
    kept = json.loads((tmp_path / "whole" / "results.json").read_text())["teachers"]
    assert [(each["name"], each["copy"], each["file"]) for each in kept] == [
        ("big", "teachers/big.pt", f"{root}/big.pt")
    ]
    assert kept[0]["evaluation"]["map50_95"] is not None and kept[0]["params"] > 0 and kept[0]["gflops"] > 0
    for name in ("big.pt", "best.pt"):  # another network in the place of one that the run began with
        content = (root / name).read_bytes()
        checkpoint.save(tiny(seed=5), root / name, names=NAMES, imgsz=64)
        try:
            with pytest.raises(
                DistillError, match=rf"{name}: its weights are others than when the run in .*whole began"
            ):
                distill.resume(tmp_path / "whole")
        finally:
            (root / name).write_bytes(content)
    copy = checkpoint.load(tmp_path / "whole" / "teachers" / "big.pt")
    assert copy.names == NAMES
    assert whole.titles["teacher"] == "original" and "big" in str(whole) and whole.rows()[-1]["network"] == "big"
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "|  | big | original | pruned | repaired |" in report
    assert (
        "training against original and big and on the labels" in report or "trained against original and big" in report
    )


def test_a_network_of_random_weights_learns_from_a_large_one(root: Path, seeing: None, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(json.dumps(CFG))  # JSON is YAML
    words = {
        "model": str(tmp_path / "small.yaml"),
        "teacher": str(root / "big.pt"),
        "data": str(root / "data" / "data.yaml"),
        "imgsz": 64,
        "batch": 6,
        "device": "cpu",
        "distill.epochs": 1,
        "export": [],
        "latency.runs": 1,
        "pictures": 1,
    }
    results = distill.run("distill", words, out=tmp_path / "out")
    assert results.plan.flops_after == results.plan.flops_before and not results.cut and not results.taught_by_original
    assert results.schedule is not None and results.schedule["mosaic"] == 1.0 and not results.schedule["freeze_bn"]
    assert results.tuning is not None and results.tuning.search is None and results.titles["teacher"] == "start"
    assert results.teachers[0].name == "big" and set(results.history[0]) >= {
        "score_bce",
        "box_iou",
        "dfl_kl",
        "feature_pkd",
    }
    student = checkpoint.load(tmp_path / "out" / "student.pt")
    assert student.names == NAMES and len(student.model.state_dict()) == len(
        checkpoint.load(tmp_path / "out/teacher.pt").model.state_dict()
    )
    report = (tmp_path / "out" / "report.md").read_text()
    assert "|  | big | start |" in report and "of the FLOPs are left" not in report
    assert "of the FLOPs of big" in report and "taught by big" in report
    assert isinstance(distill.resume(tmp_path / "out"), Results)


def test_a_teacher_that_sees_nothing_is_refused_before_anything_is_cut(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill.engine.stages.teacher import TEACHER

    monkeypatch.setitem(
        vars(TEACHER), "judge", lambda session, evaluation: None
    )  # the network that is cut is no better
    assert (
        main(["run", str(root / "tiny.yaml"), f"teacher={root}/big.pt", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    )
    said = capsys.readouterr().err
    assert f"{root}/big.pt has nothing to teach" in said and not (tmp_path / "out" / "pruned.pt").exists()


def _mapping(word: str) -> dict[str, str]:
    key, _, value = word.partition("=")
    return {key: value}
