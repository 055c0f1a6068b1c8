"""Files that appear whole or not at all. Tests of checkpoints, run folders, exports and the demo have their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import RunError
from distill.machine.files import check_place, remove, write_atomically, write_bytes, write_files
from distill.training.state import TrainingState


def write_state(file: Path) -> None:
    TrainingState(epoch=1).write(file.parent, {"weights": torch.zeros(2)})


USERS: dict[str, Callable[[Path], Any]] = {
    "any.bin": lambda file: write_bytes(file, b"new"),
    "report.md": lambda file: write_files(file.parent, {file.name: b"new"}),
    "last.pt": write_state,
}


@pytest.mark.parametrize("name", USERS)
def test_a_full_disk_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / name
    file.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=f"^cannot write .*{name}: No space left on device$"):
        USERS[name](file)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    monkeypatch.undo()
    USERS[name](file)
    assert file.read_bytes() != b"old" and list(tmp_path.iterdir()) == [file]


def test_any_failure_of_the_system_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()

    def fail(draft: Path) -> None:
        draft.mkdir()
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with pytest.raises(RunError, match="^cannot write .*taken: Directory not empty$"):
        write_atomically(tmp_path / "taken", fail)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["taken", "file"]


def test_folders_around_a_file_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "runs" / "curve-1" / "curve.json", b"{}")
    assert (tmp_path / "runs" / "curve-1" / "curve.json").read_bytes() == b"{}"


def test_places_beside_each_other_are_checked_at_once(tmp_path: Path) -> None:
    """Runs side by side are begun by threads of one process."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_place, [tmp_path / str(index) for index in range(400)]))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    def write(draft: Path) -> None:
        draft.mkdir()
        (draft / "new").touch()

    write_atomically(tmp_path / "model", write)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["model", "new"]
    remove(tmp_path / "model")
    remove(tmp_path / "model")
    assert not list(tmp_path.iterdir())
