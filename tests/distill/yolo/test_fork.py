"""Checkpoints of forks: opened with the fork's own classes, cut, and written so that the fork opens the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

import distill
import prune
from distill.cli.main import main
from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.yolov5.head import AnchorDetect
from distill.yolo.families.yolov5.saving import save_original
from tests.distill.tiny_runs import HEAD
from tests.distill.yolo import forks
from tests.distill.yolo.forks import IMAGE
from tests.distill.yolo.test_trainer import write_images

NAMES = {0: "class0", 1: "class1"}
MAKE = {"yolov5": forks.yolov5, "ultralytics": forks.ultralytics}


@pytest.fixture(scope="module", params=MAKE)
def fork(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A fork: the folder of its code, and a checkpoint in it."""
    return request.param, MAKE[request.param](tmp_path_factory.mktemp(request.param))


def served(name: str, gave: torch.Tensor) -> torch.Tensor:
    """What a fork's network gives, as ultralytics' predictor takes it."""
    if name == "ultralytics":
        return gave
    return torch.cat((gave[..., :4], gave[..., 4:5] * gave[..., 5:]), 2).transpose(1, 2)


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(IMAGE)
    return found[0] if isinstance(found, tuple) else found


def cut(model: Any) -> Any:
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.6, round_to=1)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(model, student, plan, IMAGE, adapter=YOLO_ADAPTER) < 1e-10
    assert sum(p.numel() for p in student.parameters()) < 0.9 * sum(p.numel() for p in model.parameters())
    return student


def test_it_opens_with_its_own_classes_and_leaves_nothing_behind(fork: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = fork
    gave = forks.trained(folder, tmp_path / "best.pt")
    modules, before = dict(sys.modules), (sys.path[:], torch.save)
    found = checkpoint.load(tmp_path / "best.pt", trust=True, code=[folder])
    torch.testing.assert_close(output(found.model), served(name, gave), rtol=1e-4, atol=1e-3)
    assert type(found.model) is DetectionModel and type(found.model.model[-1]) in (Detect, AnchorDetect)
    assert (found.names, found.imgsz) == (NAMES, 64)
    stem = type(found.model.model[0])
    assert stem.__module__ == {"yolov5": "models.common", "ultralytics": "ultralytics.nn.modules.block"}[name]
    assert type(checkpoint.load(tmp_path / "best.pt", trust=True, code=[folder]).model.model[0]) is stem
    assert not [key for key in sys.modules if key.split(".")[0] in ("models", "utils")]
    assert all(sys.modules[key] is module for key, module in modules.items())
    assert (sys.path, torch.save) == before and "SET_BY_THE_FORK" not in os.environ
    fused = checkpoint.fused(found.model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(output(fused), output(found.model), rtol=1e-3, atol=1e-3)


def test_the_fork_opens_the_cut_network_without_this_project(fork: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = fork
    forks.trained(folder, tmp_path / "best.pt")
    found = checkpoint.load(tmp_path / "best.pt", trust=True, code=[folder])
    student = cut(found.model)
    checkpoint.save(student, tmp_path / "student.pt", names=NAMES, imgsz=64)
    again = checkpoint.load(tmp_path / "student.pt", trust=True, code=[folder])
    torch.testing.assert_close(output(again.model), output(student.half().float()), rtol=1e-4, atol=1e-3)
    if name == "yolov5":
        save_original(again.model, tmp_path / "student.pt", names=NAMES, imgsz=64)
    torch.save((IMAGE, output(again.model)), tmp_path / "expected")
    script = """
import sys, torch
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("distill", "prune", "ultralytics" if "models" in sys.argv[1] else ""):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
save = torch.save
model = torch.load(sys.argv[2], weights_only=False)["model"]
assert type(model).__module__ == sys.argv[1] and type(model.model[-1]).__name__ == "Detect", type(model)
assert not hasattr(model, "own_project")
model.float().eval()
image, expected = torch.load(sys.argv[3])
with torch.no_grad():
    found = model(image)[0]
if sys.argv[1] == "models.yolo":
    found = torch.cat((found[..., :4], found[..., 4:5] * found[..., 5:]), 2).transpose(1, 2)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
"""
    module = {"yolov5": "models.yolo", "ultralytics": "ultralytics.nn.tasks"}[name]
    words = [sys.executable, "-c", script, module, str(tmp_path / "student.pt"), str(tmp_path / "expected")]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, check=False, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_without_the_code_the_refusal_names_the_block_and_the_key(fork: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = fork
    forks.trained(folder, tmp_path / "best.pt")
    block = {"yolov5": r"models\.common\.StemBlock", "ultralytics": r"ultralytics\.nn\.modules\.block\.StemBlock"}[name]
    with pytest.raises(DistillError, match=rf"holds '{block}'.*code=path/to/its/checkout trust=true"):
        distill.load(tmp_path / "best.pt")
    with pytest.raises(DistillError, match=r"the Python files of that folder are run.*add trust=true"):
        distill.load(tmp_path / "best.pt", code=folder)
    found: Any = distill.load(tmp_path / "best.pt", code=folder, trust=True)
    assert type(found.model[0]).__name__ == "StemBlock"


def test_a_stock_checkpoint_opens_beside_the_code_of_a_fork_of_another_project(tmp_path: Path) -> None:
    stock = forks.ultralytics(tmp_path / "other")
    forks.trained(stock, tmp_path / "big.pt", seed=1)
    fork = forks.yolov5(tmp_path / "fork")
    forks.trained(fork, tmp_path / "best.pt")
    for file, kind in (("best.pt", AnchorDetect), ("big.pt", Detect)):
        found = checkpoint.load(tmp_path / file, trust=True, code=[fork, stock])
        assert type(found.model.model[-1]) is kind  # type: ignore[index]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("models/*.py", ("StemBlock", "Stem"), "its 'models.common' has no 'StemBlock'"),
        ("models/common.py", ("class StemBlock", "class Stem"), "cannot import name 'StemBlock'"),
        ("models/common.py", ("from utils", "from gone"), "needs the package gone: pip install gone"),
        ("models/common.py", ("from utils.general", "from utils.gone"), "it has no module 'utils.gone'"),
        ("models/common.py", ("import torch", "import torch\n1 / 0"), "cannot be imported (ZeroDivisionError: "),
        (
            "models/common.py",
            ("import torch", "import torch\nimport sys\nsys.exit(3)"),
            "cannot be imported (SystemExit",
        ),
        ("models/common.py", ("self.last(torch", "self.gone(torch"), "has no attribute 'gone'"),
        ("models/yolo.py", ("y[..., :2] * 2.0", "y[..., :2] * 3.0"), "has a changed 'Detect'"),
    ],
)
def test_other_code_is_refused(tmp_path: Path, file: str, change: tuple[str, str], says: str) -> None:
    """It is said what the folder lacks. A head that computes something else is noticed by what it gives."""
    forks.trained(forks.yolov5(tmp_path / "fork"), tmp_path / "best.pt")
    other = forks.yolov5(tmp_path / "other")
    for each in other.glob(file):
        each.write_text(each.read_text().replace(*change))
    with pytest.raises(DistillError) as caught:
        checkpoint.load(tmp_path / "best.pt", trust=True, code=[other])
    assert says in str(caught.value) and str(other) in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_forks_the_one_that_has_the_classes_is_taken(tmp_path: Path) -> None:
    forks.trained(forks.yolov5(tmp_path / "fork"), tmp_path / "best.pt")
    other = forks.yolov5(tmp_path / "other")
    for file in (other / "models").glob("*.py"):
        file.write_text(file.read_text().replace("StemBlock", "Stem"))
    forks.trained(other, tmp_path / "big.pt")
    for file, stem in (("best.pt", "StemBlock"), ("big.pt", "Stem")):
        found: Any = checkpoint.load(tmp_path / file, trust=True, code=[other, tmp_path / "fork"])
        assert type(found.model.model[0]).__name__ == stem


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    forks.trained(forks.yolov5(tmp_path / "fork"), tmp_path / "best.pt")
    for folder, says in ((tmp_path / "gone", "there is no such folder"), (tmp_path / "best.pt", "is a file")):
        with pytest.raises(DistillError, match=f"code={folder}: {says}"):
            checkpoint.load(tmp_path / "best.pt", trust=True, code=[folder])


# --- whole commands --------------------------------------------------------------------------------------------------


def test_a_fork_goes_through_every_command(
    fork: tuple[str, Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = fork
    monkeypatch.setattr("distill.engine.stages.teacher.MIN_TEACHER_MAP", -1.0)  # untrained networks may teach
    forks.trained(folder, tmp_path / "best.pt")
    write_images(tmp_path / "data")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        HEAD.replace("{root}", str(tmp_path))
        + f"code: {folder}\ntrust: true\nexport: [torchscript]\nlatency: {{runs: 1}}\npictures: 0\n"
        + "distill: {epochs: 1, lr: 1e-3}\n"
    )

    def kill(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.run(recipe, out=tmp_path / "run", on_epoch=kill)
    assert f"code: [{folder}]" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert main(["check", str(recipe)]) == 0
    assert main(["run", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert (f"PYTHONPATH={folder} yolo predict" if name == "ultralytics" else "python detect.py --weights") in report
    assert f"code={folder} trust=true" in report
    student, words = str(tmp_path / "run" / "student.pt"), [f"code={folder}", "trust=true"]
    data = f"data={tmp_path}/data/data.yaml"
    assert main(["eval", student, data, f"teacher={tmp_path}/best.pt", "device=cpu", *words]) == 0
    assert main(["export", student, "torchscript", *words]) == 0
    assert main(["ls", "features", f"model={student}", *words]) == 0
    capsys.readouterr()
    assert main(["eval", student, data]) == 2
    assert "code=path/to/its/checkout" in capsys.readouterr().err
