"""The image size is the checkpoint's own unless it is given, and the run says which it is and where it came from."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from distill.api import runs
from distill.cli.main import main
from distill.engine.folder import RunFolder
from distill.engine.preflight import size_warnings
from distill.engine.session import Session
from distill.engine.size import image_size, with_size
from distill.errors import DistillError
from distill.machine.console import Console
from distill.recipe import load as recipes
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.kind import YOLO
from tests.distill.yolo.test_trainer import tiny, write_images

NAMES = {0: "square", 1: "disc"}
TEACHER = Detector(tiny(), NAMES, 320, Path("runs/best.pt"), None)


@pytest.mark.parametrize(
    ("given", "network", "text"),
    [
        (256, TEACHER, "imgsz 256, as given"),
        (None, TEACHER, "imgsz 320, as best.pt was trained"),
        (
            None,
            replace(TEACHER, imgsz=100),
            "imgsz 128, for best.pt was trained at 100 and here sizes are multiples of 32",
        ),
        (None, replace(TEACHER, imgsz=None), "imgsz 640, by default, for best.pt does not say what it was trained at"),
        (None, None, "imgsz 640, by default"),
    ],
)
def test_the_size_and_where_it_comes_from(given: int | None, network: Detector | None, text: str) -> None:
    assert str(image_size(given, network, YOLO)) == text


def test_a_size_that_is_rounded_up_is_no_mistake_to_warn_of() -> None:
    odd = replace(TEACHER, imgsz=100)
    recipe, _ = with_size(recipes.load("half", ["model=best.pt", "data=shapes"]), odd)
    assert recipe.size == 128 and size_warnings(recipe, odd) == ()


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    data = write_images(tmp_path / "data")
    checkpoint.save(tiny(), tmp_path / "best.pt", names=NAMES, imgsz=96)
    cut = ["prune.importance=l1", "prune.round_to=1"]
    return [f"model={tmp_path / 'best.pt'}", f"data={data}", "device=cpu", "export=[]", *cut]


def test_a_run_writes_down_the_size_that_it_found(given: list[str], tmp_path: Path) -> None:
    recipe = recipes.load("half", given)
    with closing(RunFolder.create(tmp_path / "out", recipes.to_yaml(recipe))) as folder:
        session = Session(recipe, folder, Console(quiet=True))
    assert session.recipe.size == 96 and "imgsz: 96\n" in (tmp_path / "out" / "recipe.yaml").read_text()
    with pytest.raises(DistillError, match="another recipe.*\n  -imgsz: 96\n  \\+imgsz: 64"):
        RunFolder.create(tmp_path / "out", recipes.to_yaml(replace(recipe, imgsz=64)), resume=True)


def test_a_run_that_goes_on_by_its_name_keeps_the_size_that_it_found(given: list[str], tmp_path: Path) -> None:
    recipe = recipes.load("half", given)
    with closing(RunFolder.create(tmp_path / "out", recipes.to_yaml(replace(recipe, imgsz=96)))) as folder:
        folder.open()
    again, _ = runs.recipe_and_folder("half", given, out=tmp_path / "out", resume=True)
    assert again == replace(recipe, imgsz=96)


def test_every_command_takes_the_checkpoints_own(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "half", *given]) == 0 and main(["check", "half", *given]) == 0
    assert "was trained at" not in capsys.readouterr().err
    model, data = given[0].removeprefix("model="), given[1]
    assert main(["eval", model, data, "device=cpu"]) == 0
    assert "imgsz 96, as best.pt was trained" in capsys.readouterr().out
    assert main(["export", model, "torchscript"]) == 0
    assert "imgsz 96, as best.pt was trained" in capsys.readouterr().err
