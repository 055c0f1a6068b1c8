"""mAP: the numbers of `yolo val`, without what else it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import nms

from distill.errors import DistillError
from distill.machine.device import pick_device
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as data
from distill.yolo.evaluation.evaluate import EvalSettings, Metrics, evaluate


class Counter:
    """A bar that adds up."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance(self, n: int = 1) -> None:
        self.steps.append(n)


@pytest.fixture
def few(shared: Path, tmp_path: Path) -> Path:
    """A copy of twelve of BCCD's val images as a data set."""
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        folder = tmp_path / "few" / kind / "val"
        folder.mkdir(parents=True)
        for file in sorted((shared / "data" / "bccd" / kind / "val").glob(f"*{suffix}"))[:12]:
            shutil.copyfile(file, folder / file.name)
    path = tmp_path / "few" / "data.yaml"
    path.write_text("train: images/val\nval: images/val\nnames: [WBC, RBC, Platelets]\n")
    return path


@pytest.fixture
def teacher(shared: Path) -> checkpoint.Detector:
    return checkpoint.load(shared / "weights" / "bccd-yolov5nu-320.pt")


def test_equals_yolo_val(
    teacher: checkpoint.Detector, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda *_: None)  # would ask the network for it
    ours = evaluate(teacher.model, data.load(few, teacher.names), EvalSettings(320, 8))
    stock = YOLO(teacher.source).val(
        data=str(few), imgsz=320, batch=8, device="cpu", plots=False, verbose=False, project=str(tmp_path), name="val"
    )
    box = stock.box
    assert (ours.map50_95, ours.map50) == (box.map, box.map50)
    assert np.allclose([ours.precision, ours.recall], [box.mp, box.mr], atol=1e-6)
    assert np.allclose(list(ours.per_class.values()), box.maps)
    assert list(ours.per_class) == ["WBC", "RBC", "Platelets"]
    assert (ours.images, ours.instances) == (12, int(stock.nt_per_class.sum()))


def test_the_teacher_reaches_what_it_is_known_for(teacher: checkpoint.Detector, shared: Path) -> None:
    val = data.load(shared / "data" / "bccd" / "data.yaml", teacher.names)
    found = evaluate(teacher.model, val, EvalSettings(320))
    assert found.map50_95 == pytest.approx(0.631, abs=5e-4)
    assert (found.images, found.instances) == (87, 1138)


def test_leaves_everything_as_it_was(
    teacher: checkpoint.Detector,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    threads, files, bar = torch.get_num_threads(), sorted(tmp_path.rglob("*")), Counter()
    val = data.load(few)
    found = evaluate(teacher.model, val, EvalSettings(64, 5), bar=bar)
    assert evaluate(teacher.model, val, EvalSettings(64, 5)) == found
    assert bar.steps == [5, 5, 2]
    assert sorted(tmp_path.rglob("*")) == files
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")
    after = teacher.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not teacher.model.training


def test_classes_that_do_not_occur_do_not_count(teacher: checkpoint.Detector, few: Path) -> None:
    for file in (few.parent / "labels" / "val").iterdir():
        rows = [row for row in file.read_text().splitlines() if not row.startswith("0")]
        file.write_text("\n".join(rows))
    found = evaluate(teacher.model, data.load(few), EvalSettings(320))
    assert set(found.per_class) == {"RBC", "Platelets"}
    assert found.map50_95 == pytest.approx(sum(found.per_class.values()) / 2)


def test_a_slow_machine_does_not_lose_boxes(
    teacher: checkpoint.Detector, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ultralytics' NMS gives up on the rest of a batch when it takes too long, and only logs it."""
    val = data.load(few)
    expected = evaluate(teacher.model, val, EvalSettings(64))
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr(nms.time, "time", lambda: float(next(clock)))  # every look at the clock costs a minute
    assert evaluate(teacher.model, val, EvalSettings(64)) == expected


def test_needs_labels(teacher: checkpoint.Detector, few: Path) -> None:
    with pytest.raises(DistillError, match="has no labels"):
        evaluate(teacher.model, data.load(few.parent / "images"), EvalSettings(64))


def test_metrics_are_plain_numbers(teacher: checkpoint.Detector, few: Path) -> None:
    found = evaluate(teacher.model, data.load(few), EvalSettings(64))
    assert isinstance(found, Metrics)
    values: list[Any] = [found.map50_95, found.map50, found.precision, found.recall, *found.per_class.values()]
    assert all(type(value) is float and 0 <= value <= 1 for value in values)
    assert type(found.images) is type(found.instances) is int


def test_devices_as_users_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    expected = {
        "": "cuda:0",
        "cuda": "cuda:0",
        "0": "cuda:0",
        "1": "cuda:1",
        "cuda:1": "cuda:1",
        "cpu": "cpu",
        " CPU ": "cpu",
    }
    assert {name: str(pick_device(name)) for name in expected} == expected
    with pytest.raises(DistillError, match="device '2': this machine has 2 CUDA devices"):
        pick_device("2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("") == torch.device("cpu")
    for name, says in (
        ("0", "has no CUDA devices"),
        ("cuda", "has no CUDA devices"),
        ("mps", "has no float64"),
        ("gpu", "does not exist: use cpu"),
    ):
        with pytest.raises(DistillError, match=says):
            pick_device(name)


def test_no_two_processes_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would refuse them in the middle of the first training."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert pick_device("") == pick_device(f"cuda:{rank}") == torch.device("cuda", rank)
        assert pick_device("cpu") == torch.device("cpu")
        with pytest.raises(DistillError, match="each process needs a GPU of its own, and this machine has 2"):
            pick_device(str(1 - rank))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DistillError, match="each process needs a GPU of its own"):
        pick_device("")


def test_importing_is_silent_and_leaves_no_settings(tmp_path: Path) -> None:
    code = """
import os, socket
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.getaddrinfo = socket.create_connection = refuse
import distill.yolo
from ultralytics.utils import SETTINGS, SETTINGS_FILE
import torch
assert SETTINGS_FILE.is_file() and not any(SETTINGS[name] for name in ("sync", "mlflow", "clearml", "comet"))
assert "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() == THREADS, torch.get_num_threads()
open("settings", "w").write(str(SETTINGS_FILE.parents[1]))
"""
    drop = ("YOLO_CONFIG_DIR", "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_VERBOSE", "OMP_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    ask = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    threads = subprocess.run(ask, check=True, env=env, capture_output=True, text=True).stdout.strip()
    run = [sys.executable, "-c", code.replace("== THREADS", f"== {threads}")]
    done = subprocess.run(run, check=False, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["settings"]
    assert not Path((tmp_path / "settings").read_text()).exists()
