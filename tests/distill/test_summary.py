"""The page of all results: small files kept of runs, the commands that made them, tables between two marks."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.comparison import arms
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.report import summary
from distill.results.comparison import ArmRun, ComparedNetwork, ComparisonResults, Setting, TrainingSize
from distill.results.figures import Latency
from distill.results.quality import Curves, Pictures
from distill.results.steps import DataFacts
from tests.distill.test_results import RESULTS

SETTING = ("model=/srv/best.pt", "data=/srv/sets/cells/data.yaml", "imgsz=320", "distill.epochs=10", "device=cpu")


def compare_dir(folder: Path, flops: float, own: str = "") -> Path:
    """The folder of a finished comparison."""
    recipe = recipes.load("half", [*SETTING, f"prune.flops={flops}"])
    comparison = arms.plan(recipe, "finetune,ours", [own] if own else [], 2, None)
    runs = [
        ArmRun(
            arm.name,
            seed,
            None,
            1e-3,
            0.5 + 0.01 * seed,
            0.6 + 0.01 * index + 0.002 * seed,
            0.9,
            True,
            (0.5,) * 10,
            0.5,
            TrainingSize(10, 260, 8),
            f"{arm.name}/seed-{seed}-lr-auto",
        )
        for index, arm in enumerate(comparison.arms)
        for seed in comparison.seeds
    ]
    networks = ComparedNetwork(0.63, 2.0, 2_000_000), ComparedNetwork(0.25, 2 * flops, 500_000)
    data = DataFacts("/srv/sets/cells/data.yaml", 205, 87, ("a",), True)
    content = ComparisonResults(
        recipe_name=recipe.name,
        arms=comparison.arms,
        seeds=comparison.seeds,
        lrs=comparison.lrs,
        about=Setting("/srv/best.pt", data, 320, "a CPU", {"torch": "2.9.1"}, *networks),
        chosen=dict.fromkeys((arm.name for arm in comparison.arms), None),
        runs=tuple(runs),
        failed=(),
    )
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps(content.to_dict()))
    (folder / "recipe.yaml").write_text(recipes.to_yaml(recipe))
    return folder


def run_dir(folder: Path, recipe_name: str = "half") -> Path:
    """The folder of a finished run."""
    recipe = yaml.safe_load(recipes.to_yaml(recipes.load("half", SETTING)))
    teacher, student = RESULTS.models["teacher"], RESULTS.models["student"]
    curves = Curves((1.0, 0.5), {"cell": (1.0, 0.5)}, (("cell", None, 3),))
    models = {
        "teacher": replace(teacher, curves=curves),
        "student": replace(student, gflops=1.0, latency_ms=Latency(2.0, 1.5, 2.5, 50)),
    }
    results = replace(RESULTS, recipe=recipe, recipe_name=recipe_name, model="/srv/best.pt", models=models)
    results = replace(results, pictures=Pictures(0.25, 5, {"cell": "#042aff"}, ()))
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results.to_dict()))
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "docs" / "results"
    runs = [compare_dir(tmp_path / f"cells-{flops}", flops) for flops in (0.5, 0.7)]
    summary.collect([*runs, run_dir(tmp_path / "cells-run")], folder)
    return folder


def test_what_is_kept_is_small_and_names_no_machine(kept: Path) -> None:
    assert sorted(file.name for file in kept.iterdir()) == ["cells-0.5.json", "cells-0.7.json", "cells-run.json"]
    for file in kept.iterdir():
        text = file.read_text()
        assert "/srv" not in text and "cells/data.yaml" in text
        assert '"epoch"' not in text and "model.0" not in text and '"history": []' in text
        assert '"curves": {' not in text and "#042aff" not in text


def test_the_page(kept: Path) -> None:
    page = summary.write(kept)
    assert page == kept.parent / "results.md"
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| 70%", "| 50%"))]
    assert rows[0] == "| 70% | 25% | 0.250 | 0.505 ± 0.007 | 0.611 ± 0.001 | 0.601 ± 0.001 | 2 |"
    assert rows[1].startswith("| 50% |")
    assert "| `finetune` | 0.505 ± 0.007 | 0.601 ± 0.001 | −0.010 ± 0.000 | beyond noise |" in text
    assert "Machine: a CPU, torch 2.9.1." in text
    assert "| GFLOPs at 320 px | 2.00 | 1.00 | −50% |" in text and "| 3.00 \\[2.50–3.50] |" in text
    assert "[cells-0.7.json](results/cells-0.7.json)" in text


def test_every_row_has_the_command_that_made_it(kept: Path) -> None:
    lines = [line.strip() for line in summary.write(kept).read_text().splitlines() if line.startswith("    distill")]
    setting = "half model=best.pt data=cells/data.yaml imgsz=320"
    assert lines == [
        f"distill compare {setting} prune.flops=0.7 distill.epochs=10 --arms finetune,ours --seeds 2",
        f"distill compare {setting} distill.epochs=10 --arms finetune,ours --seeds 2",
        f"distill run {setting} distill.epochs=10",
    ]


def test_a_recipe_that_was_renamed_is_called_by_its_new_name(tmp_path: Path) -> None:
    summary.collect([run_dir(tmp_path / "old", "yolov5-half")], tmp_path / "results")
    assert "    distill run half model=best.pt " in summary.write(tmp_path / "results").read_text()


def test_an_arm_of_ones_own_comes_back_from_its_command(tmp_path: Path) -> None:
    own = "boxes=distill.labels=0.5 'distill.losses={box_iou: 8}'"
    summary.collect([compare_dir(tmp_path / "own", 0.5, own)], tmp_path / "results")
    (line,) = [
        line for line in summary.write(tmp_path / "results").read_text().splitlines() if line.startswith("    distill")
    ]
    words = shlex.split(line)
    assert words[words.index("--arm") + 1] == own


def test_a_recipe_that_is_not_shipped_is_a_file(tmp_path: Path) -> None:
    summary.collect([run_dir(tmp_path / "run", recipe_name="mine")], tmp_path / "results")
    assert "    distill run mine.yaml\n" in summary.write(tmp_path / "results").read_text()


def test_the_table_goes_between_its_two_marks(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"# Title\n\n{summary.BEGIN}\nold\n{summary.END}\n\nmore\n")
    assert main(["report", "--results", str(kept), "--table", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"# Title\n\n{summary.BEGIN}\n\nbest.pt on cells, 320 px, 10 epochs.") and text.endswith(
        "more\n"
    )
    assert "old" not in text and "One run at 50%: 1.5× faster, 3.00 ms → 2.00 ms (CPU, batch 1)." in text
    assert main(["report", "--results", str(kept), "--table", str(document)]) == 0
    assert document.read_text() == text
    document.write_text("# Title\n")
    assert main(["report", "--results", str(kept), "--table", str(document)]) == 2
    assert f"README.md: give it a line '{summary.BEGIN}'" in capsys.readouterr().err
    assert document.read_text() == "# Title\n"


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(*words: str) -> str:
        assert main(["report", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    folder = tmp_path / "results"
    assert "holds no .json file" in says("--results", str(folder))
    assert "holds neither compare.json nor results.json" in says("--results", str(folder), str(tmp_path))
    assert "give the folder of one run" in says()
    assert "give the folder of one run" in says("a", "b")
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    assert "broken.json: cannot be read as JSON" in says("--results", str(folder))
    (folder / "broken.json").write_text("[]")
    assert "broken.json: is not the result" in says("--results", str(folder))
    (folder / "broken.json").write_text('{"models": {}}')
    assert "RUN_DIR" in says("--results", str(folder))
    run = compare_dir(tmp_path / "compare", 0.5)
    (run / "recipe.yaml").unlink()
    with pytest.raises(DistillError, match=r"recipe\.yaml: not there"):
        summary.collect([run], folder)
