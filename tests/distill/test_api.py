"""The public functions of `distill`: their arguments, what they print (nothing), and how what they return prints."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest

import distill
from distill.api.arguments import overrides_of, public
from distill.cli.commands import COMMANDS
from distill.engine.size import ImageSize
from distill.engine.standalone import Evaluated
from distill.errors import DistillError, Interrupted
from distill.machine.program import ProgramConsole
from distill.recipe import load as recipes
from distill.recipe.schema import EvalOptions, ExportOptions, Recipe
from distill.results.comparison import Arm, ArmRun, ComparisonResults, TrainingSize
from distill.results.figures import Evaluation
from distill.results.quality import Curves
from distill.results.results import Results
from distill.results.sweep import SweepResults
from distill.yolo.evaluation.evaluate import Metrics
from tests.distill.test_advice import curve as a_curve
from tests.distill.test_report import example

FUNCTIONS = [name for name in distill.__all__ if not name.endswith("Error")]


def refused(call: Any) -> str:
    with pytest.raises(DistillError) as error:
        call()
    return str(error.value)


def test_a_slip_names_the_function_and_the_nearest_word() -> None:
    assert refused(lambda: distill.run("half", modle="best.pt")) == "distill.run: no key modle, did you mean model?"
    assert refused(lambda: distill.compare("half", seed_s=3)) == "distill.compare: no key seed_s, did you mean seeds?"
    call: Any = distill.evaluate
    assert refused(lambda: call("best.pt", dta="d.yaml")) == "distill.evaluate: no key dta, did you mean data?"
    assert refused(lambda: distill.plan("half", xyzzy=1)).startswith("distill.plan: no key xyzzy: there are recipe, ")
    assert "'distill.epochs'" in refused(lambda: distill.run("half", **{"distill.epoch": 3}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_and_help_are_those_of_the_function(name: str) -> None:
    function = getattr(distill, name)
    assert function.__doc__ and "Args:" in function.__doc__ and "Raises:" in function.__doc__
    parameters = inspect.signature(function).parameters
    for each in parameters:
        assert f"{each}:" in function.__doc__, each
    assert f"distill.{name}(" in (distill.__doc__ or "")


def test_keywords_are_keys_and_mappings_are_parts_of_sections(tmp_path: Path) -> None:
    given = overrides_of(
        {"distill.epochs": 5},
        {"model": tmp_path / "best.pt", "prune": {"flops": 0.3}, "teacher": {"train": {}}, "export": ("onnx",)},
    )
    assert given == {
        "distill.epochs": 5,
        "model": str(tmp_path / "best.pt"),
        "prune.flops": 0.3,
        "teacher.train": {},
        "export": ["onnx"],
    }
    read = recipes.load("half", overrides_of(None, {"model": "a.pt", "data": "d", "prune": {"rounds": 2}}))
    assert read.prune is not None and (read.prune.flops, read.prune.rounds) == (0.5, 2)  # the rest of the section stays


def test_losses_in_a_mapping_take_the_place_of_the_recipes() -> None:
    keys = {"model": "a.pt", "data": "d", "distill": {"losses": {"box_iou": 3.0}, "epochs": 2}}
    read = recipes.load("half", overrides_of(None, keys))
    assert [loss.name for loss in read.distill.losses] == ["box_iou"] and read.distill.epochs == 2


def test_every_key_of_a_recipe_can_be_a_keyword() -> None:
    own = {name: set(inspect.signature(getattr(distill, name)).parameters) for name in FUNCTIONS}
    takers = {name: words for name, words in own.items() if "keys" in words}
    assert {"check", "compare", "curve", "plan", "run", "sweep"} <= set(takers)
    for words in takers.values():
        assert not words & set(Recipe.__dataclass_fields__)


def test_ctrl_c_stays_ctrl_c_and_says_how_to_go_on() -> None:
    @public
    def run() -> None:
        raise Interrupted("interrupted; to resume: distill run --resume runs/half-1")

    with pytest.raises(KeyboardInterrupt, match="--resume runs/half-1"):
        run()


def test_a_program_is_told_by_logging_and_by_its_own_progress(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def progress(items: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
        seen.append((label, total, unit))
        for item in items:
            yield item
            seen.append(item)
        seen.append("end")

    with caplog.at_level(logging.INFO, logger="distill"):
        console = ProgramConsole(progress)
        console.header("cut")
        console.warn("few images")
        console.result("a table")
        assert list(console.track("abc", "score", 3, "images")) == ["a", "b", "c"]
        with console.bar("epoch", 4, "batches") as bar:
            bar.advance(2, "loss 1")
        console.close()
        inner = console.for_run(quiet=False)
        inner.facts([("model", "best.pt")])
        inner.result("another table")
        assert list(inner.track("", "repair", 0)) == []
    assert seen.pop() == "end" and seen.pop() == ("repair", 0, "")
    assert seen == [("score", 3, "images"), 0, 1, 2, "end", ("epoch", 4, "batches"), 0, 1]
    levels = [(record.levelname, record.message) for record in caplog.records if "in 0.0 s" not in record.message]
    assert levels == [("INFO", "== cut =="), ("WARNING", "few images"), ("INFO", "model  best.pt")]
    assert console.warnings == ["few images"]
    assert capsys.readouterr() == ("", "")


def test_a_comparison_prints_as_a_table() -> None:
    def run(arm: str, seed: int, end: float) -> ArmRun:
        return ArmRun(arm, seed, None, 1e-3, 0.4, end, end, True, (end,), 1.0, TrainingSize(1, 4, 8), f"{arm}/{seed}")

    runs = (run("ours", 0, 0.5), run("ours", 1, 0.6), run("finetune", 0, 0.45))
    arms = (Arm("ours", "x" * 5000), Arm("finetune", ""), Arm("failed", ""))
    results = ComparisonResults("half", arms, (0, 1), (), None, {"ours": None, "finetune": None}, runs, ())
    assert str(results).splitlines()[1].split() == ["ours", "2", "0.400", "0.550", "0.500", "0.600"]
    assert repr(results) == "ComparisonResults(half: ours, finetune, failed; 3 runs, 0 failed)"
    assert "<td>finetune</td><td>1</td>" in results._repr_html_()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    for name in ("best.pt", "data.yaml"):
        (tmp_path / name).touch()
    return {"model": tmp_path / "best.pt", "data": tmp_path / "data.yaml"}


def test_a_sweep_varies_values_of_python(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.comparison import sweeper

    monkeypatch.setattr(sweeper, "run", lambda sweep, folder, console, quiet, jobs: sweep)
    vary = {"prune.flops": [0.7, 0.5], "distill.lr": ("auto", 1e-3), "export": [("onnx",), []]}
    sweep: Any = distill.sweep("half", vary=vary, **inputs, batch=4, out=tmp_path / "sweep")
    recipes = [point.recipe for point in sweep.points]
    assert len(recipes) == 8 and {recipe.batch for recipe in recipes} == {4}
    assert {recipe.prune.flops for recipe in recipes} == {0.7, 0.5}
    assert {recipe.distill.lr for recipe in recipes} == {None, 1e-3}
    assert {recipe.export for recipe in recipes} == {("onnx",), ()}
    assert "vary has no value of batch" in refused(lambda: distill.sweep("half", vary={"batch": []}, **inputs))


def test_a_comparison_takes_names_and_arms_of_python(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.comparison import runner

    monkeypatch.setattr(runner, "run", lambda comparison, folder, console, quiet, jobs: comparison)
    own = {"gentle": {"distill.labels": 0.1}}
    done: Any = distill.compare(
        "half", **inputs, arms=["finetune"], own=own, seeds=2, lrs=[1e-3, 1e-4], out=tmp_path / "out"
    )
    assert [arm.name for arm in done.arms] == ["finetune", "gentle"] and done.seeds == (0, 1)
    assert done.lrs == (1e-3, 1e-4) and done.variant(done.arms[1], 0, None).distill.labels == 0.1


@pytest.mark.parametrize(("function", "options"), [(distill.evaluate, EvalOptions), (distill.export, ExportOptions)])
def test_what_the_command_takes_the_function_takes(function: Any, options: Any) -> None:
    taken = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    for each in fields(options):
        assert taken[each.name] == (inspect.Parameter.empty if each.default is MISSING else each.default), each.name


def test_every_command_that_gives_something_is_a_function() -> None:
    for_people = {"ls", "cp", "report", "env", "completion", "eval"}  # eval is a word of Python: evaluate
    assert set(COMMANDS) - for_people <= set(distill.__all__)


def test_results_and_their_parts_print_in_a_screen() -> None:
    data = example()
    names = [f"class {number}" for number in range(900)]
    data["data"]["classes"] = names
    for row in data["models"].values():
        row["per_class"] = dict.fromkeys(names, 0.5)
    data["plan"]["groups"] *= 100
    data["repair"]["layers"] *= 100
    results = Results.from_dict(data)
    for part in (results, results.student, results.data, results.plan, results.repair):
        assert len(repr(part)) < 600, repr(part)
    assert repr(results) == "Results(half: mAP50-95 0.631 -> 0.624, 1.77 -> 0.88 GFLOPs, folder='.')"
    assert len(str(results)) < 2000 and "not accepted" in str(results)
    assert str(replace(results, folder=Path("runs/half-1"))).endswith("runs/half-1/student.pt")
    assert "<th>teacher</th>" in results._repr_html_()
    assert "folder" not in replace(results, folder=Path("runs/half-1")).to_dict()


def test_metrics_and_recipes_print_in_a_screen() -> None:
    classes = {f"class {number}": 0.5 for number in range(900)}
    confusion = tuple((name, name, 3) for name in classes)
    metrics = Metrics(0.5, 0.7, 0.6, 0.6, classes, 10, 90, Curves((1.0,) * 101, {}, confusion))
    evaluated = Evaluated(
        **vars(metrics), size=ImageSize(64, "as given"), teacher=Evaluation(**vars(metrics)), swapped={"boxes": 0.55}
    )
    assert len(repr(metrics)) < 600 and len(repr(metrics.curves)) < 300
    assert repr(evaluated) == "Evaluated(mAP50-95 0.500, mAP50 0.700, 10 images)"
    assert "10 images, 90 objects, imgsz 64, as given" in str(evaluated)
    assert str(evaluated).splitlines()[-2:] == [
        "mAP50-95 with the teacher's boxes  0.550",
        "mAP50-95 of the teacher            0.500",
    ]
    assert len(repr(recipes.load("half", {"model": "a.pt", "data": "d"}))) < 4096


def test_curves_and_sweeps_print_as_tables() -> None:
    curve = a_curve(p90=0.630, p70=0.627, p50=0.615)
    assert str(curve).splitlines()[1].split() == ["teacher", "1.77", "0.631"]
    assert str(curve).splitlines()[-1] == "flops=0.7 keeps what accept asks"
    assert repr(curve) == "CurveResults(half: 3 budgets of flops)" and "<td>0.627</td>" in curve._repr_html_()
    sweep = SweepResults(1, "half", {"prune.flops": ("0.7", "0.5"), "seed": ("0",)}, None, (), (), 2)
    assert str(sweep).split("  ") == ["prune.flops", "seed", "mAP50-95", "GFLOPs", "latency (ms)", "accepted"]
    assert repr(sweep) == "SweepResults(half over prune.flops, seed: 0 runs, 0 failed)"
