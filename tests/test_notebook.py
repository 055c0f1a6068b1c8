"""The notebook under docs/: its cells run from top to bottom in a fresh process, and its stored outputs are theirs.

nbclient would need a Jupyter kernel for it. The cells are plain Python, so `tests.notebook` runs them as they are; the same
command writes the outputs that are stored.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def code_cells(file: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> list[Any]:
    """What a cell shows, without what it says: figures depend on the machine."""
    return [sorted(output.get("data", {"stream": ""})) for output in cell["outputs"]]


def test_it_runs_from_top_to_bottom_and_shows_what_is_stored(tmp_path: Path) -> None:
    file = Path(shutil.copy(NOTEBOOK, tmp_path))
    command = [sys.executable, "-m", "tests.notebook", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    before, after = code_cells(NOTEBOOK), code_cells(file)
    assert [kinds(cell) for cell in after] == [kinds(cell) for cell in before], "run `make notebook`"
    text = "".join("".join(output.get("text", ())) for cell in after for output in cell["outputs"])
    assert float(re.findall(r"largest difference (\S+)", text)[0]) < 1e-8
    cut, repaired = (
        float(re.findall(rf"{name}: class logits differ by (\S+)", text)[0]) for name in ("cut", "repaired")
    )
    assert repaired < cut


def test_it_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert not re.findall(
        r"(?<![\w.<])/(?:home|root|tmp|work|mnt|Users|content)/", re.sub(r'"image/png": ".*"', "", text)
    )
    assert all(cell["execution_count"] == number for number, cell in enumerate(code_cells(NOTEBOOK), 1))
