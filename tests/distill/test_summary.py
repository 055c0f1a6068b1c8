"""The page of all results: small files kept of runs, the commands that made them, tables between two marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from distill.comparison import arms
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.report import summary

COST = {"params": 2_000_000, "gflops": 2.0, "size_mb": 5.0}
DATA = {"path": "/srv/sets/cells/data.yaml", "train_images": 205, "val_images": 87, "classes": ["a"], "labelled": True}
COMMON = {"model": "/srv/best.pt", "data": DATA, "imgsz": 320, "device": "a CPU", "versions": {"torch": "2.9.1"}}
SETTING = ("model=/srv/best.pt", "data=/srv/sets/cells/data.yaml", "imgsz=320", "distill.epochs=10", "device=cpu")


def compare_dir(folder: Path, flops: float, own: str = "") -> Path:
    """The folder of a finished comparison."""
    recipe = recipes.load("yolov5-half", [*SETTING, f"prune.flops={flops}"])
    comparison = arms.plan(recipe, "finetune,ours", [own] if own else [], 2, None)
    runs = [
        {
            "arm": arm.name,
            "seed": seed,
            "lr_tried": None,
            "lr": 1e-3,
            "start": 0.5 + 0.01 * seed,
            "map50_95": 0.6 + 0.01 * index + 0.002 * seed,
            "map50": 0.9,
            "labels": True,
            "history": [0.5] * 10,
            "seconds_per_step": 0.5,
            "schedule": {"epochs": 10, "steps": 260, "batch": 8},
            "folder": f"{arm.name}/seed-{seed}-lr-auto",
        }
        for index, arm in enumerate(comparison.arms)
        for seed in comparison.seeds
    ]
    teacher = {"map50_95": 0.63, **{key: COST[key] for key in ("gflops", "params")}}
    content = {
        "format": 1,
        "recipe_name": recipe.name,
        **comparison.to_dict(),
        "about": {**COMMON, "teacher": teacher, "pruned": {"map50_95": 0.25, "gflops": 2 * flops, "params": 500_000}},
        "chosen": dict.fromkeys((arm.name for arm in comparison.arms), None),
        "runs": runs,
        "failed": [],
    }
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps(content))
    (folder / "recipe.yaml").write_text(recipes.to_yaml(recipe))
    return folder


def run_dir(folder: Path, **changes: Any) -> Path:
    """The folder of a finished run."""
    import yaml

    recipe = recipes.load("yolov5-half", SETTING)
    models = {
        "teacher": {"map50_95": 0.63, "map50": 0.9, **COST, "latency_ms": {"median": 30.0, "p10": 29, "p90": 31}},
        "student": {"map50_95": 0.62, "map50": 0.89, **COST, "gflops": 1.0, "latency_ms": {"median": 20.0}},
    }
    content = {
        "recipe": yaml.safe_load(recipes.to_yaml(recipe)),
        "recipe_name": recipe.name,
        **COMMON,
        "models": models,
        "chosen": "student",
        "history": [{"epoch": 1}],
        "plan": {"groups": [{"name": "model.0", "before": 16, "after": 8}]},
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
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


def test_the_page(kept: Path) -> None:
    page = summary.write(kept)
    assert page == kept.parent / "results.md"
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| 70%", "| 50%"))]
    assert rows[0] == "| 70% | 25% | 0.250 | 0.505 ± 0.007 | 0.611 ± 0.001 | 0.601 ± 0.001 | 2 |"
    assert rows[1].startswith("| 50% |")
    assert "| `finetune` | 0.505 ± 0.007 | 0.601 ± 0.001 | −0.010 ± 0.000 | beyond noise |" in text
    assert "Machine: a CPU, torch 2.9.1." in text
    assert "| change | −0.010 | −0.010 | 0% | −50% | 1.5× faster |" in text
    assert "[cells-0.7.json](results/cells-0.7.json)" in text


def test_every_row_has_the_command_that_made_it(kept: Path) -> None:
    lines = [line.strip() for line in summary.write(kept).read_text().splitlines() if line.startswith("    distill")]
    setting = "yolov5-half model=best.pt data=cells/data.yaml imgsz=320"
    assert lines == [
        f"distill compare {setting} prune.flops=0.7 distill.epochs=10 --arms finetune,ours --seeds 2",
        f"distill compare {setting} distill.epochs=10 --arms finetune,ours --seeds 2",
        f"distill run {setting} distill.epochs=10",
    ]


def test_an_arm_of_ones_own_comes_back_from_its_command(tmp_path: Path) -> None:
    own = "boxes=distill.labels=0.5 'distill.losses={box_iou: 8}'"
    summary.collect([compare_dir(tmp_path / "own", 0.5, own)], tmp_path / "results")
    import shlex

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
    assert "old" not in text and "One run at 50%: 1.5× faster, 30.0 ms → 20.0 ms (a CPU, batch 1)." in text
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
    assert "holds neither results.json nor compare.json" in says("--results", str(folder), str(tmp_path))
    assert "give the folder of one run" in says()
    assert "give the folder of one run" in says("a", "b")
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    assert "broken.json: cannot be read as JSON" in says("--results", str(folder))
    (folder / "broken.json").write_text("[]")
    assert "broken.json: is not the result" in says("--results", str(folder))
    (folder / "broken.json").write_text('{"models": {}}')
    assert "broken.json: Run: no 'recipe'; add it from its folder" in says("--results", str(folder))
    run = compare_dir(tmp_path / "compare", 0.5)
    (run / "recipe.yaml").unlink()
    with pytest.raises(DistillError, match=r"recipe\.yaml: not there"):
        summary.collect([run], folder)
