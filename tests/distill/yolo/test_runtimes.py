"""Runtimes run what was exported for them, and the costs of a run hold the latency of both exports."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.engine.stages.export import EXPORT, ExportRecord
from distill.engine.stages.measure import MEASURE
from distill.errors import DistillError
from distill.machine.runtimes import table
from distill.machine.runtimes.openvino import library
from distill.machine.runtimes.parity import check_parity
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import RUNTIMES, runtimes_for
from distill.results.steps import Export
from distill.yolo.export import export_checkpoint
from distill.yolo.kind import YOLO, Yolo
from distill.yolo.upstream import export_formats


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of a few layers, as a run leaves them, and the student's export."""
    from ultralytics.nn.tasks import DetectionModel

    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("run")
    for name, width in (("teacher", 32), ("student", 16)):
        layers = {
            "nc": 2,
            "backbone": [[-1, 1, "Conv", [width, 3, 2]], [-1, 1, "Conv", [width, 3, 2]]],
            "head": [[-1, 1, "Conv", [width, 3, 2]], [[1, 2], 1, "Detect", ["nc"]]],
        }
        model = DetectionModel(layers, ch=3, nc=2, verbose=False).eval()
        model.names, model.args = {0: "cat", 1: "dog"}, {"task": "detect", "imgsz": 64}
        torch.save({"model": model, "train_args": {"task": "detect"}}, folder / f"{name}.pt")
    export_checkpoint(folder / "student.pt", "onnx", folder / "exports", 64)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_a_runtime_computes_what_pytorch_does(run_folder: Path, runtime: Runtime) -> None:
    pytest.importorskip(runtime.package, reason=f"{runtime.package} is not installed: pip install {runtime.package}")
    assert runtime.format in export_formats() and runtime.installed
    model = torch.load(run_folder / "student.pt", weights_only=False)["model"]
    image = torch.rand(1, 3, 64, 64)
    for source in (run_folder / "exports" / "student.onnx", (run_folder / "exports" / "student.onnx").read_bytes()):
        forward = runtime.open(source, 1)
        with torch.no_grad():
            torch.testing.assert_close(forward(image)[0], model(image)[0], rtol=1e-3, atol=1e-3)


def test_an_openvino_export_is_a_folder_and_is_compared(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    openvino = library()
    network = openvino.Core().read_model(run_folder / "exports" / "student.onnx")
    openvino.save_model(network, tmp_path / "student_openvino_model" / "student.xml", compress_to_fp16=False)
    model = torch.load(run_folder / "student.pt", weights_only=False)["model"]
    found = check_parity(tmp_path / "student_openvino_model", "openvino", model, torch.rand(1, 3, 64, 64))
    assert found is not None and found < 1e-4


def test_a_runtime_is_used_if_it_is_installed_and_something_was_exported_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "RUNTIMES", (RUNTIMES[0], replace(RUNTIMES[0], package="no_such_package")))
    assert runtimes_for(("torchscript", RUNTIMES[0].format)) == [RUNTIMES[0]]
    assert runtimes_for(("torchscript",)) == [] and runtimes_for(()) == []


def test_onnx_runtime_gets_the_threads_that_it_is_to_have(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen: list[int] = []
    make = onnxruntime.InferenceSession

    def watch(file: str, options: Any, **others: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return make(file, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    RUNTIMES[0].open(run_folder / "exports" / "student.onnx", 3)
    assert seen == [3]


def test_openvino_takes_this_for_a_build_machine_while_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("import os\nseen = os.environ.get('TF_BUILD')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.delenv("TF_BUILD", raising=False)
    assert library().seen == "True" and "TF_BUILD" not in os.environ
    monkeypatch.setenv("TF_BUILD", "1")
    library()
    assert os.environ["TF_BUILD"] == "1"
    monkeypatch.delitem(sys.modules, "openvino")


class Watched:
    """A session of a run that is exported: what MEASURE reads of one."""

    def __init__(self, path: Path, *exports: str) -> None:
        exported = ExportRecord(tuple(Export(name, f"exports/student.{name}", 1.0, 0.0) for name in exports))
        record = json.loads(json.dumps(asdict(exported) | {"seconds": 1.0, "warnings": []}))
        self.folder = SimpleNamespace(path=path, stages={EXPORT.name: record})
        self.opening: dict[str, Any] = {}
        self.recipe = SimpleNamespace(size=64, latency=SimpleNamespace(runs=3), export=exports)
        self.kind: Any = YOLO
        self.device = torch.device("cpu")
        self.warned: list[str] = []
        self.labels: list[str] = []
        self.console = SimpleNamespace(track=self.track, warn=self.warned.append)

    def track(self, items: Iterable[Any], label: str, total: int, unit: str) -> Iterable[Any]:
        self.labels.append(label)
        return items

    def load(self, network: Any) -> Any:
        return SimpleNamespace(model=torch.load(self.folder.path / network.file, weights_only=False)["model"])


def test_the_exports_of_both_are_timed(run_folder: Path) -> None:
    session = Watched(run_folder, "onnx")
    costs = MEASURE.work(session)  # type: ignore[arg-type]
    assert (run_folder / "exports" / "teacher.onnx").is_file()
    assert session.labels == ["latency in ONNX Runtime", "latency"] and not session.warned
    for cost in (costs.teacher, costs.student):
        (deployed,) = cost.deployed
        assert (deployed.runtime, deployed.threads) == ("ONNX Runtime", torch.get_num_threads())
        assert f"{deployed.threads} thread" in deployed.device
        assert 0 < deployed.latency_ms.p10 <= deployed.latency_ms.median and deployed.latency_ms.runs == 3


def test_each_network_is_timed_by_its_own_export(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_(file: Path, threads: int) -> Any:
        opened.append(file.name)
        return lambda image: image

    monkeypatch.setattr(table, "RUNTIMES", (replace(RUNTIMES[0], open=open_),))
    MEASURE.work(Watched(run_folder, "torchscript", "onnx"))  # type: ignore[arg-type]
    assert opened == ["teacher.onnx", "student.onnx"]


def test_without_an_export_that_a_runtime_runs_there_is_pytorch(run_folder: Path) -> None:
    costs = MEASURE.work(Watched(run_folder, "torchscript"))  # type: ignore[arg-type]
    assert costs.student.deployed == () and costs.student.latency_ms.median > 0


class Refusing(Yolo):
    def export(self, *args: object, **options: object) -> Any:
        raise DistillError("export: teacher.pt to 'onnx' failed: no")


def test_a_teacher_that_cannot_be_exported_ends_no_run(run_folder: Path) -> None:
    session = Watched(run_folder, "onnx")
    session.kind = Refusing()
    assert MEASURE.work(session).student.deployed == ()  # type: ignore[arg-type]
    assert len(session.warned) == 1 and "ONNX Runtime" in session.warned[0] and "failed: no" in session.warned[0]
