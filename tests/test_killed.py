"""A run that is killed and resumed ends as one that was not, and nothing is left outside its folder. See tests/bench/kill.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.bench.kill import command, outside, prepare


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL elsewhere")
def test_a_killed_run_is_resumed_and_leaves_nothing_outside_its_folder(tmp_path: Path) -> None:
    prepare(tmp_path / "kill", distill="{epochs: 1, lr: 1e-3, losses: {score_bce: 2.0}}", sparsify="null")
    root, out = tmp_path / "kill", tmp_path / "out"
    child = subprocess.Popen(**command(root, out), stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not (out / "pruned.pt").is_file():
        time.sleep(0.01)
    child.kill()
    _, said = child.communicate()
    assert child.returncode == -signal.SIGKILL, said
    (out / ".unfinished-1-repaired.pt").touch()
    left = [name for name in outside(root) if name.count("/") == 1]
    assert len(left) == 1 and left[0].startswith("tmp/distill-private-")
    again = subprocess.run(**command(root, out, resume=True), stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert list(outside(root)) == [] and not list(out.rglob(".unfinished-*"))
    stages = json.loads((out / "stages.json").read_text())["stages"]
    assert {"teacher", "cut", "train", "export"} <= stages.keys()
    assert all((out / name).is_file() for name in ("student.pt", "exports/student.onnx", "metrics.csv", "report.html"))
