"""The rows of tests/bench/ground.py are comparisons that can be done: their keys, arms and images are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli.commands import COMMANDS
from distill.comparison import arms
from distill.recipe import load as recipes
from distill.yolo.data import dataset as datasets
from tests.bench.ground import ROWS, arguments, command, images
from tests.distill.yolo.test_trainer import write_images


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_a_comparison(row, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / row.data)
    words = [str(tmp_path / "data"), "batch=8", "--out", str(tmp_path / "out"), "--limit", "10", "--epochs", "2"]
    args = arguments(words)
    given = command(row, args)
    keys = given[: min(given.index(word) for word in ("--arm", "--arms") if word in given)]
    recipe = recipes.load("half", keys)
    plan = arms.plan(recipe, row.arms, row.own, args.seeds)
    assert [arm.name for arm in plan.arms] == row.arms.split(",") and len(plan.seeds) == 3
    assert (recipe.prune.flops, recipe.imgsz, recipe.batch) == (row.flops, row.imgsz, 8)
    assert recipe.model == str((tmp_path / "weights" / row.model).resolve())
    file, rest = images(row, args)
    assert str(file) == recipe.data and len(datasets.load(file).train) == 10 * row.part
    assert (rest is None) == (row.part == 1) and recipe.distill.epochs == 2
    if rest is not None:
        assert recipe.unlabelled.images == (str(rest),) and len(rest.read_text().splitlines()) == 9
        alone = [plan.variant(arm, 0, None) for arm in plan.arms[1:]]
        assert all(each.unlabelled.ratio == 0 for each in alone) and not alone[-1].distill.losses
    taken = {option for option, _ in COMMANDS["compare"].arguments}
    assert {word for word in given if word.startswith("--")} <= taken
