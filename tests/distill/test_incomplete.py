"""Files that are gone from a run folder: the stage that made them is done again, and all after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.engine.folder import RunFolder
from distill.engine.session import Session
from distill.engine.stage import Stage, forget_incomplete, run_stage
from distill.errors import DistillError
from distill.machine import env
from distill.machine.console import Console
from distill.results.networks import PRUNED, TRAINED
from distill.yolo.kind import YOLO

RECIPE = "model: a.pt\n"


@dataclass(frozen=True)
class Made:
    file: str


def making(*files: str) -> Any:
    def work(session: Any) -> Made:
        for name in files:
            session.folder.write_text(name, "content")
        return Made(files[-1])

    return work


STAGES: list[Stage] = [
    Stage("cut", Made, making("pruned.pt", "plan.json"), (), makes=PRUNED, files=("plan.json",)),
    Stage("train", Made, making("trained.pt"), (), makes=TRAINED),
    Stage("skipped", Made, making("never"), (), files=("never",), applies=lambda session: False),
    Stage("export", Made, making("exports/a.onnx"), (), more_files=lambda record: [record.file]),
]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A finished run of the stages above, resumed."""
    monkeypatch.setattr(env, "collect", dict)
    folder = RunFolder.create(tmp_path / "a", RECIPE)
    session = SimpleNamespace(folder=folder, console=Console(quiet=True), recipe=None)
    go_on(session)
    for name in ("cut", "train"):
        (folder.path / "training" / name).mkdir(parents=True)
    return session


def go_on(session: Any) -> list[str]:
    """Resume the run; the names of the stages that are done again."""
    forget_incomplete(STAGES, session)
    left = [stage for stage in STAGES if stage.applies(session) and stage.name not in session.folder.stages]
    for index, stage in enumerate(left, 1):
        run_stage(stage, session, index, len(left), 0.0)
    return [stage.name for stage in left]


@pytest.mark.parametrize(
    ("gone", "redone", "said"),
    [
        ([], [], None),
        (["exports/a.onnx"], ["export"], "exports/a.onnx missing in {}: export is done again"),
        (["trained.pt"], ["train", "export"], "trained.pt missing in {}: train, and 1 stage after it, are done again"),
        (
            ["plan.json", "pruned.pt", "exports/a.onnx"],
            ["cut", "train", "export"],
            "pruned.pt, plan.json missing in {}: cut, and 2 stages after it, are done again",
        ),
    ],
)
def test_what_is_gone_is_made_again(session: Any, gone: list[str], redone: list[str], said: str | None) -> None:
    path = session.folder.path
    for name in gone:
        (path / name).unlink()
    assert go_on(session) == redone
    assert session.console.warnings == ([said.format(path)] if said else [])
    assert all((path / name).is_file() for name in ("pruned.pt", "plan.json", "trained.pt", "exports/a.onnx"))
    # What a training has left is worth something to the first of them only: others would start from another network.
    assert (path / "training" / "train").exists() == (redone[:1] != ["cut"]) and (path / "training" / "cut").exists()
    assert go_on(session) == [] and list(json.loads((path / "stages.json").read_text())["stages"]) == [
        stage.name for stage in STAGES if stage.name != "skipped"
    ]


def test_an_empty_file_is_gone(session: Any) -> None:
    (session.folder.path / "trained.pt").write_bytes(b"")
    assert go_on(session) == ["train", "export"]


def test_discarded_files_are_missed_only_if_something_is_to_be_done(session: Any) -> None:
    folder = session.folder
    folder.discard(["pruned.pt"])
    folder.discard(["trained.pt"])
    assert not (folder.path / "training").exists() and not (folder.path / "pruned.pt").exists()
    folder.close()
    session.folder = RunFolder.create(folder.path, RECIPE, resume=True)
    assert go_on(session) == [] and session.console.warnings == []
    (folder.path / "exports" / "a.onnx").unlink()
    assert go_on(session) == ["cut", "train", "export"]
    assert (folder.path / "pruned.pt").is_file() and go_on(session) == []


@pytest.mark.parametrize("content", [b"", b"half of", b"\xff\xfe", b"{}"])
def test_a_damaged_plan_or_network_says_what_to_remove(session: Any, content: bytes) -> None:
    path = session.folder.path
    for name in ("plan.json", "pruned.pt"):
        (path / name).write_bytes(content)
    opened = object.__new__(Session)
    opened.folder, opened.kind = session.folder, YOLO
    opened.recipe = SimpleNamespace(trust=False, code=())
    with pytest.raises(DistillError, match=r"^.*/a/plan\.json is damaged \(.*\): remove it, then resume") as caught:
        opened.plan  # noqa: B018
    assert "\n" not in str(caught.value)
    with pytest.raises(DistillError, match=r"^.*/a/pruned\.pt.*; as it is a file of this run, remove it and resume"):
        opened.load(PRUNED)


@pytest.mark.parametrize("change", [{"file": 5}, {"seconds": None}, {"warnings": "no"}, {"warnings": [1]}])
def test_a_damaged_record_is_one_line(session: Any, change: dict[str, Any]) -> None:
    session.folder.stages["train"] |= change
    with pytest.raises(DistillError, match=r"^.*/a: stage train is damaged: .*: start a new run$"):
        forget_incomplete(STAGES, session)
