from __future__ import annotations

import pytest
import torch
from torch import nn

import prune
from prune.importance.sparsity import Penalty, coupled_scales, near_zero
from tests.prune.networks import SMALL, randomize

IMAGE = torch.rand(1, 3, 16, 16)


def test_coupled_scales_are_one_norm() -> None:
    model = randomize(SMALL["residual"]())
    scales = coupled_scales(prune.trace(model, IMAGE), model)
    torch.testing.assert_close(scales[0], model.stem.bn.weight.abs(), atol=1e-5, rtol=1e-5)
    both = (model.body.bn.weight[:8].square() + model.left.bn.weight.square()).sqrt()
    torch.testing.assert_close(scales[1], both, atol=1e-5, rtol=1e-5)


def test_the_penalty_is_l1_and_decays() -> None:
    model = randomize(SMALL["split"]())
    graph = prune.trace(model, IMAGE)
    penalty = Penalty(graph, 0.5)
    total = sum(scale.sum() for scale in coupled_scales(graph, model))
    torch.testing.assert_close(penalty(model), 0.5 * total)
    torch.testing.assert_close(penalty(model, 1.0), 0.05 * total)
    penalty(model).backward()
    torch.testing.assert_close(
        model.stem.bn.weight.grad, 0.5 * model.stem.bn.weight.detach().sign(), atol=1e-5, rtol=1e-5
    )
    assert model.stem.conv.weight.grad is None


def test_training_under_it_brings_scales_to_zero_and_bn_scale_cuts_those() -> None:
    model = randomize(SMALL["split"]())
    graph = prune.trace(model, IMAGE)
    assert near_zero(graph, model)["near_zero"] == 0
    penalty, optimizer = Penalty(graph, 1.0), torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(60):
        optimizer.zero_grad()
        penalty(model, step / 60).backward()
        optimizer.step()
    found = near_zero(graph, model)
    assert 0 < found["near_zero"] < found["channels"] == len(graph.group_of)


def test_channels_without_a_scale_are_not_counted() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    assert near_zero(prune.trace(plain, torch.rand(1, 3, 8, 8)), plain) == {"channels": 8, "near_zero": 0}


def test_a_model_without_batch_norm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = prune.trace(model, IMAGE)
    with pytest.raises(prune.PruneError, match="^sparsify needs BatchNorm layers"):
        Penalty(graph, 1.0)
    with pytest.raises(prune.PruneError, match="^bn_scale needs BatchNorm layers"):
        prune.score(graph, "bn_scale")
