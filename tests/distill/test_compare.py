"""A comparison from end to end: what is shared, killed and gone on with, and whether its table says what its runs say."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel

from distill import losses
from distill.cli.main import main
from distill.comparison import arms
from distill.comparison import runner as compare
from distill.engine import pipeline
from distill.engine.stages.cut import CUT
from distill.engine.stages.select import SELECT
from distill.errors import DistillError
from distill.losses.spec import LossSpec
from distill.machine.console import Console
from distill.recipe import load as recipes
from distill.recipe.schema import Latency
from distill.report import compare as report
from distill.report import compare_facts as facts
from distill.results.comparison import (
    Arm,
    ArmNetwork,
    ArmRun,
    ComparedNetwork,
    ComparisonResults,
    FailedRun,
    Setting,
    TrainingSize,
)
from distill.results.steps import DataFacts
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.families.outputs import distillation, teacher_of
from distill.yolo.families.yolov5.saving import save_original
from distill.yolo.training.train import train
from tests.distill.tiny_runs import HEAD
from tests.distill.yolo.originals import network
from tests.distill.yolo.test_trainer import CFG, LONGER, tiny, write_images

RECIPE = (
    HEAD
    + """
distill: {epochs: 1, losses: {score_bce: 2.0, feature_pkd: 1.0}}
"""
)
STOCK = LossSpec("ultralytics", 1.0)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its images and its teacher."""
    root = tmp_path_factory.mktemp("compare")
    data = write_images(root / "data")
    options: dict[str, Any] = {"console": Console(quiet=True), "imgsz": 64, "device": "cpu"}
    taught = train(tiny(), datasets.load(data), LONGER, folder=root / "taught", **options)
    checkpoint.save(taught.model, root / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    (root / "tiny.yaml").write_text(RECIPE.replace("{root}", str(root)))
    return root


class Watch:
    """What the pipeline was asked for, by folder; it is killed when a student is selected for the second time."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.cut, self.chosen = 0, 0
        self.begin = pipeline.run
        watched = {CUT: self.cutting, SELECT: self.selecting}
        self.stages = tuple(replace(stage, work=watched.get(stage, stage.work)) for stage in pipeline.STAGES)

    def run(self, recipe: Any, folder: Any, console: Any) -> Any:
        self.runs.append(folder.path.name if "base" in folder.path.name else "/".join(folder.path.parts[-2:]))
        return self.begin(recipe, folder, console)

    def cutting(self, *args: Any) -> Any:
        self.cut += 1
        return CUT.work(*args)

    def selecting(self, *args: Any) -> Any:
        self.chosen += 1
        if self.chosen == 2:
            raise KeyboardInterrupt
        return SELECT.work(*args)


@pytest.fixture(scope="module")
def done(here: Path) -> Iterator[tuple[Path, Watch]]:
    """A comparison that was killed after its first training and went on, and what was done for it."""
    watch, out = Watch(), here / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", watch.run)
        patch.setattr(pipeline, "STAGES", watch.stages)
        words = ["--arms", "ultralytics,ours", "--seeds", "2", "--lrs", "1e-3,1e-2", "--out", str(out), "--quiet"]
        assert main(["compare", str(here / "tiny.yaml"), *words]) == 130
        killed = out / "ultralytics" / "seed-0-lr-0.001" / "stages.json"
        before = json.loads(killed.read_text())["stages"]["train"]
        watch.runs.append("killed")
        assert main(["compare", "--resume", str(out), "--quiet"]) == 0
        assert json.loads(killed.read_text())["stages"]["train"] == before, "a finished stage is not done again"
    yield out, watch


def test_runs_side_by_side_come_to_what_they_come_to_one_after_the_other(
    done: tuple[Path, Watch], here: Path, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", {(run["arm"], run["seed"], run["lr"]): run for run in content(done[0])["runs"]}
    words = ["--arms", "ours", "--seeds", "1", "--lrs", "1e-3", "--jobs", "2", "--out", str(out), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", None)  # every run is done in another process
        assert main(["compare", str(here / "tiny.yaml"), *words]) == 0
    (run,) = content(out)["runs"]
    same = ("start", "map50_95", "history", "schedule", "folder")
    assert [run[key] for key in same] == [alone["ours", 0, 1e-3][key] for key in same]
    assert {file.name for file in (out / run["folder"]).glob("*.pt")} == {"student.pt"}


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "compare.json").read_text())


def test_what_arms_share_is_done_once_and_nothing_twice(done: tuple[Path, Watch]) -> None:
    out, watch = done
    chosen = {arm: f"{lr:g}" for arm, lr in content(out)["chosen"].items()}
    first = [f"{arm}/seed-0-lr-{lr}" for arm in ("ultralytics", "ours") for lr in ("0.001", "0.01")]
    second = [f"{arm}/seed-1-lr-{chosen[arm]}" for arm in ("ultralytics", "ours")]
    assert watch.runs == ["base-1-seed-0", first[0], "killed", *first, "base-1-seed-1", *second]
    assert watch.cut == 2, "once a seed"
    records = {name: json.loads((out / name / "stages.json").read_text())["stages"] for name in (*first, *second)}
    for name, record in records.items():
        seed = name.partition("/seed-")[2][0]
        base = json.loads((out / f"base-1-seed-{seed}" / "stages.json").read_text())["stages"]
        shared = list(base)[: list(base).index("select")]
        assert "evaluate repaired" in shared and {key: record[key] for key in shared} == {
            key: base[key] for key in shared
        }
        assert {file.name for file in (out / name).glob("*.pt")} == {"student.pt"}
        assert not (out / name / "training").exists()


@pytest.mark.parametrize(("mean", "counts"), [(0.9, True), (0.0, False)])
def test_what_training_came_to_may_be_the_mean_of_before_and_after(
    done: tuple[Path, Watch], tmp_path: Path, mean: float, counts: bool
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    row = content(out)["runs"][0]
    file = out / row["folder"] / "results.json"
    results = json.loads(file.read_text())
    results["trained"]["map50_95"] = 0.5
    results["average"] = {"judged_by": "mAP50-95", "averaged": mean, "map50": 0.95, "trained": 0.5, "taken": False}
    file.write_text(json.dumps(results))
    assert main(["compare", "--resume", str(out), "--quiet"]) == 0
    now = content(out)["runs"][0]
    trained = results["trained"]
    assert (now["map50_95"], now["map50"]) == ((mean, 0.95) if counts else (0.5, trained["map50"]))


def test_the_table_says_what_the_runs_say(done: tuple[Path, Watch]) -> None:
    out, _ = done
    comparison = content(out)
    assert len(comparison["runs"]) == 6
    for row in comparison["runs"]:
        run = json.loads((out / row["folder"] / "results.json").read_text())
        mean = run["average"] or {"averaged": 0.0}
        assert row["map50_95"] == max(run["trained"]["map50_95"], mean["averaged"])
        assert row["lr"] == run["schedule"]["lr"]
        assert row["start"] == run["models"]["repaired"]["map50_95"] and row["seed"] == run["seed"]
        assert row["network"]["gflops"] == run["models"]["student"]["gflops"]
        assert (
            row["network"]["params"] == run["models"]["student"]["params"] and row["network"]["model"] == run["model"]
        )
        assert row["history"] == [epoch["map50_95"] for epoch in run["history"]]
        assert row["seconds_per_step"] > 0 and row["lr_tried"] == row["lr"] and row["labels"]
        assert set(run["history"][0]) >= {"ultralytics" if row["arm"] == "ultralytics" else "score_bce"}
    scores = {}
    for arm in ("ultralytics", "ours"):
        tried = {row["lr"]: row["map50_95"] for row in comparison["runs"] if row["arm"] == arm and row["seed"] == 0}
        assert len(tried) == 2 and comparison["chosen"][arm] == max(tried, key=lambda lr: tried[lr])
        runs = [row for row in comparison["runs"] if row["arm"] == arm and row["lr"] == comparison["chosen"][arm]]
        scores[arm] = np.array([row["map50_95"] for row in runs])
        assert [row["seed"] for row in runs] == [0, 1]
    results = ComparisonResults.read(out)
    stock, ours = facts.standings(results)
    difference = scores["ultralytics"] - scores["ours"]
    assert stock.name == "ultralytics" and stock.differences == pytest.approx(list(difference)) and not ours.differences
    table = facts.comparison(results)
    assert table is not None
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["mAP50-95"] == f"{scores['ultralytics'].mean():.3f} ± {scores['ultralytics'].std(ddof=1):.3f}"
    assert cells["against ours"].endswith(f" ± {difference.std(ddof=1):.3f}")
    t = abs(difference.mean()) / (difference.std(ddof=1) / 2**0.5)
    assert cells[""] == ("within noise" if t <= 12.71 else "beyond noise")
    assert (cells["seeds"], cells["labels"]) == ("2", "yes")


def test_it_is_written_and_printed(done: tuple[Path, Watch], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = done
    for name in ("compare.md", "compare.html", "plots/compare.png", "recipe.yaml", "log.txt"):
        assert (out / name).is_file(), name
    row = facts.comparison(ComparisonResults.read(out)).rows[0]  # type: ignore[union-attr]
    assert f"| {row[0]} | {row[1]} | {row[2]} |" in (out / "compare.md").read_text()
    page = (out / "compare.html").read_text()
    assert row[2] in page and page.count("<svg") == 2 and "src=" not in page and "<script" not in page
    (out / "compare.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "compare.html").read_text() == page
    capsys.readouterr()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/seed-*/results.json")}
    assert main(["compare", "--resume", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.isascii() and row[2].replace("±", "+-") in said and "what a paired t-test (95 %) takes for none" in said
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/seed-*/results.json")} == before


def test_its_folder_is_not_that_of_a_run_and_its_runs_are(
    done: tuple[Path, Watch], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = done
    assert main(["run", "--resume", str(out)]) == 2
    assert capsys.readouterr().err == f"{out} is a comparison: distill compare --resume {out}\n"
    assert main(["compare", str(here / "tiny.yaml"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.endswith(f"or go on with it: distill compare --resume {out}\n")
    one = out / "ours" / "seed-0-lr-0.001"
    assert main(["compare", "--resume", str(one)]) == 2
    assert capsys.readouterr().err == f"{one} is a run and no comparison: distill run --resume {one}\n"
    before = (one / "student.pt").read_bytes()
    assert main(["run", "--resume", str(one), "--quiet"]) == 0
    assert (one / "student.pt").read_bytes() == before


# --- refusals, each before anything is written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--arms", "ours,finetun"], "--arms: no arm 'finetun', did you mean 'finetune'?"),
        (["--arms", "ours,no-score_bec"], "--arms: no arm 'no-score_bec', did you mean 'no-score_bce'?"),
        (["--arms", "ours,finetune,ours"], "--arms: ours is given twice"),
        (["--seeds", "0"], "--seeds 0: give at least 1; two or more tell how much of a difference is noise"),
        (["--lrs", "1e-3,fast"], "--lrs: expected different learning rates above 0, as in 1e-4,3e-4, got '1e-3,fast'"),
        (["--lrs", "1e-3,1e-3"], "--lrs: expected different learning rates above 0, as in 1e-4,3e-4, got '1e-3,1e-3'"),
        (["distill.epochs=0"], "distill.epochs is 0, so no arm would be trained: give distill.epochs=10"),
        (["prune=null"], "prune is null, so there is nothing to recover: give prune.flops=0.5"),
        (["--arm", "ours=seed=1"], "--arm ours: there is an arm of that name already: choose another"),
        (
            ["--arm", "mine=distill.lables=0"],
            "arm mine: command line: unknown key 'distill.lables', did you mean 'distill.labels'?",
        ),
        (
            ["--arms", "ours,no-objectness_bce", "distill.losses.objectness_bce=1"],
            "arm no-objectness_bce: this head has no objectness_bce anyway: leave the arm out",
        ),
        (["--arm", "peer=model=nosuch.pt"], "arm peer: nosuch.pt: no such checkpoint"),
        (["--arm", "mine=distill.epochs=0"], "arm mine: distill.epochs is 0, so it would not be trained"),
        (["--out", "here"], "here is there already: choose another --out"),
        (["--resume"], "nothing to go on with: there is no runs/compare-tiny-1 here; --out names another folder"),
        (
            ["data={data}/images/train"],
            "{data}/images/train: no labels, and arms are compared by mAP or top-1: give data with labels",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str],
    error: str,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").touch()
    filled = [word.format(data=here / "data") for word in words]
    assert main(["compare", str(here / "tiny.yaml"), *filled, "--quiet"]) == 2
    assert capsys.readouterr().err == error.format(data=here / "data") + "\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "mine.txt"]


def test_an_anchor_head_is_no_pupil_of_ultralytics(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network("deep and wide", nc=2, boxes=2)
    save_original(model, tmp_path / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    words = [str(here / "tiny.yaml"), f"model={tmp_path / 'best.pt'}", "--quiet"]
    assert main(["compare", *words, "--out", str(tmp_path / "out"), "--arms", "ours,ultralytics"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("arm ultralytics: ") and "own distillation cannot train an anchor head" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()
    assert main(["check", *words, "distill.losses={ultralytics: 1}"]) == 2
    assert "cannot train an anchor head" in capsys.readouterr().err
    # Nobody has named it: it is left out, and the others are compared.
    unnamed = arms.plan(recipes.load(here / "tiny.yaml", words[1:2]))
    found = compare.possible(unnamed, console := Told())
    assert [arm.name for arm in found.arms] == [name for name in arms.DEFAULT if name != "ultralytics"]
    checking, checked, *lines = console.lines  # the bars over the images
    assert checking.startswith("checking train 12/12 images") and checked.startswith("checking val 6/6 images")
    assert [line.partition(": ")[0] for line in lines] == ["arm ultralytics left out"]
    assert console.known["size"] == "imgsz 64, as given" and console.known["family"].startswith("the original")
    assert compare.possible(arms.plan(recipes.load(here / "tiny.yaml")), console).arms == unnamed.arms


class Told(Console):
    """A console that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.known: dict[str, str] = {}

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        self.known |= dict(rows)

    def line(self, text: str = "", style: str = "") -> None:
        self.lines.append(text)


def test_an_arm_that_fails_does_not_take_the_others_with_it(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("def nothing(ctx):\n    return 0 * ctx.student.scores.sum()\n")
    bad = f"bad='distill.losses={{{tmp_path}/bad.py:nothing: 1}}' distill.labels=0"
    words = ["--arms", "ours", "--arm", bad, "--seeds", "2", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["compare", str(here / "tiny.yaml"), "distill.lr=1e-3", *words]) == 2
    said = capsys.readouterr()
    assert said.err.endswith(
        "arm bad has no result with seed 0: loss 'nothing' is zero in each of the first 3 batches\n"
    )
    assert "Traceback" not in said.err and "\nours " in said.out
    made = content(tmp_path / "out")
    assert [(row["arm"], row["seed"]) for row in made["runs"]] == [("ours", 0), ("ours", 1)]
    assert [(row["arm"], row["seed"]) for row in made["failed"]] == [("bad", 0)]
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "bad failed with seed 0, lr 1e-3: loss 'nothing' is zero" in markdown and "2 runs are missing" in markdown


def test_an_arm_may_train_another_network_from_the_start_or_by_another_teacher(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**CFG, "head": [[-1, 1, "C3", [8]], [-1, 1, "Conv", [16, 3, 2]], CFG["head"][2]]}
    (tmp_path / "small.yaml").write_text(json.dumps(small))
    net = f"model={tmp_path}/small.yaml prune=null repair=null"
    ways = [f"small={net} distill.losses={{}}", f"taught={net} teacher={here}/best.pt"]
    words = ["--arms", "ours", *(word for way in ways for word in ("--arm", way)), "--lrs", "1e-3", "--seeds", "1"]
    out = tmp_path / "out"
    assert main(["compare", str(here / "tiny.yaml"), *words, "--out", str(out), "--quiet"]) == 0
    made = ComparisonResults.read(out)
    ours, labels, taught = made.runs
    assert (ours.arm, labels.arm, taught.arm) == ("ours", "small", "taught")
    assert all(run.network for run in made.runs) and ours.network.model == f"{here}/best.pt"  # type: ignore[union-attr]
    assert labels.network == taught.network != ours.network and labels.network.model == f"{tmp_path}/small.yaml"  # type: ignore[union-attr]
    assert {run.schedule.epochs for run in made.runs} == {1} and {run.lr for run in made.runs} == {1e-3}
    assert labels.labels and labels.start < 0.01 and labels.seconds_per_step > 0
    assert made.about is not None and made.about.model == ours.network.model  # type: ignore[union-attr]
    assert made.about.pruned.gflops == ours.network.gflops < made.about.teacher.gflops  # type: ignore[union-attr]
    page = (out / "compare.md").read_text()
    for run in made.runs:
        assert f"{run.network.gflops:.2g}"[:4] in page and Path(str(run.network.model)).name in page  # type: ignore[union-attr]
    assert "The arms train networks of different cost" in capsys.readouterr().out.replace("\n", " ")
    rows = json.loads((out / taught.folder / "results.json").read_text())["history"]
    assert {"score_bce", "feature_pkd"} <= rows[0].keys()


def test_an_arm_may_slim_the_network_before_the_cut(here: Path) -> None:
    recipe = recipes.load(here / "tiny.yaml")
    plan = arms.plan(recipe, "ours", ["slim=sparsify.epochs=3 prune.importance=bn_scale distill.epochs=1"], 1)
    slim = plan.variant(plan.arms[1], 0, None)
    assert slim.sparsify is not None and slim.sparsify.epochs == 3 and slim.prune.importance == "bn_scale"  # type: ignore[union-attr]
    assert (
        arms.start_of(slim, recipe).sparsify == slim.sparsify
        and arms.start_of(plan.variant(plan.arms[0], 0, None), recipe).sparsify is None
    )


# --- arms ------------------------------------------------------------------------------------------------------------


def test_arms_are_the_recipe_with_a_few_keys_changed(here: Path) -> None:
    recipe = recipes.load(here / "tiny.yaml", ["distill.labels=0.5"])
    names = ",".join([*(arm.name for arm in arms.BUILTIN), "no-feature_pkd"])
    made = arms.plan(recipe, names, ["gentle=distill.lr=1e-5 'distill.losses={box_iou: 1}'"], 1)
    found = {arm.name: made.variant(arm, 7, None) for arm in made.arms}
    assert found["ours"] == replace(recipe, name="ours", seed=7, export=(), latency=Latency(runs=1), pictures=0)
    assert found["ours-unlabelled"].distill == replace(recipe.distill, labels=0)
    assert found["no-feature_pkd"].distill.losses == (LossSpec("score_bce", 2.0),)
    assert found["ultralytics"].distill.losses == (STOCK,) and found["ultralytics"].distill.labels == 1
    assert found["gentle"].distill.losses == (LossSpec("box_iou"),) and found["gentle"].distill.lr == 1e-5
    assert {name for name, one in found.items() if not one.distill.losses} == {name for name in found if "fine" in name}
    unrepaired = {"no-repair", "finetune-pruned", "ultralytics-pruned", "finetune-bn", "ultralytics-bn"}
    assert {name for name, one in found.items() if one.repair is None} == unrepaired
    assert found["finetune-bn"].prune.importance == "bn_scale" and found["finetune-pruned"].prune == recipe.prune
    with pytest.raises(DistillError, match="expected name=key=value"):
        arms.plan(recipe, None, ["plots=seed=1"])
    assert len({arms.start_of(one, recipe).distill for one in found.values()}) == 1
    taught = recipes.load(here / "tiny.yaml", ["sparsify.distill=true", "distill.labels=0.5"])
    alone = arms.plan(taught, "finetune")
    start = arms.start_of(alone.variant(alone.arms[0], 0, None), taught)
    assert (start.distill.losses, start.distill.labels) == (taught.distill.losses, 0.5), "sparsified as the recipe says"
    nothing_yet = ComparisonResults("tiny", made.arms, made.seeds, made.lrs, about=None, chosen={}, runs=(), failed=())
    before = ComparisonResults.from_dict(json.loads(json.dumps(nothing_yet.to_dict())))
    assert arms.plan(recipe, before=before) == made
    assert arms.plan(recipe, seeds=4, before=before).seeds == (0, 1, 2, 3)


def comparison(scores: dict[str, list[float]]) -> ComparisonResults:
    """A comparison without a search, of arms with these scores, a seed each."""
    size = TrainingSize(1, 10, 4)
    return ComparisonResults(
        recipe_name="tiny",
        arms=tuple(Arm(name, "", {}) for name in scores),
        seeds=(0, 1, 2),
        lrs=(),
        about=None,
        chosen=dict.fromkeys(scores),
        runs=tuple(
            ArmRun(arm, seed, None, 1e-3, 0.4, score, score, True, (score,), 0.1, size, f"{arm}/seed-{seed}")
            for arm, values in scores.items()
            for seed, score in enumerate(values)
        ),
        failed=(),
    )


def test_differences_are_paired_and_tested() -> None:
    # The seeds differ by far more than the arms: only pairs tell the arms apart.
    scores = {"low": [0.48, 0.57, 0.68], "ours": [0.5, 0.6, 0.7], "near": [0.52, 0.59, 0.71]}
    low, ours, near = facts.standings(comparison(scores))
    assert low.differences == pytest.approx([-0.02, -0.03, -0.02]) and low.within_noise is False
    assert near.differences == pytest.approx([0.02, -0.01, 0.01]) and near.within_noise is True
    assert ours.differences == [] and ours.within_noise is None
    assert facts.standard_deviation(ours.values) == pytest.approx(0.1) and facts.standard_deviation([1.0]) is None
    two = facts.standings(comparison({name: values[:2] for name, values in scores.items()}))[0]
    assert two.differences == pytest.approx([-0.02, -0.03])
    assert two.within_noise is True, "two seeds tell next to nothing"
    one = facts.standings(comparison({name: values[:1] for name, values in scores.items()}))[0]
    assert one.differences == pytest.approx([-0.02]) and one.within_noise is None


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (
            {"ours": [0.5, 0.6, 0.7], "low": [0.48, 0.57, 0.68]},
            "ours ends highest of 2 ways: mAP50-95 0.600 ± 0.100, beyond noise",
        ),
        (
            {"ours": [0.5, 0.6, 0.7], "near": [0.52, 0.59, 0.71]},
            "near ends highest of 2 ways: mAP50-95 0.607 ± 0.096, but ours within noise of it",
        ),
        (
            {"ours": [0.5, 0.6], "near": [0.52, 0.59], "far": [0.4, 0.6]},
            "near ends highest of 3 ways: mAP50-95 0.555 ± 0.049, but all others within noise of it",
        ),
        ({"ours": [0.5], "low": [0.3]}, "ours ends highest of 2 ways: mAP50-95 0.500, with one seed"),
        (
            {"ours": [0.3], "low": [0.2]},
            "ours ends highest of 2 ways: mAP50-95 0.300, and below its start, with one seed",
        ),
        ({"ours": [0.5, 0.5]}, "ours ends at mAP50-95 0.500 ± 0.000"),
    ],
)
def test_no_winner_is_named_where_noise_could_have_chosen_another(scores: dict[str, list[float]], says: str) -> None:
    assert facts.gain(comparison(scores)) == says


def test_networks_of_different_cost_are_not_called_equal(tmp_path: Path) -> None:
    scores = {"ours": [0.5, 0.6, 0.7], "small": [0.52, 0.59, 0.71]}
    results = comparison(scores)
    networks = {"ours": ArmNetwork("/a/big.pt", 1.0, 900_000), "small": ArmNetwork("yolov5n.yaml", 2.0, 1_770_000)}
    alike = {**networks, "small": ArmNetwork("yolov5n.yaml", 1.04, 1_770_000)}
    for known, differ in ((networks, True), (alike, False)):
        both = replace(results, runs=tuple(replace(run, network=known[run.arm]) for run in results.runs))
        assert facts.differ_in_cost(facts.standings(both)) is differ
        small, ours = (" (2.00 GFLOPs)", " (1.00 GFLOPs)") if differ else ("", "")
        assert facts.gain(both) == (
            f"small{small} ends highest of 2 ways: mAP50-95 0.607 ± 0.096, but ours{ours} within noise of it"
        )
        assert facts.judgement(both).startswith(f"small{small} against ours{ours}: +0.007")
        assert any("different cost" in note for note in facts.notes(both)) is differ
        table = facts.comparison(both)
        assert table is not None
        place = table.columns.index("GFLOPs")
        assert [row[place] for row in table.rows] == ["1.00", "2.00" if differ else "1.04"]
    (tmp_path / "compare.json").write_text(json.dumps(both.to_dict()))
    report.write(tmp_path)
    page = (tmp_path / "compare.md").read_text()
    assert "big.pt: 0.90 M parameters, 1.00 GFLOPs" in page and "yolov5n.yaml: 1.77 M parameters, 1.04 GFLOPs" in page
    assert "GFLOPs" not in facts.comparison(results).columns, "an older file does not say"  # type: ignore[union-attr]


def test_an_arm_that_ends_below_its_start_is_a_finding() -> None:
    found = facts.findings(comparison({"ours": [0.45], "low": [0.3996]}))
    assert "low ends at 0.3996, below the 0.4000 that it starts from: without training is better." in found
    assert not any(line.startswith("ours") for line in found)


def test_a_comparison_goes_to_its_file_and_comes_back(tmp_path: Path) -> None:
    cost = ComparedNetwork(0.6, 1.7, 2_500_000)
    data = DataFacts("data.yaml", 8, 4, ("disc",), labelled=True)
    setting = Setting("best.pt", data, 64, "a CPU", {"torch": "2.9"}, cost, cost)
    results = replace(comparison({"ours": [0.5]}), about=setting, failed=(FailedRun("peer", 0, 1e-4, "loss is zero"),))
    (tmp_path / "compare.json").write_text(json.dumps(results.to_dict()))
    assert ComparisonResults.read(tmp_path) == results
    report.write(tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert "best.pt · data.yaml · 8 + 4 images · 64 px" in page and "peer failed with seed 0" in page
    nothing_yet = comparison({})
    assert ComparisonResults.from_dict(json.loads(json.dumps(nothing_yet.to_dict()))) == nothing_yet
    (tmp_path / "compare.json").write_text(json.dumps(nothing_yet.to_dict()))
    report.write(tmp_path)
    assert (tmp_path / "compare.md").read_text().startswith("# Nothing to compare yet")


@pytest.mark.parametrize("change", [{"format": 0}, {"runs": [{"arm": "ours"}]}, {"runs": None}, {"arms": "ours"}, None])
def test_a_comparison_of_another_layout_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any] | None) -> None:
    content = comparison({"ours": [0.5]}).to_dict()
    (tmp_path / "compare.json").write_text("{" if change is None else json.dumps(content | change))
    with pytest.raises(DistillError, match=r"compare\.json was not written by this version or is damaged: start a new"):
        report.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["compare.json"]


# --- ultralytics' own loss -------------------------------------------------------------------------------------------


def test_the_stock_loss_is_ultralytics_own(here: Path) -> None:
    """Value, parts and gradients are those of `DistillationModel.loss`, for a student narrower than its teacher."""
    torch.manual_seed(0)
    narrow = copy.deepcopy(CFG)
    narrow["head"] = [[-1, 1, "C3", [8]], [-1, 1, "Conv", [16, 3, 2]], CFG["head"][2]]
    student, teacher = DetectionModel(narrow, verbose=False).eval(), checkpoint.load(here / "best.pt").model
    student.args = get_cfg(overrides={"imgsz": 64})
    batch = {
        "img": torch.rand(3, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 2.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.4, 0.6, 0.2, 0.4]]),
    }
    state = torch.random.get_rng_state()
    task = distillation(student, [teacher_of(checkpoint.fused(teacher), losses.build([STOCK]))])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(
        module._forward_hooks for network in (student, task.teachers[0].network) for module in network.modules()
    )
    twin: Any = DistillationModel(copy.deepcopy(task.teachers[0].network), copy.deepcopy(student))
    twin.projector.load_state_dict(task.learned[0].projector.state_dict())
    student.train()
    ours = task(batch)
    theirs, parts = twin.train().loss(batch)
    assert (3 * ours["loss"]).item() == pytest.approx(theirs.sum().item(), rel=1e-5)
    assert ours["ultralytics"].item() == pytest.approx(parts["dis_loss"].item(), rel=1e-5) and ours["ultralytics"] > 0
    (3 * ours["loss"]).backward()
    theirs.sum().backward()
    for mine, stock in ((student, twin.student_model), (task.learned[0].projector, twin.projector)):
        for (name, one), other in zip(mine.named_parameters(), stock.parameters(), strict=True):
            if other.grad is not None:
                assert one.grad is not None, name
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
