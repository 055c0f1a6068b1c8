"""One complete run of a classifier through the command line: train, prune, repair, distill, export, report, resume."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from distill.classifiers import upstream
from distill.classifiers.kind import CLASSIFIERS
from distill.cli.main import main
from distill.results.results import Results
from tests.distill.classifiers.colours import write

COMMON = [
    "--quiet",
    "imgsz=32",
    "batch=4",
    "device=cpu",
    "latency.runs=2",
    "prune.images=8",
    "repair.images=8",
    "seed=0",
]
TRAINED = ["repair.steps=5", "distill.epochs=1", "distill.lr=1e-3", "prune.flops=0.6", "prune.round_to=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained its teacher."""
    root = tmp_path_factory.mktemp("classify")
    data = write(root / "data", train=32, val=16)
    train = ["model=null", "teacher.train.model=timm/test_resnet", "teacher.train.epochs=6", "teacher.train.lr=3e-3"]
    words = [f"data={data}", *train, *COMMON, *TRAINED, "--out", str(root / "run")]
    assert main(["run", "classify", *words]) == 0
    return root / "run"


def test_the_run_says_what_it_measured(run: Path) -> None:
    results = Results.read(run)
    assert results.measure == "top-1" and results.data.classes == ("blue", "red")
    assert results.teacher.top1 is not None and results.teacher.top1 > 0.6 and results.teacher.agreement == 1.0
    assert 0.5 < results.student.gflops / results.teacher.gflops < 0.62 and results.plan.verify < 1e-9
    assert set(results.tuning.factors) == {"kl", "feature_pkd"}
    assert {"epoch", "lr", "cls", "kl", "feature_pkd", "top1", "top5"} == set(results.history[0])
    assert results.accepted is (results.student.top1 >= results.teacher.top1 - 0.005)
    text = (run / "report.md").read_text()
    assert "| top-1 |" in text and "mAP" not in text
    assert "mAP" not in (run / "report.html").read_text()


def test_the_student_opens_and_its_export_agrees(run: Path) -> None:
    student = CLASSIFIERS.open(run / "student.pt")
    images = torch.rand(2, 3, 32, 32)
    session = onnxruntime.InferenceSession(run / "exports" / "student.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), student.model(images), rtol=1e-3, atol=1e-4)
    assert (run / "load_student.py").is_file()
    about = json.loads((run / "student.json").read_text())
    assert about["arch"] == "test_resnet" and about["names"] == {"0": "blue", "1": "red"}
    assert about["input"]["mean"] == list(upstream.input_of(student.model)["mean"])


def test_a_resumed_run_makes_what_is_missing(run: Path) -> None:
    before = Results.read(run)
    (run / "student.json").unlink()
    assert main(["run", "--resume", str(run), "--quiet"]) == 0
    after = Results.read(run)
    assert (run / "student.json").is_file() and after.student.top1 == before.student.top1


def test_single_steps_take_the_student(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data={run.parent / 'data'}"
    assert main(["eval", str(run / "student.pt"), data, f"teacher={run / 'teacher.pt'}", "device=cpu"]) == 0
    told = capsys.readouterr().out
    assert "top-1 of the teacher" in told and "agreement with the teacher" in told
    assert main(["export", str(run / "student.pt"), "torchscript"]) == 0
    assert main(["plan", "classify", f"model={run / 'teacher.pt'}", data, *COMMON[1:]]) == 0
    assert main(["check", "half", f"model={run / 'teacher.pt'}", data, "imgsz=32", "device=cpu"]) == 0
    told = "".join(capsys.readouterr())
    assert "kl, feature_pkd" in told  # in place of a detector's losses
    assert main(["check", "classify", f"model={run / 'teacher.pt'}", data, "prune.flops=0.01"]) == 2
    assert main(["ls", "features", f"model={run / 'teacher.pt'}", f"plan={run}", "imgsz=32"]) == 0
    assert "neck" in capsys.readouterr().out


def test_without_labels_the_teacher_is_enough(run: Path, tmp_path: Path) -> None:
    images = run.parent / "data" / "train"
    words = [
        f"model={run / 'teacher.pt'}",
        f"data={images}",
        *COMMON,
        *TRAINED,
        "export=[]",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["run", "classify", *words]) == 0
    results = Results.read(tmp_path / "run")
    assert results.student.top1 is None and results.student.agreement is not None and results.accepted is None


def test_ways_of_training_are_compared_by_top_1(run: Path, tmp_path: Path) -> None:
    data = run.parent / "data"
    words = [f"model={run / 'teacher.pt'}", f"data={data}", *COMMON, *TRAINED, "--arms", "ours,finetune"]
    assert main(["compare", "classify", *words, "--seeds", "1", "--out", str(tmp_path / "both")]) == 0
    content = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert content["about"]["measure"] == "top-1" and len(content["runs"]) == 2
    assert "top-1" in (tmp_path / "both" / "compare.md").read_text()
