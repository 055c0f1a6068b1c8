"""A teacher runs where it is fastest, if its outputs are the same there; a run that goes on has it run where it began."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.engine.stages.train import TRAIN
from distill.engine.stages.tune import TUNE
from distill.errors import DistillError
from distill.losses import WeightedLoss, resolve
from distill.losses.context import Outputs
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import RUNTIMES
from distill.recipe.schema import RUNTIMES as WORDS
from distill.results.steps import TeacherForward, Tuning
from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.outputs import distillation, run, teacher_of
from distill.yolo.kind import Yolo
from distill.yolo.training import forwards, in_memory
from distill.yolo.training.forwards import check_runtime, choose_forwards, fastest, use_forwards
from distill.yolo.training.in_memory import InRuntime, difference
from tests.distill.yolo.test_anchor_head import network as anchor_network
from tests.distill.yolo.test_trainer import tiny

CPU = torch.device("cpu")
LAYERS = ("neck", "model.1")


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def needs(*runtimes: Runtime) -> None:
    for runtime in runtimes:
        for package in ("onnx", runtime.package):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")


def task(features: tuple[str, ...] = ("neck",)) -> DistillationTask:
    losses = [WeightedLoss(name, 1.0, resolve(name)) for name in ("box_iou", "feature_pkd")]
    return distillation(tiny(), [teacher_of(checkpoint.fused(tiny()), losses)], features=features)


def everything(outputs: Outputs) -> list[Tensor]:
    optional = [each for each in (outputs.dist, outputs.objectness) if each is not None]
    return [*outputs.features, outputs.scores, outputs.boxes, *optional, *outputs.at.values()]


def timed(**ms: float) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """A timer that calls every candidate and gives these times."""

    def timer(passes: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        return {name: ms[name] for name, work in passes.items() if isinstance(work(), Outputs)}

    return timer


@pytest.mark.parametrize("make", [tiny, anchor_network], ids=["dfl", "anchors"])
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_outputs_are_those_of_pytorch_for_a_batch_of_any_length(runtime: Runtime, make: Callable[[], Any]) -> None:
    needs(runtime)
    teacher = checkpoint.fused(make()).requires_grad_(False)
    forward = InRuntime(runtime, teacher, images(), LAYERS)
    for count in (3, 1, 4):
        batch = images(count).contiguous(memory_format=torch.channels_last)
        found, expected = forward(teacher, batch, LAYERS), run(teacher, batch, LAYERS)
        assert difference(found, expected) < 1e-4 and found.at.keys() == {"model.1"}
        torch.testing.assert_close(everything(found), everything(expected), rtol=1e-4, atol=1e-3)
    kept = forward(teacher, images()).scores.clone()
    first = forward(teacher, images())
    forward(teacher, 1 - images())
    assert torch.equal(first.scores, kept), "the next batch does not write over the outputs of this one"


def test_what_was_not_exported_runs_in_pytorch() -> None:
    needs(RUNTIMES[0])
    teacher = checkpoint.fused(tiny()).requires_grad_(False)
    forward = InRuntime(RUNTIMES[0], teacher, images())
    larger = torch.rand(1, 3, 96, 64)
    torch.testing.assert_close(forward(teacher, larger).boxes, run(teacher, larger).boxes)
    assert forward(teacher, images(), ("model.0",)).at["model.0"].shape[0] == 3


def test_a_student_learns_the_same() -> None:
    needs(RUNTIMES[0])
    distilling, gradients = task(), []
    make = torch.Generator().manual_seed(1)
    for part in distilling.student.parameters():
        part.data += 0.1 * part.abs().mean() * torch.randn(part.shape, generator=make)
        part.requires_grad_(True)
    for chosen in ({}, {"original": TeacherForward(RUNTIMES[0].package)}):
        use_forwards(distilling, chosen, 64)
        distilling.zero_grad()
        distilling({"img": images()})["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in distilling.student.parameters() if p.grad is not None]))
    assert isinstance(distilling.teachers[0].run, InRuntime)
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ({"torch": 100.0}, "torch"),
        ({"torch": 100.0, "onnxruntime": 95.0, "openvino": 92.0}, "torch"),  # near
        ({"torch": 100.0, "onnxruntime": 60.0, "openvino": 80.0}, "onnxruntime"),
        ({"torch": 100.0, "onnxruntime": 80.0, "openvino": 60.0}, "openvino"),
        ({"torch": 100.0, "onnxruntime": 62.0, "openvino": 60.0}, "onnxruntime"),  # near each other: the table's first
        ({"torch": 100.0, "onnxruntime": 130.0, "openvino": 120.0}, "torch"),
    ],
)
def test_a_runtime_is_taken_if_it_is_clearly_faster(times: dict[str, float], name: str) -> None:
    assert fastest(times) == name


def test_the_choice_is_measured_proven_and_made() -> None:
    needs(*RUNTIMES)
    distilling = task(LAYERS)
    chosen = choose_forwards(distilling, images(), "auto", 10**6, timed(torch=90.0, onnxruntime=60.0, openvino=80.0))
    forward = chosen["original"]
    assert (forward.runtime, forward.title, forward.speedup) == ("onnxruntime", "ONNX Runtime", 1.5)
    assert forward.difference is not None and 0 < forward.difference < 1e-4
    assert str(forward).startswith("runs in ONNX Runtime, 1.5x as fast as in PyTorch, outputs equal to ")
    runner = distilling.teachers[0].run
    assert isinstance(runner, InRuntime) and runner.points == frozenset(LAYERS)


def other_outputs(runtime: Runtime) -> Runtime:
    """The runtime with outputs off by a hundredth."""

    def open_(source: Path | bytes, threads: int) -> Callable[[Tensor], list[Tensor]]:
        forward = runtime.open(source, threads)
        return lambda batch: [1.01 * output for output in forward(batch)]

    return replace(runtime, open=open_)


def test_other_outputs_are_refused_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(RUNTIMES[0])
    monkeypatch.setattr(forwards, "RUNTIMES", (other_outputs(RUNTIMES[0]),))
    distilling, timer = task(), timed(torch=90.0, onnxruntime=1.0)
    before = distilling.teachers[0].run
    assert choose_forwards(distilling, images(), "auto", 10**6, timer) == {"original": TeacherForward()}
    assert distilling.teachers[0].run is before
    with pytest.raises(
        DistillError, match=r"^distill.teacher_runtime: .* ONNX Runtime: its outputs differ by \d.* of their spread"
    ):
        choose_forwards(distilling, images(), "onnxruntime", 10**6, timer)


def test_a_runtime_that_fails_leaves_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(RUNTIMES[0])

    def fail(source: Path | bytes, threads: int) -> Any:
        raise RuntimeError("no such operator\nat line 3")

    monkeypatch.setattr(forwards, "RUNTIMES", (replace(RUNTIMES[0], open=fail),))
    assert choose_forwards(task(), images(), "auto", 10**6, timed(torch=90.0))["original"].runtime == "torch"
    with pytest.raises(DistillError, match=r"ONNX Runtime \(no such operator\): give auto or torch$"):
        choose_forwards(task(), images(), "onnxruntime", 10**6, timed(torch=90.0))


@pytest.mark.parametrize(("wanted", "steps"), [("torch", 10**9), ("auto", 100)])
def test_pytorch_and_short_trainings_export_nothing(monkeypatch: pytest.MonkeyPatch, wanted: str, steps: int) -> None:
    monkeypatch.setattr(forwards, "InRuntime", None)
    assert choose_forwards(task(), images(), wanted, steps, timed(torch=200.0)) == {"original": TeacherForward()}


def test_a_runtime_that_is_named_is_taken_whatever_its_time() -> None:
    needs(RUNTIMES[0])
    chosen = choose_forwards(task(), images(), "onnxruntime", 1, timed(torch=50.0, onnxruntime=100.0))
    assert chosen["original"].runtime == "onnxruntime" and chosen["original"].speedup == 0.5


def test_what_cannot_be_used_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("auto", "torch", *(runtime.package for runtime in RUNTIMES), "bfloat16") == WORDS
    for word in ("auto", "torch", "bfloat16"):
        check_runtime(word, torch.device("cuda", 0))
    with pytest.raises(DistillError, match=r"^distill.teacher_runtime: OpenVINO .* on cuda:0: give auto or torch"):
        check_runtime("openvino", torch.device("cuda", 0))
    monkeypatch.setattr(in_memory, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    with pytest.raises(
        DistillError, match="^distill.teacher_runtime: OpenVINO needs .*: pip install .*openvino, or give"
    ):
        check_runtime("openvino", CPU)
    with pytest.raises(
        DistillError, match="runs in OpenVINO, and .*openvino is not installed: pip install .*, or start a"
    ):
        use_forwards(task(), {"original": TeacherForward("openvino")}, 64)


def test_bfloat16_is_near_and_taken_only_if_it_is_wanted() -> None:
    distilling, timer = task(), timed(torch=90.0, bfloat16=45.0)
    chosen = choose_forwards(distilling, images(), "bfloat16", 1, timer)
    forward = chosen["original"]
    assert forward.speedup == 2.0 and forward.difference is not None and 1e-5 < forward.difference < 1
    assert str(forward).startswith("runs in PyTorch in bfloat16, 2x as fast as in PyTorch, outputs ")
    again = task()
    use_forwards(again, chosen, 64)
    for teacher in (*distilling.teachers, *again.teachers):
        outputs = teacher.run(teacher.network, images(), ())
        assert outputs.class_logits.dtype == torch.bfloat16 and outputs.scores.dtype == torch.float32
    assert distilling({"img": images()})["loss"].isfinite()


class Trained(Exception):
    """Training begins."""


class Timed(Yolo):
    """The kind as it is, but for trials that are known and a timer of these milliseconds."""

    def __init__(self, **milliseconds: float) -> None:
        self.timer = timed(**milliseconds)

    def trials(self, *args: object, **place: object) -> Any:
        return SimpleNamespace(example_images=images, tolerates_batch_stats=lambda task: True)

    def choose_forwards(self, *args: Any) -> Any:
        return choose_forwards(*args, self.timer)


def session(distilling: DistillationTask, student: nn.Module, **stages: Any) -> Any:
    """Of a run on these networks, up to where its training begins."""

    def train(model: nn.Module, schedule: Schedule, name: str, task: DistillationTask) -> None:
        raise Trained(task)

    options = SimpleNamespace(teacher_runtime="auto", balance=False, lr=1e-3)
    return SimpleNamespace(
        recipe=SimpleNamespace(distill=options, size=64, seed=0, fresh=False),
        console=SimpleNamespace(lines=[], line=lambda text: said.append(text), track=None),
        device=CPU,
        kind=Timed(torch=90.0, onnxruntime=30.0, openvino=89.0),
        data=None,
        plan=SimpleNamespace(keep_inputs=None),
        folder=SimpleNamespace(
            path=Path(), stages={k: {**v, "seconds": 1.0, "warnings": []} for k, v in stages.items()}
        ),
        training_start=lambda *args: (SimpleNamespace(model=student), Schedule(epochs=1, batch=3, steps=10**6)),
        task=lambda *args: distilling,
        train=train,
    )


said: list[str] = []


def test_what_was_chosen_is_recorded_and_a_run_that_goes_on_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(RUNTIMES[0])
    said.clear()
    record = TUNE.work(session(task(), tiny()))
    assert isinstance(record, Tuning) and record.forwards["original"].runtime == "onnxruntime"
    assert len(said) == 1 and said[0].startswith("teacher runs in ONNX Runtime, 3x as fast")
    # Another process goes on. It measures nothing.
    monkeypatch.setattr(forwards, "in_turns", None)
    plain = json.loads(json.dumps(asdict(record)))
    for kept, kind in ((plain, True), ({**plain, "forwards": {}}, False)):
        with pytest.raises(Trained) as began:
            TRAIN.work(session(task(), tiny(), tune=kept))
        assert isinstance(began.value.args[0].teachers[0].run, InRuntime) is kind
