"""One complete run of a detector that also works without NMS, on a data set drawn here: YOLO26."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from distill.cli.main import main
from distill.results.results import Results
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.end_to_end import END_TO_END
from distill.yolo.families.table import family_of
from tests.test_run import draw

SHORT = """# the head of a YOLO26 behind a few layers, which are cut in a third of the time
nc: 1
end2end: True
reg_max: 1
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, C3k2, [32, False]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, Conv, [48, 3, 2]]
head:
  - [[3, 4, 5], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("run")
    data = draw(root / "data")
    (root / "short.yaml").write_text(SHORT)
    train = f"teacher={{train: {{model: {root}/short.yaml, epochs: 8, lr: 4e-3, mosaic: 0, batch: 4}}}}"
    cut = ["prune={flops: 0.6, images: 4, max_ratio: 0.4, round_to: 4}", "repair={images: 16, steps: 0}"]
    rest = ["imgsz=64", "batch=8", "device=cpu", "distill.epochs=1", "distill.lr=1e-3", "latency.runs=1", "pictures=1"]
    words = ["run", "half", "model=null", f"data={data}", train, *cut, *rest, "--out", str(root / "out"), "--quiet"]
    assert main(words) == 0
    return root / "out"


def test_a_run_cuts_teaches_exports_and_measures_both_branches(done: Path) -> None:
    results = Results.read(done)
    teacher, student = results.teacher, results.student
    assert teacher.map50_95 is not None and teacher.map50_95 > 0.05
    for network in (teacher, student):
        assert network.map50_95_without_nms is not None and network.map50_95_without_nms > 0.02
    assert 0.5 < student.gflops / teacher.gflops < 0.67 and results.plan.verify < 1e-6
    assert results.exports[0].max_abs_diff is not None and results.exports[0].max_abs_diff < 1e-3
    for kind in ("report.md", "report.html"):
        assert re.search(r"mAP50.95 without NMS", (done / kind).read_text().replace("\u2011", "-"))
    assert ", without NMS 0." in (done / "report.md").read_text()  # the verdict
    columns = next(csv.reader((done / "metrics.csv").open()))
    assert {"l1_loss", "score_bce", "box_iou", "feature_pkd"} <= {*columns} and "dfl_kl" not in columns
    assert "loss dfl_kl left out: this head predicts no distributions" in (done / "log.txt").read_text()


def test_the_student_is_stock_ultralytics_and_measured_as_that_does(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student, data = done / "student.pt", done.parent / "data" / "data.yaml"
    assert family_of(checkpoint.load(student).model) is END_TO_END
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda *_: None)  # would ask the network for it
    options = {"data": str(data), "imgsz": 64, "batch": 8, "device": "cpu", "plots": False, "verbose": False}
    found = [
        YOLO(student).val(**options, nms=nms, project=str(tmp_path), name=str(nms)).box.map for nms in (None, False)
    ]
    ours = Results.read(done).student
    assert [ours.map50_95, ours.map50_95_without_nms] == pytest.approx(found, abs=2e-3)  # saved in half precision
    capsys.readouterr()
    assert main(["eval", str(student), f"data={data}", "imgsz=64", "batch=8", "device=cpu", "--quiet"]) == 0
    assert f"{found[1]:.3f}" in capsys.readouterr().out
    with torch.no_grad():
        boxes = YOLO(student).predict(torch.zeros(1, 3, 64, 64), nms=False, verbose=False)
    assert len(boxes) == 1


def test_it_goes_on_where_it_was(done: Path) -> None:
    before = Results.read(done).student
    assert main(["run", "--resume", str(done), "--quiet"]) == 0
    assert Results.read(done).student == before
