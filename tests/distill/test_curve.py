"""How far can I go: one set of statistics, points as a run would have them, resumed, judged, and said on a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prune
from distill.cli.main import main
from distill.engine import curve as engine
from distill.engine.planning import calibration_images, make_plan
from distill.engine.stages.repair import mend
from distill.machine.console import Console
from distill.machine.measure import count_gflops, count_params
from distill.recipe import load as recipes
from distill.report import curve as report
from distill.report import curve_facts as facts
from distill.results.curve import FORMAT, CurvePoint, CurveResults, CurveSetting
from distill.results.figures import Evaluation
from distill.results.results import Results
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.evaluation.judge import Judge
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.kind import YOLO
from tests.distill.test_report import results as run_results  # noqa: F401 - a fixture
from tests.distill.tiny_runs import untrained_folder
from tests.distill.yolo.test_trainer import tiny

FULL = count_gflops(tiny(), 64)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its images and a network that was not trained: its accuracy is invented below."""
    return untrained_folder(tmp_path_factory.mktemp("curve"))


class Measured:
    """Stands in for the evaluation: keeps the networks, and invents an accuracy that falls with their FLOPs."""

    def __init__(self, patch: pytest.MonkeyPatch, enough: float = 0.5) -> None:
        self.networks: list[dict[str, torch.Tensor]] = []
        self.enough, self.stop = enough, 0
        self.calls = {"score": 0, "repair_weights": 0}
        patch.setattr(Judge, "evaluate", lambda judge, network: self.evaluate(judge, network))
        for name in self.calls:
            patch.setattr(prune, name, self.counted(name, getattr(prune, name)))

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return function(*args, **options)

        return call

    def evaluate(self, judge: Judge, network: nn.Module) -> Evaluation:
        if self.stop and len(self.networks) == self.stop:
            raise KeyboardInterrupt
        self.networks.append({name: value.clone() for name, value in network.state_dict().items()})
        share = count_gflops(network, 64) / FULL
        score = 0.6 if share > self.enough else 0.6 * share
        if judge.data.labelled:
            return Evaluation(score, score, {})
        return Evaluation(None, None, None, agreement50_95=score, agreement50=score)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


def curve(here: Path, *words: str) -> int:
    return main(["plan", str(here / "tiny.yaml"), "--curve", "--quiet", *words])


def test_points_are_those_of_runs_from_one_set_of_statistics(here: Path, tmp_path: Path, measured: Measured) -> None:
    out = tmp_path / "out"
    assert curve(here, "--budgets", "0.5,0.8", "--out", str(out)) == 0
    assert measured.calls == {"score": 1, "repair_weights": 1}
    teacher, *_, pruned, repaired = measured.networks
    assert len(measured.networks) == 5 and teacher.keys() == pruned.keys()
    recipe, console = recipes.load(here / "tiny.yaml", ["prune.flops=0.5"]), Console(quiet=True)
    original = checkpoint.load(here / "best.pt")
    data = datasets.load(here / "data" / "data.yaml")
    plan = make_plan(recipe, original, data, torch.device("cpu"), console)
    student = prune.apply(original.model, plan, adapter=YOLO_ADAPTER)
    assert all(torch.equal(value, pruned[name]) for name, value in student.state_dict().items())
    mend(YOLO, student, original.model, plan, calibration_images(recipe, original, data, 4), 0, recipe.seed, console)
    assert all(torch.equal(value, repaired[name]) for name, value in student.state_dict().items())
    results, deployed = CurveResults.read(out), checkpoint.fused(student)
    assert results is not None and [point.budget for point in results.points] == [0.8, 0.5]
    assert (results.points[1].gflops, results.points[1].params) == (count_gflops(deployed, 64), count_params(deployed))


def test_the_limit_is_measured_more_closely_and_nothing_twice(
    here: Path, tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(engine, "BUDGETS", (0.65, 0.6))
    out, measured.stop, measured.enough = tmp_path / "out", 3, 0.61
    assert curve(here, "--out", str(out)) == 130
    assert capsys.readouterr().err == f"interrupted; the points in {out} are kept, give the same command again\n"
    first = CurveResults.read(out)
    assert first is not None and [point.budget for point in first.points] == [0.65]
    assert [float(f"{point.score:.3f}") for point in first.points if point.score] == [0.6]
    measured.stop, before = 0, len(measured.networks)
    assert curve(here, "--out", str(out)) == 0
    results = CurveResults.read(out)
    assert results is not None and results.points[0] == first.points[0]
    assert len(measured.networks) - before == 2 * (len(results.points) - 1), "neither the teacher nor the first point"
    kept, lost = results.kept, results.lost
    assert kept is not None and lost is not None
    assert len(results.points) == 3 and kept.budget - lost.budget == pytest.approx(0.025), "it was halved"
    share = f"{results.share(kept):.0%} of the FLOPs would be accepted"
    said = capsys.readouterr().out
    limit = f"before training, the limit (-0.005) lies between FLOPs kept {kept.budget:g} and {lost.budget:g}."
    assert f"{share}: {limit}" in said
    count = len(measured.networks)
    assert curve(here, "--out", str(out), "--budgets", "0.65,0.6") == 0
    assert len(measured.networks) == count, "all of it is there already"
    page = (out / "curve.html").read_text()
    assert page.count("<svg") == 2 and share in page and (out / "plots" / "limit.png").is_file()
    assert main(["plan", str(out / "recipe.yaml"), "--curve", "--out", str(out), "--quiet"]) == 0
    (out / "curve.html").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'curve.html'}\n" and (out / "curve.html").read_text() == page
    assert curve(here, "--out", str(out), "repair.images=3", "seed=1") == 2
    assert capsys.readouterr().err == (
        "the curve that is there already is of another recipe (seed, repair.images): give another --out\n"
    )


def test_a_ratio_says_how_much_is_cut(here: Path, tmp_path: Path, measured: Measured) -> None:
    assert curve(here, "prune.ratio=0.5", "--budgets", "0.6,0.1,0.999", "--out", str(tmp_path), "repair=null") == 0
    results = CurveResults.read(tmp_path)
    assert results is not None and results.key == "ratio" and results.unreachable == (0.999,)
    assert [point.budget for point in results.points] == [0.1, 0.6], "the least cut first"
    assert results.points[0].params > results.points[1].params and results.points[0].repaired is None
    assert results.kept == results.points[0] and measured.calls["repair_weights"] == 0
    assert "channels cut 0.999 cannot be met" in (tmp_path / "curve.html").read_text()


def test_without_labels_it_is_agreement_and_nothing_is_accepted(
    here: Path, tmp_path: Path, measured: Measured, capsys: Any
) -> None:
    assert curve(here, f"data={here / 'data' / 'images' / 'train'}", "--budgets", "0.6", "--out", str(tmp_path)) == 0
    results = CurveResults.read(tmp_path)
    assert results is not None and results.map_drop is None and results.kept is None
    said = " ".join(capsys.readouterr().out.partition("/curve.html")[0].split())
    assert "agreement with the teacher 0.600 at 60% of the FLOPs: not judged" in said and "judges nothing here" in said
    assert "accepted" not in said.partition("After repair:")[0]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["--curve", "--budgets", "0.5,2"],
            "--budgets: expected different shares between 0 and 1, as in 0.7,0.5, got '0.5,2'",
        ),
        (["--budgets", "0.5"], "--budgets goes with --curve: distill plan RECIPE ... --curve"),
        (["--curve", "prune=null"], "prune is null, so there is nothing to cut: give prune.flops=0.5"),
        (["--curve", "--out", "file"], "--out file is a file: give a folder"),
        (["--curve", "--open"], "--open needs --out DIR, where the page is"),
        (["--curve", "--budgets", "0.001", "--out", "new"], "flops=0.001 cannot be met: "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str],
    error: str,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Any,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["plan", str(here / "tiny.yaml"), "--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(error) and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- what is said ----------------------------------------------------------------------------------------------------


def example(*scores: float, **changes: Any) -> CurveResults:
    budgets = (0.9, 0.75, 0.6, 0.5, 0.4)
    points = tuple(
        CurvePoint(budget, 1.77 * budget, int(2.5e6 * budget), score / 2, score, 1.0)
        for budget, score in zip(budgets, scores, strict=False)
    )
    curve = CurveResults(
        format=FORMAT, recipe_name="half", key="flops", setting=CurveSetting({"repair.images": 256}, "abc", 0),
        model="best.pt", data="data.yaml", imgsz=320, device="a CPU", labelled=True, judged_by="mAP50-95", images=87,
        teacher=0.631, teacher_gflops=1.77, teacher_params=2_500_000, map_drop=0.005, points=points, unreachable=(), seconds=9.0,
    )  # fmt: skip
    return replace(curve, **changes)


def test_only_budgets_above_the_first_that_fails_are_kept() -> None:
    curve = example(0.631, 0.629, 0.620, 0.630, 0.4)
    assert curve.kept == curve.points[1] and curve.lost == curve.points[2], "0.5 is above the limit by luck"
    assert facts.gain(curve) == "75% of the FLOPs would be accepted"
    assert facts.judgement(curve).endswith("lies between FLOPs kept 0.75 and 0.6")
    assert "FLOPs kept 0.5: accepted too, below one that is not" in facts.notes(curve)
    none = example(0.6, 0.5)
    assert none.kept is None
    assert facts.gain(none) == "No budget down from 90% of the FLOPs would be accepted without training"
    everything = example(0.631, 0.63)
    assert everything.lost is None and "one could go further" in facts.judgement(everything)


def test_a_damaged_file_is_one_line_and_a_missing_one_is_none(tmp_path: Path, capsys: Any) -> None:
    assert CurveResults.read(tmp_path) is None and CurveResults.read(tmp_path / "nowhere") is None
    (tmp_path / "curve.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "curve.json was not written by this version or is damaged" in said


def test_training_above_the_curve_is_said(tmp_path: Path, run_results: dict[str, Any]) -> None:  # noqa: F811
    (tmp_path / "curve.json").write_text(json.dumps(example(0.63, 0.629, 0.62).to_dict()))
    run_results["trained"] = {"map50_95": 0.624, "map50": 0.8, "per_class": {}}
    (tmp_path / "results.json").write_text(json.dumps(run_results))
    report.write(tmp_path)
    page = (tmp_path / "curve.md").read_text()
    assert "trained from 0.615 to 0.624 at 50% of the FLOPs: the curve is before training, a lower bound" in page
    recipe = {**run_results["recipe"], "data": "shapes"}
    made = Results.from_dict({**run_results, "model": None, "recipe": recipe})
    assert facts.command(Path("a run"), made) == (
        "distill plan 'a run/recipe.yaml' 'model=a run/teacher.pt' teacher.train=null 'data=a run/data/data.yaml' "
        "--curve --out 'a run'"
    )
