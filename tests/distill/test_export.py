"""The exported network is the network that was exported, and everything else is refused in one line."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from distill.engine.stages.export import EXPORT
from distill.errors import DistillError, RunError
from distill.kinds import exporting
from distill.machine.runtimes import parity
from distill.machine.runtimes.parity import PARITY_TOLERANCE, check_parity, compare_outputs
from distill.yolo import export
from distill.yolo.export import check_exports, export_checkpoint
from distill.yolo.kind import YOLO
from distill.yolo.upstream import export_formats


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of a few layers, saved the way ultralytics saves one."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    layers = {
        "nc": 2,
        "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C3", [32]]],
        "head": [[-1, 1, "Conv", [32, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]],
    }
    model = DetectionModel(layers, ch=3, nc=2, verbose=False).eval()
    model.names = {0: "cat", 1: "dog"}
    model.args = {"task": "detect", "imgsz": 64}
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save({"model": model, "train_args": {"task": "detect"}}, path)
    return path


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_exports_agree_with_the_checkpoint(checkpoint: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip("onnxruntime")
    out_dir = tmp_path / "exports"
    exported = export_checkpoint(checkpoint, format, out_dir, 64)
    assert exported.file == out_dir / f"tiny.{format}" and exported.file.is_file()
    assert exported.max_abs_diff is not None and 0 <= exported.max_abs_diff < PARITY_TOLERANCE
    assert exported.size_mb == exported.file.stat().st_size / 1e6
    assert [path.name for path in out_dir.iterdir()] == [exported.file.name], "left something behind"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["tiny.pt"], "littered beside the checkpoint"


def test_an_export_replaces_the_one_before_and_prints_nothing(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.torchscript").write_text("old")
    threads = torch.get_num_threads()
    exported = export_checkpoint(checkpoint, "torchscript", tmp_path, 60)  # rounded up to 64
    assert exported.size_mb > 0.1
    assert torch.get_num_threads() == threads
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_a_wrong_export_is_not_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity._RUNNERS, "torchscript", lambda file, image: torch.zeros(1, 6, 80))
    with pytest.raises(DistillError, match=r"tiny\.torchscript: not kept"):
        export_checkpoint(checkpoint, "torchscript", tmp_path, 64)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"none\.pt"):
        export_checkpoint(tmp_path / "none.pt", "torchscript", tmp_path / "exports", 64)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_machines_fault(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_export", full)
    with pytest.raises(RunError, match="No space left"):
        export_checkpoint(checkpoint, "torchscript", tmp_path, 64)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_made_here_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> Path:
        raise AssertionError("only on macOS\nand a long explanation")

    monkeypatch.setattr(export, "_export", refuse)
    with pytest.raises(DistillError, match=r"^export: tiny\.pt to 'torchscript' failed: only on macOS$"):
        export_checkpoint(checkpoint, "torchscript", tmp_path, 64)


def test_an_unknown_format_lists_the_known() -> None:
    with pytest.raises(DistillError, match="unknown format 'onxx', did you mean 'onnx'.*known: torchscript, onnx"):
        check_exports(["torchscript", "onxx"])


def test_ultralytics_knows_the_common_formats() -> None:
    assert {"onnx", "torchscript", "openvino", "engine", "coreml", "ncnn"} <= set(export_formats())
    assert "-" not in export_formats()
    check_exports(["torchscript"])


def test_a_missing_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what Python itself does for a module that may not load
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(DistillError, match=r"pip install onnxruntime$"):
        check_exports(["onnx"])


def test_difference_is_relative_for_boxes_and_absolute_for_scores() -> None:
    expected = torch.zeros(1, 2, 3)
    expected[0, 0] = torch.tensor([500.0, 250.0, 10.0])
    boxes_off, score_off = expected.clone(), expected.clone()
    boxes_off[0, 0, 2] += 0.5
    score_off[0, 1, 0] += 0.5
    assert compare_outputs(expected, expected) == 0
    assert compare_outputs(boxes_off, expected) == pytest.approx(0.5 / 500)
    assert compare_outputs(score_off, expected) == pytest.approx(0.5)
    assert compare_outputs(expected[:, :1], expected) == float("inf")


@pytest.mark.parametrize("wrong", [float("nan"), 2 * PARITY_TOLERANCE])
def test_parity_refuses_other_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    monkeypatch.setitem(parity._RUNNERS, "onnx", lambda file, image: image + wrong)
    with pytest.raises(DistillError, match="differs from the PyTorch model"):
        check_parity(tmp_path / "x.onnx", "onnx", nn.Identity(), torch.rand(1, 3, 8, 8))


def test_parity_says_when_a_file_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken.torchscript"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(DistillError, match=r"broken\.torchscript: exported, but it does not run"):
        check_parity(broken, "torchscript", nn.Identity(), torch.rand(1, 3, 8, 8))


def test_a_format_that_cannot_run_here_has_no_parity(tmp_path: Path) -> None:
    assert check_parity(tmp_path / "x.mlpackage", "coreml", nn.Identity(), torch.rand(1, 3, 8, 8)) is None


def test_results_json_gets_a_relative_path(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(checkpoint, tmp_path / "student.pt")
    recipe = SimpleNamespace(size=64, export=("torchscript",))
    session: Any = SimpleNamespace(kind=YOLO, folder=SimpleNamespace(path=tmp_path), recipe=recipe, opening={})
    (exported,) = EXPORT.work(session).exports
    assert json.loads(json.dumps(asdict(exported))) == {
        "format": "torchscript",
        "file": "exports/student.torchscript",
        "size_mb": (tmp_path / "exports" / "student.torchscript").stat().st_size / 1e6,
        "max_abs_diff": exported.max_abs_diff,
    }
    assert exported.max_abs_diff < PARITY_TOLERANCE
