"""A GPU decides and mends what the CPU does. Where there is none, these are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.program.raw import tensors
from tests.prune.networks import SMALL, narrow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Convolutions in float32: by default a GPU may round their inputs to TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def squares(outputs: Any) -> Tensor:
    """A sensitivity without random numbers, which each device draws differently."""
    return sum(z.square().sum() for z in tensors(outputs))  # type: ignore[return-value]


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, side = narrow(name)
    return model.eval(), torch.rand(48, 3, side, side)


@pytest.mark.parametrize("name", [*SMALL, "yolov8n"])
def test_importance_is_that_of_the_cpu(name: str) -> None:
    costs = {}
    for device in ("cpu", "cuda"):
        model, images = network(name)
        graph = prune.trace(model.to(device), images[:1].to(device), adapter=YOLO_ADAPTER)
        scores = prune.score(graph, "obs", batches=images, sensitivity=squares)
        costs[device] = [scores.cost(group.index) for group in graph.groups]
    for here, there in zip(costs["cpu"], costs["cuda"], strict=True):
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=2e-2, atol=1e-3 * float(here.abs().mean()))


@pytest.mark.parametrize("name", [*SMALL, "yolov8n"])
def test_repair_is_that_of_the_cpu(name: str) -> None:
    errors, outputs = {}, {}
    model, images = network(name)
    graph = prune.trace(model, images[:1], adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.3, round_to=1)
    for device in ("cpu", "cuda"):
        model.to(device)
        student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
        assert prune.verify(model, student, plan, images[:1], adapter=YOLO_ADAPTER) < 1e-6
        layers = prune.repair(student, model, plan, images, sensitivity=squares, adapter=YOLO_ADAPTER)
        blocks = prune.reconstruct(student, model, plan, images, sensitivity=squares, steps=5, adapter=YOLO_ADAPTER)
        prune.recentre(student, images, adapter=YOLO_ADAPTER)
        errors[device] = [record.error_after for record in (*layers, *blocks)]
        with torch.no_grad():
            outputs[device] = torch.cat(
                [z.flatten() for z in tensors(YOLO_ADAPTER.outputs(student.eval()(images[:4].to(device))))]
            ).cpu()
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.1, abs=1e-3)
    apart = (outputs["cuda"] - outputs["cpu"]).norm() / outputs["cpu"].norm()
    assert apart < 0.02
