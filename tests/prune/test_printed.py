"""What `prune` gives prints in a line or a short table, however large the network; and a slip says what was meant."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import prune
from prune.cut.plan import CutOptions


@pytest.fixture(scope="module")
def wide() -> tuple[nn.Module, prune.ChannelGraph]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(33):
        layers += [nn.Conv2d(512 if index else 3, 512, 1), nn.BatchNorm2d(512), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(512, 4, 1)).eval()
    return model, prune.trace(model, torch.zeros(1, 3, 4, 4))


def test_nothing_fills_a_screen(wide: tuple[nn.Module, prune.ChannelGraph]) -> None:
    _, graph = wide
    scores = prune.score(graph, "l1")
    plan = prune.make_plan(graph, scores, flops=0.5)
    for shown in (graph, scores, plan, graph.layers[1], graph.norms[0], graph.groups[0]):
        assert len(repr(shown)) < 200 and "\n" not in repr(shown), repr(shown)
    for printed in (str(graph), str(plan), str(scores), repr(graph.layers)):
        assert len(printed) < 4096
    assert repr(graph) == "ChannelGraph(33 groups, 16,896 channels, 8.44 M parameters, 0.27 GFLOPs)"
    assert "and 3 groups more" in str(graph) and str(graph).endswith(repr(graph))
    assert repr(scores) == "StaticImportance(33 groups, 16,896 channels)"
    rows = str(plan).splitlines()
    assert rows[0].split() == ["channels", "of", "before", "after"] and len(rows) == 35
    assert rows[1].split() == ["0", "512", str(plan.groups[0].after)]
    assert rows[-1] == plan.describe() and plan.describe() in repr(plan)


def test_repairs_of_a_network_print_in_a_screen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    images = torch.rand(8, 3, 8, 8)
    graph = prune.trace(model, images[:1])
    scores = prune.score(graph, "obs", batches=images)
    assert repr(scores) == "OBS(1 groups, 16 channels)"
    plan = prune.make_plan(graph, scores, ratio=0.5)
    student = prune.apply(model, plan)
    (repaired, *_) = prune.repair(student, model, plan, images)
    assert repr(repaired).startswith("LayerRepair('0', error ") and len(repr(repaired)) < 80


def test_a_slip_names_the_function_and_the_nearest_word(wide: tuple[nn.Module, prune.ChannelGraph]) -> None:
    model, graph = wide
    calls: list[tuple[Any, tuple[Any, ...], str, str]] = [
        (prune.make_plan, (graph, None), "flop", "prune.make_plan: no keyword flop, did you mean flops?"),
        (prune.plan_in_rounds, (graph,), "round", "prune.plan_in_rounds: no keyword round, did you mean rounds?"),
        (prune.score, (graph,), "batchs", "prune.score: no keyword batchs, did you mean batches?"),
        (prune.apply, (model, None), "zzz", "prune.apply: no keyword zzz, there are model, plan, adapter"),
    ]
    for function, args, word, line in calls:
        with pytest.raises(TypeError) as error:
            function(*args, **{word: 0.5})
        assert str(error.value) == line


def test_signatures_stay_and_every_keyword_passes() -> None:
    assert list(inspect.signature(prune.make_plan).parameters) == ["graph", "scores", "progress", "options"]
    assert "Unpack[CutOptions]" in str(inspect.signature(prune.make_plan))
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    graph = prune.trace(model, example_input=torch.zeros(1, 3, 4, 4))
    options: CutOptions = {"flops": 0.6, "params": None, "round_to": 1, "protect": (), "max_ratio": 0.9}
    plan = prune.make_plan(graph=graph, scores=prune.score(graph, "l1", seed=1), progress=None, ratio=None, **options)
    assert plan.groups[0].after < 16
