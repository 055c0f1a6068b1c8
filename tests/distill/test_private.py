"""What other libraries write for themselves is gone with the process, or at the next start if it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill.errors import RunError
from distill.machine import private

CHILD = "from distill.machine.private import private_folder; print(private_folder(), flush=True); input()"


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen, Path]]]:
    """Start a process that has a private folder in `tmp_path`."""
    children = []

    def start() -> tuple[subprocess.Popen, Path]:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        pipe = subprocess.PIPE
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True, env=environment)
        children.append(child)
        assert child.stdout is not None
        return child, Path(child.stdout.readline().strip())

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems only")
def test_a_killed_process_leaves_its_folder_to_the_next(
    begin: Callable[[], tuple[subprocess.Popen, Path]], tmp_path: Path
) -> None:
    users = tmp_path / f"{private.PREFIX}results"
    users.mkdir()
    killed, left = begin()
    living, kept = begin()
    killed.kill()
    killed.wait()
    assert sorted(tmp_path.iterdir()) == sorted([users, left, kept])
    (left / "MPLCONFIGDIR").mkdir()
    (left / "MPLCONFIGDIR" / "fontlist.json").touch()
    last, own = begin()
    assert sorted(tmp_path.iterdir()) == sorted([users, kept, own]), "what is locked, and what is not ours, stays"
    for child in (living, last):
        child.communicate("\n")
    assert list(tmp_path.iterdir()) == [users]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and temporary folder."""
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "YOLO_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(private, "private_folder", lambda: tmp_path / "ours")
    return tmp_path


def test_libraries_write_there_unless_they_have_a_place(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", "mine")
    (places / ".cache" / "matplotlib").mkdir(parents=True)
    private.settle()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(places / "ours" / "TORCHINDUCTOR_CACHE_DIR")
    assert os.environ["YOLO_CONFIG_DIR"] == "mine" and os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert "MPLCONFIGDIR" not in os.environ, "matplotlib has written to this home before"
    (places / ".cache" / "matplotlib").rmdir()
    private.settle()
    assert os.environ["MPLCONFIGDIR"] == str(places / "ours" / "MPLCONFIGDIR")


def test_no_temporary_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/nowhere")
    with pytest.raises(RunError, match="^no folder for temporary files: .*: set TMPDIR to one$"):
        private.private_folder.__wrapped__()
