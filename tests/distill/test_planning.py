"""An importance that a recipe names: prune's own, or a user's function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prune
from distill.engine.planning import importance_of
from distill.errors import DistillError

CODE = """
def constant(graph, context):
    return {group.index: context.batches[0].new_ones(len(group.channels)) for group in graph.groups}

def broken(graph, context):
    return graph.no_such_thing
"""


@pytest.fixture
def graph() -> prune.ChannelGraph:
    return prune.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.rand(1, 3, 8, 8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_a_function_in_a_file_is_an_importance(graph: prune.ChannelGraph, file: Path) -> None:
    assert importance_of("obs") == "obs"
    plan = prune.plan_in_rounds(
        graph, importance_of(f"{file}:constant"), images=torch.rand(2, 3, 8, 8), ratio=0.5, round_to=1
    )
    assert plan.groups[0].after == 4
    with pytest.raises(prune.PruneError, match=r"^importance 'constant' needs images"):
        prune.score(graph, importance_of(f"{file}:constant"))


def test_one_that_is_missing_or_fails_is_one_line(graph: prune.ChannelGraph, file: Path) -> None:
    with pytest.raises(DistillError, match=r"nothing named 'constnt' in .*constant"):
        importance_of(f"{file}:constnt")
    with pytest.raises(DistillError, match=r"^importance '.*mine.py:broken'.*no_such_thing"):
        prune.score(graph, importance_of(f"{file}:broken"))
