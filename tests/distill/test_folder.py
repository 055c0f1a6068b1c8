"""The run folder: whole files at every moment, and never two runs in one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.engine.folder import RunFolder, last_path, next_path
from distill.errors import DistillError, RunError
from distill.machine import env
from distill.machine.faults import machine_fault
from distill.training.state import TrainingState

RECIPE = "model: a.pt\ndistill: {epochs: 50, losses: {score_bce: 2.0}}\n"


@pytest.fixture(autouse=True)
def quick_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "collect", lambda: {"cpu": "test"})


def started(path: Path) -> RunFolder:
    folder = RunFolder.create(path, RECIPE)
    folder.open()
    return folder


def test_nothing_is_there_before_the_first_write(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "a-1", RECIPE)
    assert list(tmp_path.iterdir()) == [] and not folder.started
    folder.write_json("plan.json", {"a": float("nan"), "path": Path("x")})
    assert sorted(file.name for file in folder.path.iterdir()) == [".lock", "env.json", "plan.json", "recipe.yaml"]
    assert json.loads((folder.path / "plan.json").read_text()) == {"a": None, "path": "x"}
    assert (folder.path / "recipe.yaml").read_text() == RECIPE and folder.started


def test_a_run_goes_on_with_its_stages(tmp_path: Path) -> None:
    folder = started(tmp_path / "a")
    assert folder.stages.get("score") is None
    folder.finish("score", {"file": "plan.json"})
    folder.finish("repair", {"images": 96})
    folder.close()
    again = RunFolder.create(tmp_path / "a", RECIPE, resume=True)
    assert (
        again.resumed
        and again.stages.get("score") == {"file": "plan.json"}
        and again.stages.get("repair") == {"images": 96}
    )
    assert again.stages.get("distill") is None
    assert json.loads((tmp_path / "a" / "env.json").read_text()) == [{"cpu": "test"}, {"cpu": "test"}]


def test_a_follower_writes_nothing_and_knows_what_the_leader_has_done(tmp_path: Path) -> None:
    leader = started(tmp_path / "a")
    leader.finish("score", {"file": "plan.json"})
    before = sorted(file.name for file in leader.path.iterdir())
    follower = RunFolder.follow(leader.path, RECIPE, resume=True)
    assert follower.stages.get("score") == {"file": "plan.json"}  # else it would begin what is not to be done again
    follower.open()
    assert follower.write_text("metrics.csv", "x") == leader.path / "metrics.csv"
    assert sorted(file.name for file in leader.path.iterdir()) == before
    leader.finish("repair", {"images": 96})
    assert follower.stages.get("repair") is None
    follower.refresh()
    assert follower.stages.get("repair") == {"images": 96}
    assert RunFolder.follow(tmp_path / "b", RECIPE, resume=False).stages.get("score") is None


def test_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "a").close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    go_on = f", or go on with it: distill run --resume {tmp_path / 'a'}"
    for name, more in (("a", go_on), ("full", ""), ("file", "")):
        with pytest.raises(DistillError) as caught:
            RunFolder.create(tmp_path / name, RECIPE)
        assert str(caught.value) == f"{tmp_path / name} is there already: choose another --out{more}"
    RunFolder.create(tmp_path / "empty", RECIPE).open()


def test_only_a_run_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(DistillError) as caught:
        RunFolder.create(tmp_path, RECIPE, resume=True)
    assert str(caught.value) == f"{tmp_path} holds no run to go on with: there is no {tmp_path / 'recipe.yaml'}"


def test_a_changed_recipe_is_refused_with_its_diff(tmp_path: Path) -> None:
    started(tmp_path / "a").close()
    changed = "model: a.pt\ndistill: {epochs: 10, losses: {score_bce: 2.0}}\nseed: 1\n"
    with pytest.raises(DistillError) as caught:
        RunFolder.create(tmp_path / "a", changed, resume=True)
    first, *diff = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'a'} was started with another recipe: take the change back, or start a new run"
    assert diff == ["  -distill.epochs: 50", "  +distill.epochs: 10", "  +seed: 1"]
    RunFolder.create(tmp_path / "a", "# another way to write it\n" + RECIPE, resume=True).close()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    folder = started(tmp_path / "a")
    file = folder.write_text("sub/plan.json", "old")

    def fail(path: Path) -> None:
        path.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write_with("sub/plan.json", fail)
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    folder = started(tmp_path / "a")

    def fill(path: Path) -> None:
        path.touch()
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)

    with pytest.raises(RunError) as caught:
        folder.write_with("student.pt", fill)
    assert str(caught.value) == f"cannot write {folder.path / 'student.pt'}: No space left on device"
    assert caught.value.exit_status == 1 and not list(folder.path.glob("*student*"))


def test_what_the_machine_did_is_told_from_what_the_code_did(tmp_path: Path) -> None:
    assert str(machine_fault(OSError(errno.EROFS, "x", "a.pt"))) == "cannot write a.pt: Read-only file system"
    torch_save = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598")
    assert str(machine_fault(torch_save, tmp_path)) == f"cannot write {tmp_path}: No space left on device"
    assert machine_fault(RuntimeError("shapes do not match"), tmp_path) is None
    assert machine_fault(FileNotFoundError(errno.ENOENT, "x", "a.pt")) is None
    server = str(machine_fault(ImportError("libGL.so.1: cannot open shared object file")))
    assert "OpenCV needs the libraries of a desktop (libGL.so.1: " in server and "opencv-python-headless" in server
    assert machine_fault(ImportError("No module named 'mine'"), tmp_path) is None
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert str(machine_fault(error)).startswith("out of memory: a smaller batch=")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        RunFolder.create(tmp_path / "a", RECIPE).open()


def test_a_parent_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^cannot use .*file/a: Not a directory$"):
        RunFolder.create(tmp_path / "file" / "a", RECIPE).open()
    for place in (tmp_path / "file" / "a" / "b", Path("/proc/nowhere/a"), tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=r"^cannot (use|write) "):
            RunFolder.create(place, RECIPE)  # before anything takes time
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_damaged_stages_are_refused(tmp_path: Path) -> None:
    started(tmp_path / "a").close()
    (tmp_path / "a" / "stages.json").write_text('{"form')
    with pytest.raises(
        DistillError, match=r"stages\.json was not written by this version or is damaged: start a new run"
    ):
        RunFolder.create(tmp_path / "a", RECIPE, resume=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stages.json", '{"format": 2, "stages": {"teacher": null}}'),
        ("stages.json", '{"format": 2, "stages": [1]}'),
        ("stages.json", '{"format": 2, "stages": {}, "discarded": 5}'),
        ("stages.json", "[" * 100_000),
        ("stages.json", "\0"),
        ("env.json", '{"form'),
        ("env.json", "{}"),
        ("env.json", None),
    ],
)
def test_a_damaged_record_of_a_run_is_one_line(name: str, content: str | None, tmp_path: Path) -> None:
    started(tmp_path / "a").close()
    file = tmp_path / "a" / name
    file.unlink(missing_ok=True)
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(DistillError) as caught:
        RunFolder.create(tmp_path / "a", RECIPE, resume=True)
    assert str(file) in str(caught.value) and "remove it" in str(caught.value) and "\n" not in str(caught.value)
    file.rmdir() if content is None else file.unlink()
    RunFolder.create(tmp_path / "a", RECIPE, resume=True).close()


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_away_does_not_come_back_in_parts(how: str, tmp_path: Path) -> None:
    folder = started(tmp_path / "a")
    folder.path.rename(tmp_path / "b")
    if how == "removed":
        shutil.rmtree(tmp_path / "b")
    elif how == "replaced":
        started(folder.path).close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match="was removed or moved while the run was writing into it"):
        folder.write_text("plan.json", "x")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RunError, match="was removed or moved while a training was writing into it"):
        TrainingState(epoch=1).write(tmp_path / "gone" / "training", {})
    assert not (tmp_path / "gone").exists()


CHILD = """
import sys, time
from pathlib import Path
from distill.engine.folder import RunFolder
from distill.machine import env
env.collect = dict
folder = RunFolder.create(Path(sys.argv[1]), sys.argv[2])
folder.write_text("plan.json", "whole")
def hang(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
folder.write_with("plan.json", hang)
"""


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems only")
def test_a_run_is_alone_in_its_folder_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), RECIPE], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"writing\n"
        with pytest.raises(DistillError) as caught:
            RunFolder.create(path, RECIPE, resume=True)
        assert str(caught.value) == f"{path} is in use by another run (process {child.pid}): wait for it, or stop it"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert len(list(path.glob(".unfinished-*"))) == 1
    RunFolder.create(path, RECIPE, resume=True).close()
    assert (path / "plan.json").read_text() == "whole" and not list(path.glob(".unfinished-*"))


def test_two_runs_that_chose_the_same_new_folder_do_not_mix(tmp_path: Path) -> None:
    first, second = (RunFolder.create(tmp_path / "a", RECIPE) for _ in range(2))
    first.open()
    first.close()
    opened: list[str] = []
    second.when_open(lambda: opened.append("second"))
    with pytest.raises(DistillError, match="was taken by another run in the meantime: start again"):
        second.write_text("plan.json", "")
    assert opened == [], "its log would be that of the first"
    third = RunFolder.create(tmp_path / "b", RECIPE)
    third.when_open(lambda: opened.append("third"))
    third.open()
    third.when_open(lambda: opened.append("at once"))
    assert opened == ["third", "at once"]


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert next_path("demo", tmp_path) == tmp_path / "demo-1"
    with pytest.raises(DistillError, match="nothing to go on with"):
        last_path("demo", tmp_path)
    for name in ("demo-2", "demo-10", "demo-x", "demo-small-40"):
        (tmp_path / name).mkdir()
    assert next_path("demo", tmp_path) == tmp_path / "demo-11" and last_path("demo", tmp_path) == tmp_path / "demo-10"


def test_the_environment_is_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = env.collect()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] and found["cores"] >= 1 and found["cpu"]
    for threads, says in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        assert env.device_name("cpu") == f"{found['cpu']}, {says}"
