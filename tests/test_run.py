"""One complete run through the command line, on a data set drawn here: train, prune, repair, distill, export, report."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.cli.main import main
from distill.machine.console import Console
from distill.report.facts import findings
from distill.results.results import Results
from distill.training.schedule import Schedule
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.data import dataset as datasets
from distill.yolo.families.yolov5.checkpoint import HYP
from distill.yolo.families.yolov5.head import AnchorDetect
from distill.yolo.families.yolov5.saving import save_original
from distill.yolo.training.train import train
from tests.distill.yolo.originals import network

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
def done(tmp_path_factory: pytest.TempPathFactory, device: str) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("run")
    data = draw(root / "data")
    (root / "my_losses.py").write_text(LOSS)
    (root / "tiny.yaml").write_text(
        "imgsz: 64\n"
        "batch: 8\n"
        f"device: {device}\n"
        "teacher: {train: {model: yolov8n.yaml, epochs: 14, patience: 14, lr: 4e-3, mosaic: 0}}\n"
        # At most 30% off any layer: on two shapes the deep layers are hardly used, and cutting those costs nothing.
        "prune: {flops: 0.6, images: 16, max_ratio: 0.3}\n"
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
        "pictures/differ-1.jpg",
        "exports/student.onnx",
        "exports/teacher.onnx",
        "log.txt",
    ]:
        assert (done / name).exists(), name
    results = json.loads((done / "results.json").read_text())
    models = results["models"]
    assert list(models) == ["teacher", "pruned", "repaired", "student"]
    # Closer to its teacher, which is not always higher: one trained for so short a time may be beaten by its own cut copy.
    teacher, pruned, repaired = (models[name]["map50_95"] for name in ("teacher", "pruned", "repaired"))
    assert teacher > 0.1 and abs(repaired - teacher) < abs(pruned - teacher)
    assert models["student"]["map50_95"] >= repaired or results["warnings"]
    assert 0.55 < models["student"]["gflops"] / models["teacher"]["gflops"] <= 0.61
    assert models["student"]["params"] < models["teacher"]["params"]
    assert models["student"]["size_mb"] < models["teacher"]["size_mb"]
    assert results["plan"]["verify"] < 1e-6 and results["exports"][0]["max_abs_diff"] < 1e-3
    assert all(network["deployed"][0]["runtime"] == "ONNX Runtime" for network in models.values())
    assert "my_kd" in (done / "metrics.csv").read_text().splitlines()[0]


def test_it_goes_on_where_it_was_and_changes_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "student.pt").read_bytes()
    (done / "results.json").unlink()
    assert main(["run", "--resume", str(done)]) == 0
    assert (done / "student.pt").read_bytes() == before and (done / "results.json").is_file()
    assert "mAP50-95" in capsys.readouterr().out
    assert main(["run", str(done / "recipe.yaml"), "--out", str(done)]) == 2


@pytest.mark.parametrize("best", ["trained", "averaged", "repaired"])
def test_the_mean_of_before_and_after_is_a_student_too(done: Path, tmp_path: Path, best: str) -> None:
    """After a training with the network's own statistics: the best by val of what it was before, after, and the mean."""
    folder = tmp_path / "out"
    shutil.copytree(done, folder)
    record = json.loads((folder / "stages.json").read_text())
    stages = record["stages"]
    for name in ("average", "evaluate averaged", "select", "measure", "export"):
        stages.pop(name, None)
    stages["tune"]["freeze_bn"] = True
    for name in ("trained", "repaired"):
        stages[f"evaluate {name}"]["map50_95"] = 2.0 if name == best else 0.0
    (folder / "stages.json").write_text(json.dumps(record))
    assert main(["run", "--resume", str(folder), "--quiet"]) == 0
    assert (folder / "student.pt").read_bytes() == (folder / f"{best}.pt").read_bytes()
    before, after, mean = (checkpoint.load(folder / f"{name}.pt").model for name in ("repaired", "trained", "averaged"))
    begun, last = copy.deepcopy(before), after.state_dict()
    begun.load_state_dict({key: (2 * value.double() - last[key]).to(value) for key, value in mean.state_dict().items()})
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # what training began with: other statistics, the same network
        torch.testing.assert_close(begun(images)[0], before(images)[0], rtol=0.05, atol=0.1)  # from half precision
    first, given = begun.state_dict(), before.state_dict()
    assert not torch.equal(first["model.0.bn.running_var"], given["model.0.bn.running_var"])
    for key, value in mean.state_dict().items():  # stored in half precision
        if ".bn." not in key:
            expected = (given[key].float() + last[key].float()) / 2
            torch.testing.assert_close(value.float(), expected, rtol=1e-3, atol=1e-6)
    results = json.loads((folder / "results.json").read_text())
    assert results["average"]["taken"] == (best == "averaged")
    assert (
        "the mean of the weights before and after training was measured too: mAP50-95"
        in (folder / "report.md").read_text()
    )
    assert any("before training" in warning for warning in results["warnings"]) == (best == "repaired")


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
    assert main(["plan", "half", f"model={out / 'student.pt'}", *given[1:], "prune.importance=l1", "--quiet"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_a_network_that_knows_nothing_teaches_nobody_but_learns(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw.pt", tmp_path / "out"
    names = {0: "square", 1: "disc"}
    checkpoint.save(build("yolov5n.yaml", names, width=0.125), raw, names=names, imgsz=64)
    data = f"data={done.parent / 'data' / 'data.yaml'}"
    given = [f"model={raw}", data, "imgsz=64", "batch=8", "device=cpu", "latency.runs=2", "export=[]"]
    assert main(["run", "half", *given, "--out", str(tmp_path / "no"), "--quiet"]) != 0
    assert "it has nothing to teach" in capsys.readouterr().err
    # Labels alone train it on: it is as good as it is.
    assert main(["run", "finetune", *given, "distill.epochs=2", "distill.lr=4e-3", "--out", str(out), "--quiet"]) == 0
    results = json.loads((out / "results.json").read_text())
    results["models"]["student"]["map50_95"] = 0.5
    assert not any("teacher" in finding for finding in findings(Results.from_dict(results)))


def test_it_can_be_measured_and_exported(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = done.parent / "copy.pt"
    student.write_bytes((done / "student.pt").read_bytes())
    assert main(["eval", str(student), f"data={done.parent / 'data' / 'data.yaml'}", "device=cpu"]) == 0
    measured = json.loads((done / "results.json").read_text())["models"]["student"]["map50_95"]
    said = capsys.readouterr()
    assert f"{measured:.3f}" in said.out and "warning" not in said.err
    other = done.parent / "data" / "other.yaml"
    other.write_text((done.parent / "data" / "data.yaml").read_text().replace("square", "rhombus"))
    assert main(["eval", str(student), f"data={other}", "device=cpu"]) == 0
    assert "is 'rhombus' there" in capsys.readouterr().err
    assert main(["export", str(student), "torchscript", "imgsz=64"]) == 0
    assert (done.parent / "copy.torchscript").is_file()


# --- the same with a checkpoint of the original YOLOv5 ---------------------------------------------------------------


def original(folder: Path, data: Path) -> Path:
    """best.pt as the original leaves it, of a small network that has learned from the labels."""
    model = network("deep and wide", nc=2, boxes=2)
    model.names, head = {0: "square", 1: "disc"}, model.model[-1]
    head.anchors.copy_(torch.tensor([[[3.0, 3.0], [4.5, 4.5]], [[1.5, 1.5], [2.25, 2.25]]]))
    for convolution in head.m:
        convolution.bias.data.view(2, -1)[:, 4:] = torch.tensor([-4.0, -1.0, -1.0])  # few objects, either class
    model.hyp = {**HYP, "box": 0.1, "cls": 0.1, "obj": 0.3}
    schedule = Schedule(epochs=9, batch=8, steps=72, lr=5e-3, warmup_steps=10, bn_momentum=0.1, scale=0.2, val_every=9)
    options: dict[str, Any] = {"folder": folder / "taught", "console": Console(quiet=True), "device": "cpu"}
    trained = train(model, datasets.load(data), schedule, imgsz=64, **options)
    assert trained.map50_95 is not None and trained.map50_95 > 0.1
    save_original(trained.model, folder / "best.pt", names=model.names, imgsz=64)
    return folder / "best.pt"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, device: str) -> Iterator[tuple[Path, str]]:
    """The folder of a finished run of half, and what was on the screen."""
    root = tmp_path_factory.mktemp("original")
    data = draw(root / "data")
    where = [f"device={device}", "batch=8", "latency.runs=2"]
    given = [f"model={original(root, data)}", f"data={data}", *where]
    less = ["prune.flops=0.7", "repair.images=16", "distill.epochs=1", "sparsify={epochs: 1}", "prune.round_to=1"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(Console, "result", lambda _, text: said.append(text))
        assert main(["run", "half", *given, *less, "--out", str(root / "out"), "--quiet"]) == 0
    yield root / "out", "\n".join(said)


IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def output(file: Path, layout: str = "ultralytics") -> torch.Tensor:
    model: Any = checkpoint.load(file).model
    assert type(model.model[-1]) is AnchorDetect
    model.model[-1].layout = layout
    with torch.no_grad():
        return model(IMAGES)


def test_an_original_comes_back_in_its_own_format(kept: tuple[Path, str]) -> None:
    folder = kept[0]
    assert torch.equal(output(folder / "student-yolov5.pt"), output(folder / "student.pt"))
    names = checkpoint.Archive(folder / "student-yolov5.pt").names
    assert "models.yolo.Detect" in names and not [name for name in names if name.startswith(("distill", "ultralytics"))]
    found = checkpoint.load(folder / "student-yolov5.pt")
    assert (found.names, found.imgsz) == ({0: "square", 1: "disc"}, 64)
    results = json.loads((folder / "results.json").read_text())
    models = results["models"]
    assert 0.6 < models["student"]["gflops"] / models["teacher"]["gflops"] <= 0.71
    assert models["teacher"]["map50_95"] > 0.1 and results["plan"]["verify"] < 1e-10
    assert {"box", "obj", "cls", "score_bce", "objectness_bce", "box_iou", "feature_pkd"} <= results["history"][
        0
    ].keys()
    assert all(value is None or math.isfinite(value) for value in results["history"][0].values())


def test_its_onnx_has_the_originals_layout(kept: tuple[Path, str]) -> None:
    file = kept[0] / "exports" / "student.onnx"
    (declared,) = onnx.load(file).graph.output
    assert [d.dim_value for d in declared.type.tensor_type.shape.dim] == [1, 2 * (8 * 8 + 4 * 4), 5 + 2]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for index, expected in enumerate(output(kept[0] / "student.pt", layout="original")):
        (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES[index : index + 1].numpy()})
        torch.testing.assert_close(torch.from_numpy(found)[0], expected, rtol=1e-4, atol=1e-4)
    assert json.loads((kept[0] / "results.json").read_text())["exports"][0]["max_abs_diff"] < 1e-3


def test_report_and_last_screen_say_how_the_original_uses_it(kept: tuple[Path, str]) -> None:
    folder, screen = kept
    for text in (screen, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert f"python detect.py --weights {folder / 'student-yolov5.pt'} --source path/to/images --imgsz 64" in text
        assert "python val.py" in text and "python export.py" in text and "yolo predict" not in text
    assert "student-yolov5.pt has the format of the original YOLOv5" in (folder / "report.md").read_text()


def test_its_student_is_measured_and_exported(kept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    student = kept[0].parent / "copy.pt"
    student.write_bytes((kept[0] / "student-yolov5.pt").read_bytes())
    data = kept[0].parent / "data" / "data.yaml"
    assert main(["eval", str(student), f"data={data}", "device=cpu"]) == 0
    measured = json.loads((kept[0] / "results.json").read_text())["models"]["student"]["map50_95"]
    said = capsys.readouterr().out
    assert f"mAP50-95  {measured:.3f}" in said and "imgsz 64" in said
    assert main(["export", str(student), "onnx"]) == 0
    session = onnxruntime.InferenceSession(student.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), output(student, layout="original")[:1], rtol=1e-4, atol=1e-4)


def test_losses_that_do_not_fit_are_named(kept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model={kept[0] / 'student-yolov5.pt'}", f"data={kept[0].parent / 'data' / 'data.yaml'}", "device=cpu"]
    assert main(["check", "half", *given, "prune.round_to=1"]) == 0
    said = capsys.readouterr()
    assert "loss dfl_kl left out: this head predicts no distributions over box sides" in said.out + said.err
    assert "objectness_bce left out" not in said.out + said.err
    only = ["distill.losses={dfl_kl: 1}", "distill.labels=0", "imgsz=64"]
    assert main(["check", "half", *given, *only]) == 2
    assert "none of them fits this head" in capsys.readouterr().err


def test_without_labels_agreement_with_the_teacher_is_measured(
    kept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = kept[0], kept[0].parent / "unlabelled"
    given = [f"model={folder / 'teacher.pt'}", f"data={folder.parent / 'data' / 'images' / 'train'}", "device=cpu"]
    size = ["imgsz=64", "batch=8", "repair.images=16", "distill.epochs=1", "latency.runs=2", "export=[]"]
    cut = ["prune={flops: 0.7, images: 16, round_to: 1}", "sparsify={epochs: 1}"]
    assert main(["run", "half", *given, *size, *cut, "--out", str(out)]) == 2
    assert "no labels: give a data.yaml, or sparsify.distill=true" in capsys.readouterr().err and not out.exists()
    for command in ("check", "run"):
        assert main([command, "finetune", *given, *size[:2], *(["--out", str(out)] if command == "run" else [])]) == 2
        said = capsys.readouterr().err
        assert "no labels, so the losses of distill.losses must teach, and there is none" in said and not out.exists()
    cut += ["sparsify.distill=true"]
    assert main(["run", "half", *given, *size, *cut, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "agreement with the teacher 50-95 1.000, 50 1.000" in said.err and "mAP50-95" not in said.out
    results = json.loads((out / "results.json").read_text())
    models, how, trained = results["models"], results["agreement"], results["trained"]
    shares = {name: model["agreement50_95"] for name, model in models.items()}
    assert shares["teacher"] == pytest.approx(1, abs=1e-9) and shares["pruned"] < shares["repaired"] < 1
    means = [results["average"]["averaged"]] if results["average"] else []
    assert shares["student"] == max(shares["repaired"], trained["agreement50_95"], *means)  # the best one is chosen
    assert all(model["map50_95"] is None and model["agreement50"] is not None for model in models.values())
    assert results["accepted"] is None and results["history"][0]["map50_95"] is None
    assert (results["data"]["train_images"], results["data"]["val_images"], how["images"]) == (51, 13, 13)
    assert set(results["tuning"]["factors"]) == {"score_bce", "objectness_bce", "box_iou", "feature_pkd"}
    assert "Losses were balanced" in (out / "report.md").read_text()
    assert how["held_back"] and how["teacher_boxes"].keys() == models["student"]["agreement_per_class"].keys()
    for text in (said.out, (out / "report.md").read_text(), (out / "report.html").read_text()):
        assert "13 held-back images" in text and "agreement 50-95" in text
