"""One complete run through the command line, on a data set drawn here: train, prune, repair, distill, export, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.cli import main

LOSS = '''
def my_kd(ctx, temperature=1.0):
    """Squared difference of the class probabilities."""
    return ((ctx.student.scores / temperature).sigmoid() - (ctx.teacher.scores / temperature).sigmoid()).square().mean()
'''


def draw(folder: Path) -> Path:
    """Large bright squares and discs on noise: something that a network learns in a minute."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 16)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            side, shape = int(rng.integers(24, 40)), index % 2
            x, y = (int(v) for v in rng.integers(0, 64 - side, 2))
            if shape:
                cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (40, 220, 250), -1)
            else:
                cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), (250, 160, 40), -1)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            box = [(x + side / 2) / 64, (y + side / 2) / 64, side / 64, side / 64]
            (folder / "labels" / split / f"{index}.txt").write_text(f"{shape} {' '.join(map(str, box))}\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [square, disc]\n")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("run")
    data = draw(root / "data")
    (root / "my_losses.py").write_text(LOSS)
    (root / "tiny.yaml").write_text(
        "imgsz: 64\n"
        "batch: 8\n"
        "device: cpu\n"
        "teacher: {train: {model: yolov8n.yaml, epochs: 14, patience: 14, lr: 4e-3, mosaic: 0}}\n"
        "prune: {flops: 0.6, images: 16}\n"
        "repair: {images: 32}\n"
        "distill:\n"
        "  epochs: 1\n"
        f"  losses: {{score_bce: 2.0, box_iou: 1.0, dfl_kl: 2.0, feature_pkd: 1.0, '{root}/my_losses.py:my_kd': 0.5}}\n"
        "latency: {runs: 3}\n"
    )
    assert main(["run", str(root / "tiny.yaml"), f"data={data}", "--out", str(root / "out"), "--quiet"]) == 0
    return root / "out"


def test_everything_that_a_run_promises_is_there(done: Path) -> None:
    for name in [
        "recipe.yaml",
        "env.json",
        "stages.json",
        "plan.json",
        "pruned.pt",
        "repaired.pt",
        "student.pt",
        "metrics.csv",
        "results.json",
        "report.md",
        "report.html",
        "plots",
        "exports/student.onnx",
        "log.txt",
    ]:
        assert (done / name).exists(), name
    results = json.loads((done / "results.json").read_text())
    models = results["models"]
    assert list(models) == ["teacher", "pruned", "repaired", "student"]
    assert models["teacher"]["map50_95"] > 0.1
    assert models["repaired"]["map50_95"] > models["pruned"]["map50_95"]
    assert models["student"]["map50_95"] >= models["repaired"]["map50_95"] or results["warnings"]
    assert 0.55 < models["student"]["gflops"] / models["teacher"]["gflops"] <= 0.61
    assert models["student"]["params"] < models["teacher"]["params"]
    assert models["student"]["size_mb"] < models["teacher"]["size_mb"]
    assert results["plan"]["verify"] < 1e-6 and results["exports"][0]["max_abs_diff"] < 1e-3
    assert "my_kd" in (done / "metrics.csv").read_text().splitlines()[0]


def test_it_goes_on_where_it_was_and_changes_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "student.pt").read_bytes()
    (done / "results.json").unlink()
    assert main(["run", "--resume", str(done)]) == 0
    assert (done / "student.pt").read_bytes() == before and (done / "results.json").is_file()
    assert "mAP50-95" in capsys.readouterr().out
    assert main(["run", str(done / "recipe.yaml"), "--out", str(done)]) == 2


def test_the_student_is_stock_ultralytics(done: Path) -> None:
    """Loads, predicts and validates in a process in which this project cannot be imported."""
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('distill', 'prune'): raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from ultralytics import YOLO
model = YOLO({str(done / "student.pt")!r})
model.predict({str(done.parent / "data/images/val/0.png")!r}, imgsz=64, verbose=False, save=False)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=done.parent, capture_output=True)


def test_it_can_be_trained_and_cut_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, student = done.parent / "data" / "data.yaml", done / "student.pt"
    given = [f"model={student}", f"data={data}", "imgsz=64", "batch=8", "device=cpu", "latency.runs=2", "export=[]"]
    out = done.parent / "again"
    assert main(["run", "finetune", *given, "distill.epochs=1", "--out", str(out), "--quiet"]) == 0
    rows = json.loads((out / "results.json").read_text())["models"]
    assert rows["student"]["params"] == rows["teacher"]["params"]
    assert (
        main(["plan", "yolov5-half", f"model={out / 'student.pt'}", *given[1:], "prune.importance=l1", "--quiet"]) == 0
    )
    assert "parameters" in capsys.readouterr().out


def test_it_can_be_measured_and_exported(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = done.parent / "copy.pt"
    student.write_bytes((done / "student.pt").read_bytes())
    assert main(["eval", str(student), f"data={done.parent / 'data' / 'data.yaml'}", "device=cpu"]) == 0
    measured = json.loads((done / "results.json").read_text())["models"]["student"]["map50_95"]
    assert f"{measured:.3f}" in capsys.readouterr().out
    assert main(["export", str(student), "torchscript", "imgsz=64"]) == 0
    assert (done.parent / "copy.torchscript").is_file()
