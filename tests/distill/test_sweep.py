"""A sweep from end to end: words to points, what runs share, a point that fails, and whether its page says what its runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from distill.comparison import sweep as sweeps
from distill.engine import pipeline
from distill.engine.stages.cut import CUT
from distill.engine.stages.repair import REPAIR
from distill.engine.stages.teacher import TEACHER
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.report import sweep_facts as facts
from distill.results.sweep import SweepPoint, SweepResults
from tests.distill.tiny_runs import untrained_folder

NAMES = [f"map_drop-{drop}-seed-0" for drop in (0.005, 0.5)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its images and its teacher, which was not trained: what it sees does not matter here."""
    return untrained_folder(tmp_path_factory.mktemp("sweep"))


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.7,0.5, 0.3", ["0.7", "0.5", "0.3"]),
        ("[model.0.*,model.9.*]", ["[model.0.*,model.9.*]"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{a: 1, b: {c: 2, d: 3}}", ["{a: 1, b: {c: 2, d: 3}}"]),
        ("'a,b.pt',c.pt", ["'a,b.pt'", "c.pt"]),
        ('["a]", b],c', ['["a]", b]', "c"]),
        ("it's,mine", ["it's", "mine"]),
        ("", [""]),
        ("0.7,", ["0.7", ""]),
    ],
)
def test_a_comma_separates_values_but_in_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert list(sweeps.split_values(text)) == values


def test_points_are_the_product_and_each_has_a_folder_of_its_own(here: Path) -> None:
    words = ["prune.flops=0.7,0.5", "prune.protect=[],[model.0.*,model.1.*]", "distill.labels=0.5"]
    single, several = sweeps.read_words(words)
    assert single == ["distill.labels=0.5"] and list(several) == ["prune.flops", "prune.protect"]
    recipe = recipes.load(here / "tiny.yaml", [*single, *(f"{key}={values[0]}" for key, values in several.items())])
    plan = sweeps.plan(recipe, several=several, seeds=2)
    assert len(plan.points) == len({point.name for point in plan.points}) == 8
    first, last = plan.points[0].recipe, plan.points[-1].recipe
    assert first.prune and last.prune and (first.prune.flops, first.prune.protect, first.seed) == (0.7, (), 0)
    assert (last.prune.flops, last.prune.protect, last.seed) == (0.5, ("model.0.*", "model.1.*"), 1)
    assert {point.recipe.distill.labels for point in plan.points} == {0.5}
    assert sweeps.plan(recipe, several={"prune.flops": ("0.7", "0.5")}).points[1].name == "flops-0.5-seed-0"
    before = {"prune.flops": ("0.7", "0.5"), "seed": ("0",)}
    more = sweeps.plan(recipe, before, several={"prune.flops": ("0.5", "0.3")}, seeds=2)
    assert more.recipe.prune and more.recipe.prune.flops == 0.7, "as it was begun"
    assert more.axes == {"prune.flops": ("0.7", "0.5", "0.3"), "seed": ("0", "1")}
    long = sweeps.plan(recipe, several={"model": ("a/b c.pt", "a/b_c.pt", "x" * 300)}).points
    assert len({point.name for point in long}) == 3 and max(len(point.name) for point in long) < 100


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["prune.flops=0.7,"],
            "prune.flops=0.7,: a value is missing beside a comma: give values as in prune.flops=0.7,0.5",
        ),
        (["prune.flops=0.7,0.7"], "prune.flops=0.7,0.7: 0.7 is given twice"),
        (
            ["prune.flops=0.7,0.5", "prune.flops=0.3,0.2"],
            "prune.flops is given twice: give all its values at once, as in prune.flops=0.7,0.5",
        ),
        (["prune.flops=0.5"], "nothing to sweep: give a key several values, as in prune.flops=0.7,0.5, or --seeds 3"),
        (["seed=1,2", "--seeds", "2"], "--seeds and several values of seed are both given: leave one out"),
        (["prune.flops=0.7,0.5", "--seeds", "0"], "--seeds 0: give at least 1"),
        (["prune.flosp=0.7,0.5"], "command line: unknown key 'prune.flosp', did you mean 'prune.flops'?"),
        (
            ["prune.flops=0.7,0.001"],
            "prune.flops=0.001 seed=0: flops=0.001 cannot be met: {left}max_ratio=0.95 and round_to=1 allow",
        ),
        (["model={root}/best.pt,nosuch.pt"], "model=nosuch.pt seed=0: nosuch.pt: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str], error: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [word.replace("{root}", str(here)) for word in words]
    assert main(["sweep", str(here / "tiny.yaml"), *filled, "--quiet"]) == 2
    said = capsys.readouterr().err
    before, _, after = error.partition("{left}")
    assert said.startswith(before) and said.endswith(f"{after}\n") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- a whole sweep ---------------------------------------------------------------------------------------------------


class Counter:
    """Counts what a stage does, and fails for one recipe."""

    def __init__(self, work: Any) -> None:
        self.calls, self.work, self.bad, self.killed = 0, work, "", False

    def __call__(self, session: Any) -> Any:
        if self.killed:
            raise KeyboardInterrupt
        self.calls += 1
        if self.bad and self.bad in session.recipe.name:
            raise RuntimeError("no luck")
        return self.work(session)


@pytest.fixture(scope="module")
def done(here: Path) -> tuple[Path, dict[str, int]]:
    """A sweep that was killed, of which one point failed and was made good later, and how often three stages worked."""
    out = here / "out"
    taught, cut, mended = Counter(TEACHER.work), Counter(CUT.work), Counter(REPAIR.work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.engine.stages.teacher.MIN_TEACHER_MAP", -1.0)
        for stage, work in ((TEACHER, taught), (CUT, cut), (REPAIR, mended)):
            patch.setitem(vars(stage), "work", work)
        taught.killed, mended.bad = True, NAMES[0]
        words = ["accept.map_drop=0.005,0.5", "--out", str(out), "--quiet"]
        assert main(["sweep", str(here / "tiny.yaml"), *words]) == 130
        assert SweepResults.read(out).missing == 2
        taught.killed = False
        assert main(["sweep", "--resume", str(out), "--quiet"]) == 2
        first = SweepResults.read(out)
        assert [point.name for point in first.points] == [NAMES[1]]
        assert [(point.name, point.error) for point in first.failed] == [(NAMES[0], "no luck")]
        assert f"{NAMES[0]} failed: no luck" in (out / "sweep.html").read_text()
        mended.bad = ""
        assert main(["sweep", "--resume", str(out), "--quiet"]) == 0
    return out, {"teacher": taught.calls, "cut": cut.calls, "repair": mended.calls}


def test_runs_share_stages_and_a_failed_one_loses_no_other(done: tuple[Path, dict[str, int]]) -> None:
    out, calls = done
    # What is accepted moves no network. Repair failed once; a neighbour went on from that run's cut, and so did the run.
    assert calls == {"teacher": 1, "cut": 1, "repair": 1 + 2}
    results = SweepResults.read(out)
    assert [point.name for point in results.points] == NAMES and not results.failed and not results.missing
    for point in results.points:
        run = json.loads((out / point.name / "results.json").read_text())
        student = run["models"][run["chosen"]]
        assert (point.score, point.gflops) == (student["map50_95"], student["gflops"])
        assert run["recipe"]["accept"]["map_drop"] == float(point.values["accept.map_drop"])
        assert (out / point.name / "student.pt").is_file()


def test_runs_side_by_side_are_those_of_the_page(here: Path, tmp_path: Path) -> None:
    """Without labels, for a network that was not trained sees nothing. The two that share a cut follow each other."""
    words = [f"data={here}/data/images/train", "prune.flops=0.7,0.6", "accept.map_drop=0.1,0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", None)  # every run is done in another process
        assert (
            main(["sweep", str(here / "tiny.yaml"), *words, "--jobs", "2", "--out", str(tmp_path / "out"), "--quiet"])
            == 0
        )
    found = SweepResults.read(tmp_path / "out")
    assert len(found.points) == 4 and not found.failed and not found.missing
    seconds = [
        json.loads((tmp_path / "out" / point.name / "stages.json").read_text())["stages"]["cut"]["seconds"]
        for point in found.points
    ]
    assert seconds[0] == seconds[1] != seconds[2] == seconds[3]  # taken over, not done again


def test_jobs_are_counted_from_one(here: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["prune.flops=0.7,0.6", "--jobs", "0", "--out", str(tmp_path / "out")]
    assert main(["sweep", str(here / "tiny.yaml"), *words]) == 2
    assert "--jobs 0: give at least 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_page_links_every_run_and_is_written_again(done: tuple[Path, dict[str, int]], capsys: Any) -> None:
    out, *_ = done
    page = (out / "sweep.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page
    for point in SweepResults.read(out).points:
        assert f'href="{point.name}/report.html"' in page and (out / point.name / "report.html").is_file()
    (out / "sweep.html").unlink()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'sweep.html'}\n" and (out / "sweep.html").read_text() == page
    assert main(["run", "--resume", str(out)]) == 2
    assert capsys.readouterr().err == f"{out} is a sweep: distill sweep --resume {out}\n"
    one = out / SweepResults.read(out).points[0].name
    assert main(["sweep", "--resume", str(one)]) == 2
    assert capsys.readouterr().err == f"{one} is a run and no sweep: distill run --resume {one}\n"
    assert main(["sweep", "--resume", str(out), "batch=2,4"]) == 2
    assert "the sweep was started without values of batch" in capsys.readouterr().err


def test_a_student_that_is_gone_is_chosen_again_and_nothing_before_it(done: tuple[Path, dict[str, int]]) -> None:
    out, _ = done
    run = out / NAMES[1]
    (run / "student.pt").unlink()
    before = {name: (run / f"{name}.pt").stat().st_mtime_ns for name in ("teacher", "pruned", "repaired")}
    assert main(["sweep", "--resume", str(out), "--quiet"]) == 0
    assert (run / "student.pt").read_bytes() == (run / "repaired.pt").read_bytes()
    assert before == {name: (run / f"{name}.pt").stat().st_mtime_ns for name in before}


# --- the front -------------------------------------------------------------------------------------------------------


def point(values: str, gflops: float, latency: float, score: float | None, seed: str = "0") -> SweepPoint:
    keys = dict(word.split("=") for word in values.split())
    return SweepPoint(
        name=values, values={**keys, "seed": seed}, judged_by="mAP50-95", score=score, start=0.5, teacher=0.6,
        accepted=None if score is None else score >= 0.595, gflops=gflops, params=10**6, size_mb=1.0, latency_ms=latency,
        timed_in="PyTorch", teacher_gflops=10.0, teacher_latency_ms=20.0, data="d", imgsz=64,
    )  # fmt: skip


def test_the_front_is_what_no_other_choice_beats() -> None:
    points = (
        point("a=1", 8.0, 10.0, 0.60), point("a=2", 5.0, 12.0, 0.59), point("a=3", 6.0, 9.0, 0.55),
        point("a=4", 5.0, 12.0, 0.59), point("a=5", 1.0, 1.0, None),
    )  # fmt: skip
    axes = {"a": ("1", "2", "3", "4", "5"), "seed": ("0",)}
    sweep = SweepResults(1, "tiny", axes, None, points, (), 0)
    made = facts.choices(sweep)
    assert [choice.name for choice in made] == ["a=1", "a=3", "a=2", "a=4", "a=5"], "the most expensive first"
    brief = facts.table(sweep, brief=True)
    assert brief is not None and [row[-1] for row in brief.rows] == ["both", "latency", "GFLOPs", "GFLOPs", ""]
    assert {choice.name for choice in facts.front(made, facts.COSTS["GFLOPs"])} == {"a=1", "a=2", "a=4"}, "twins both"
    assert {choice.name for choice in facts.front(made, facts.COSTS["latency"])} == {"a=1", "a=3"}
    assert facts.gain(sweep) == "a=1 is the smallest that is accepted: 80% of the FLOPs, mAP50-95 0.600"


def test_seeds_are_one_choice() -> None:
    points = tuple(point(f"a={a}", 5.0 * a, 5.0, 0.5 + 0.1 * seed, str(seed)) for a in (1, 2) for seed in (0, 1))
    sweep = SweepResults(1, "tiny", {"a": ("1", "2"), "seed": ("0", "1")}, None, points, (), 0)
    table = facts.table(sweep)
    assert table is not None and [row[:2] for row in table.rows] == [
        ("1 a=2", "0.550 ± 0.071"),
        ("2 a=1", "0.550 ± 0.071"),
    ]
    assert table.rows[0][table.columns.index("accepted")] == "1 of 2"
    alone = SweepResults(1, "tiny", {"a": ("1",), "seed": ("0", "1")}, None, points[:2], (), 0)
    assert [choice.name for choice in facts.choices(alone)] == ["the recipe"]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"format": 1}')
    with pytest.raises(DistillError, match=r"sweep.json was not written by this version or is damaged .*new sweep$"):
        SweepResults.read(tmp_path)
