"""A recipe with images without labels: checked, planned, run, resumed, compared and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cli.main import main
from distill.comparison import arms
from distill.engine.pipeline import STAGES
from distill.engine.planning import calibration_images
from distill.engine.preflight import preflight
from distill.engine.stage import shared_stages
from distill.engine.unlabelled import scratch_frames
from distill.machine.console import Console
from distill.machine.private import private_folder
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe, Unlabelled
from distill.report.training import schedule as in_words
from distill.results.steps import DataFacts
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.data.images import calibration
from distill.yolo.training.train import train
from tests.distill.tiny_runs import HEAD, untrained_folder
from tests.distill.yolo.test_trainer import LONGER, tiny
from tests.distill.yolo.test_unlabelled import film, noise


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with two of twelve images labelled, beside the folder of all, five others, and a video."""
    root = untrained_folder(tmp_path_factory.mktemp("unlabelled"))
    options: dict[str, Any] = {"folder": root / "taught", "console": Console(quiet=True), "imgsz": 64, "device": "cpu"}
    taught = train(tiny(), datasets.load(root / "data" / "data.yaml"), LONGER, **options)
    checkpoint.save(taught.model, root / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    data = root / "data"
    (data / "part.txt").write_text("./images/train/3.png\n./images/train/7.png\n")
    (data / "data.yaml").write_text("train: part.txt\nval: images/val\nnames: [square, disc]\n")
    places = [str(data / "images" / "train"), str(noise(root / "more", 5)), str(film(root / "clip.avi", 8))]
    text = HEAD.replace("{root}", str(root)) + "distill: {epochs: 1, lr: 1e-3, losses: {score_bce: 1}}\nexport: []\n"
    text += f"latency: {{runs: 1}}\npictures: 0\nunlabelled: {{images: {json.dumps(places)}, frames: 3}}\n"
    (root / "tiny.yaml").write_text(text)
    return root


def load(root: Path, *words: str) -> Recipe:
    return recipes.load(root / "tiny.yaml", words)


def test_a_check_decodes_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.rglob("*"))
    assert main(["check", str(root / "tiny.yaml")]) == 0
    told = capsys.readouterr().err
    assert "15 images and up to 3 frames of a video: " in told and "2 of the 17 images of 'unlabelled' are in " in told
    assert sorted(root.rglob("*")) == before and not (private_folder() / "frames").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["unlabelled=gone"], "command line: unlabelled.images[0]: there is no gone in "),
        (["unlabelled=[]"], "command line: unlabelled.images is empty: give unlabelled.images=[more, clip.mp4]"),
        (
            ["distill.batch=1"],
            "distill.batch is 1, and images with labels and without share each batch: give distill.batch=2",
        ),
        (["unlabelled={root}/data/images"], "6 of the 18 images are images of 'val' in "),
        (["unlabelled.ratio=-1"], "command line: unlabelled.ratio: expected auto or a number >= 0, got -1"),
    ],
)
def test_what_is_wrong_is_one_line(root: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(root / "tiny.yaml"), *(word.replace("{root}", str(root)) for word in words)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking ")]
    assert says in line


def test_importance_and_repair_see_images_of_both_kinds(root: Path) -> None:
    checked = preflight(load(root), frames=scratch_frames)
    assert checked.data is not None and checked.teacher is not None and not checked.data.videos
    assert len(checked.data.unlabelled) == 18
    images = calibration_images(checked.recipe, checked.teacher, checked.data, 100)
    both = calibration((*checked.data.train, *checked.data.unlabelled), 100, 64, frame=images.shape[-1] // 2 - 32)
    assert len(images) == 20 and torch.equal(images, both)


def test_a_run_uses_them_and_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "out"
    assert main(["run", str(root / "tiny.yaml"), "prune.importance=l1", "repair=null", "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "1 epochs, 6 steps of 4 images, 1 of them with labels" in told
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["unlabelled_images"] == 18 and results["schedule"]["labelled"] == 1
    frames = sorted((out / "data" / "frames").rglob("*.jpg"))
    assert len(frames) == 3
    report = (out / "report.md").read_text()
    assert "2 + 18 unlabelled + 6 images" in report and "6 steps of 4 images, 1 with labels and 3 without" in report
    assert "against the teacher and on the labels, with 18 unlabelled images" in report
    before = frames[0].stat().st_mtime_ns
    noise(root / "more" / "new", 1, seed=9)
    try:
        assert main(["run", "--resume", str(out), "--quiet"]) == 2
        told = capsys.readouterr().err
        assert "its images or labels are others than when the run" in told
        assert "(2 + 6 + 18 images, " in told and " then, 2 + 6 + 19 images, " in told
        assert frames[0].stat().st_mtime_ns == before  # it was not written again
    finally:
        (root / "more" / "new" / "0.png").unlink()


def test_an_arm_leaves_them_out_and_others_share_their_start(root: Path) -> None:
    own = ["no-unlabelled=unlabelled=null", "more=unlabelled.ratio=1 unlabelled.weight=2"]
    comparison = arms.plan(load(root), "ours,finetune", own, seeds=1)
    found = {arm.name: comparison.variant(arm, 0, None) for arm in comparison.arms}
    assert found["no-unlabelled"].unlabelled is None
    assert found["more"].unlabelled is not None and found["more"].unlabelled.ratio == 1
    starts = {name: arms.start_of(one, comparison.recipe) for name, one in found.items()}
    assert starts["ours"] == starts["more"] == starts["finetune"] != starts["no-unlabelled"]
    shared = [stage.name for stage in shared_stages(STAGES, found["ours"], found["more"])]
    assert shared == ["teacher", "cut", "repair"]
    assert shared_stages(STAGES, found["ours"], found["no-unlabelled"]) == []


def test_what_a_report_says_of_them() -> None:
    assert DataFacts("data.yaml", 10, 5, ("a",), True).described == "10 + 5 images"
    assert DataFacts("data.yaml", 10, 5, ("a",), True, 30).described == "10 + 30 unlabelled + 5 images"
    values = {"epochs": 2, "steps": 10, "batch": 8}
    assert in_words(values) == [("length", "2 epochs, 10 steps of 8 images")]
    assert in_words(values | {"labelled": 8}) == [("length", "2 epochs, 10 steps of 8 images, all with labels")]


def test_the_recipe_of_a_run_keeps_them(root: Path) -> None:
    short = load(root, "unlabelled=more", "unlabelled.ratio=2")
    assert short.unlabelled == Unlabelled(images=("more",), ratio=2.0, frames=3)
    assert load(root, "unlabelled=null").unlabelled is None
