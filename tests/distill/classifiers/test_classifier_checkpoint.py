"""Classifiers open from names and files, and come back as plain weights that need nothing of this project."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import distill
from distill.classifiers import checkpoint, upstream
from distill.classifiers.files import is_classifier
from distill.classifiers.kind import CLASSIFIERS
from distill.errors import DistillError
from tests.distill.classifiers.colours import NAMES, SIZE, build, cut

IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def as_trainer(path: Path, **content: Any) -> Path:
    """A file as timm's train.py writes it."""
    args = argparse.Namespace(model="test_resnet", num_classes=None, mean=None, img_size=SIZE, crop_pct=1.0)
    state = build(seed=0).state_dict()
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": state, "args": args, "version": 2} | content, path)
    return path


def test_a_checkpoint_of_timms_trainer_opens_with_its_average_and_its_transforms(tmp_path: Path) -> None:
    average = build(seed=1)
    wrapped = {f"module.{name}": value for name, value in average.state_dict().items()}
    path = as_trainer(tmp_path / "model_best.pth.tar", state_dict_ema=wrapped)
    assert is_classifier(path)
    found = CLASSIFIERS.open(path)
    assert torch.equal(found.model(IMAGES), average(IMAGES)) and not found.model.training
    assert (found.names, found.imgsz) == ({0: "0", 1: "1"}, SIZE)
    assert upstream.input_of(found.model)["crop_pct"] == 1.0
    assert torch.equal(distill.load(path)(IMAGES), average(IMAGES))


def test_a_checkpoint_of_torchvisions_script_opens(tmp_path: Path) -> None:
    model = build("torchvision/squeezenet1_1")
    args = argparse.Namespace(model="squeezenet1_1", interpolation="bicubic")
    torch.save({"model": model.state_dict(), "args": args, "epoch": 1}, tmp_path / "model_1.pth")
    assert is_classifier(tmp_path / "model_1.pth")
    found = CLASSIFIERS.open(tmp_path / "model_1.pth")
    assert torch.equal(found.model(IMAGES), model(IMAGES))
    assert upstream.input_of(found.model)["interpolation"] == "bicubic"


def test_weights_alone_open_by_the_name_of_their_network(tmp_path: Path) -> None:
    model = build("torchvision/squeezenet1_1")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = CLASSIFIERS.open("torchvision/squeezenet1_1", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(found.model(IMAGES), model(IMAGES))
    with pytest.raises(
        DistillError, match=r"^\S*weights.pth holds no weights of timm/test_resnet: it has no 'fc.weight'"
    ):
        CLASSIFIERS.open("timm/test_resnet", weights=str(tmp_path / "weights.pth"))
    assert not is_classifier(tmp_path / "weights.pth")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path = as_trainer(tmp_path / "evil.pth.tar", note=Evil(tmp_path / "mark"))
    assert not is_classifier(path)
    with pytest.raises(DistillError, match=r"^\S*evil.pth.tar holds no plain weights") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "mark").exists()
    with pytest.raises(DistillError):
        distill.load(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet18x", "model: timm has no classifier 'resnet18x', did you mean 'resnet18'?"),
        ("torchvision/resnet19", "model: torchvision has no classifier 'resnet19', did you mean 'resnet18'?"),
        ("timm/resnet18.a1_in2k", "model: timm has no weights 'resnet18.a1_in2k', did you mean 'resnet18.a1_in1k'?"),
        ("torchvision/fasterrcnn_resnet50_fpn", "model: torchvision has no classifier 'fasterrcnn_resnet50_fpn'"),
        ("timm/resnet18", "model: the pretrained weights of timm/resnet18 are not on this machine, and nothing is"),
        ("torchvision/resnet18", "model: the pretrained weights of torchvision/resnet18 are not on this machine"),
    ],
)
def test_a_name_that_cannot_be_opened_says_why(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(upstream, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(DistillError) as caught:
        CLASSIFIERS.open(name)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_pretrained_weights_of_the_cache_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    model = upstream.create("torchvision", "squeezenet1_1").eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert torch.equal(CLASSIFIERS.open("torchvision/squeezenet1_1").model(IMAGES), model(IMAGES))
    ours = upstream.create("timm", "test_resnet").eval()
    file = tmp_path / "pytorch_model.bin"
    torch.save(ours.state_dict(), file)
    monkeypatch.setattr(upstream, "try_to_load_from_cache", lambda repo, name: str(file) if name == file.name else None)
    assert torch.equal(CLASSIFIERS.open("timm/test_resnet").model(IMAGES), ours(IMAGES))


def test_a_student_is_saved_as_plain_data_and_opens_with_its_widths(tmp_path: Path) -> None:
    student, plan = cut(build())
    checkpoint.save(student, tmp_path / "student.pt", classes=NAMES, imgsz=SIZE, plan=plan.to_dict())
    content = torch.load(tmp_path / "student.pt", weights_only=True)
    assert content["arch"] == "test_resnet" and content["state_dict"].keys() == student.state_dict().keys()
    found = CLASSIFIERS.open(tmp_path / "student.pt")
    assert torch.equal(found.model(IMAGES), student(IMAGES))
    assert (found.names, found.imgsz) == (NAMES, SIZE) and found.plan == json.loads(plan.to_json())
    # It can be cut again: its modules say their widths.
    again, _ = cut(found.model)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in student.parameters())


LOADED = """
import sys
for name in ("distill", "prune", "ultralytics"):
    sys.modules[name] = None  # importing it raises
import torch
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    import load_student
    torch.save(load_student.load()(torch.load(folder + "/images.pt")), folder + "/logits.pt")
    del sys.modules["load_student"], sys.path[0]
"""


def test_the_loader_beside_a_student_needs_its_library_and_torch_alone(tmp_path: Path) -> None:
    expected = {}
    for number, name in enumerate(("timm/test_resnet", "timm/test_efficientnet", "torchvision/squeezenet1_1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        student, plan = cut(build(name))
        checkpoint.save(student, folder / "student.pt", classes=NAMES, imgsz=SIZE, plan=plan.to_dict())
        native = CLASSIFIERS.native(CLASSIFIERS.open(folder / "student.pt"), folder, SIZE)
        assert native is not None and (native.file, native.beside) == ("load_student.py", ("student.json",))
        torch.save(IMAGES, folder / "images.pt")
        expected[folder] = student(IMAGES)
    command = [sys.executable, "-c", LOADED, *map(str, expected)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        assert torch.equal(torch.load(folder / "logits.pt"), logits)
        about = json.loads((folder / "student.json").read_text())
        assert about["shapes"] == {
            key: list(value.shape) for key, value in CLASSIFIERS.open(folder / "student.pt").model.state_dict().items()
        }
    text = (tmp_path / "0" / "load_student.py").read_text()
    function = text[text.index("def load") :]
    assert len(function.splitlines()[1:]) == 10
    assert function in (Path(distill.__file__).parents[1] / "docs" / "recipes.md").read_text()
