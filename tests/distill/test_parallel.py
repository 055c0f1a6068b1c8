"""Two processes under torchrun: one run folder, one student, the same as of one process within noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.machine import parallel
from distill.yolo.checkpoint import detector as checkpoint
from tests.distill.yolo.test_trainer import tiny, write_images
from tests.prune.networks import randomize

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


def run(folder: Path, out: str, *extra: str, launcher: list[str]) -> subprocess.CompletedProcess[str]:
    recipe = ["prune.flops=0.7", "prune.round_to=1", "repair.images=8", "repair.steps=0", "prune.images=8"]
    training = [
        "sparsify={epochs: 1, distill: true}",
        "distill.epochs=4",
        "distill.lr=1e-3",
        "distill.batch=4",
        "distill.labels=0",
        "distill.balance=false",  # its factors are each run's own: losses of two runs would not compare
        "distill.losses={score_bce: 2, box_iou: 1, dfl_kl: 2, feature_pkd: 1}",
        "export=[]",
    ]
    inputs = [f"model={folder / 'best.pt'}", f"data={folder / 'data' / 'images' / 'train'}", "imgsz=64", "device=cpu"]
    command = [sys.executable, *launcher, "-m", "distill", "run", "half", "--out", str(folder / out)]
    return subprocess.run(
        [*command, *inputs, *recipe, *training, "latency.runs=1", *extra],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_processes_train_the_student_that_one_does(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    checkpoint.save(randomize(tiny()), tmp_path / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    last = {}
    for out, launcher in (("one", []), ("two", TORCHRUN)):
        done = run(tmp_path, out, launcher=launcher)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / out / "results.json").read_text())
        last[out] = results["history"]
        assert len(last[out]) == 4
    first, one, two = (
        sum(row[name] for name in ("score_bce", "box_iou", "dfl_kl"))
        for row in (last["one"][0], last["one"][-1], last["two"][-1])
    )
    assert two == pytest.approx(one, rel=0.3) and max(one, two) < first
    assert (tmp_path / "two" / "student.pt").is_file()

    again = run(tmp_path, "two", launcher=TORCHRUN)
    assert again.returncode != 0 and "is there already: choose another --out" in again.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(Path(parallel.__file__).parent) not in again.stderr


def test_a_batch_that_processes_cannot_share_is_refused_before_anything_is_done(monkeypatch) -> None:
    parallel.check_divisible({"batch": 16})
    monkeypatch.setenv("WORLD_SIZE", "3")
    parallel.check_divisible({"batch": 18, "distill.batch": None})
    with pytest.raises(
        DistillError, match=r"distill\.batch=16 cannot be shared by 3 processes: give distill\.batch=18"
    ):
        parallel.check_divisible({"batch": 18, "distill.batch": 16})


def test_one_process_agrees_with_itself() -> None:
    with parallel.process_group():
        assert parallel.is_leader() and parallel.world() == 1 and parallel.broadcast("so") == "so"
