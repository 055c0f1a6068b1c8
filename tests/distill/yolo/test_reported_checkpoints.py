"""Checkpoints as people have them: each line of docs/compatibility.md about one is a line here."""

from __future__ import annotations

import copy
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2EDetectLoss

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from tests.distill.yolo.originals import IMAGE, NAMES, Original, edited, network, tiny

Make = Callable[[Path], object]
ORIGINAL = Original()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGE)[0]


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """A checkpoint whose pickle has `new` for `old`."""
    torch.save({"model": tiny()}, path.with_name("given.pt"))
    edited(path.with_name("given.pt"), lambda data: data.replace(old, new), path)


def changed(path: Path, change: Callable[[Any], object]) -> None:
    """A checkpoint of ultralytics after a change of the network."""
    network = tiny()
    change(network)
    torch.save({"model": network, "train_args": {"imgsz": 64}}, path)


def original(path: Path, change: Callable[[Any], object] = lambda made: None, **content: Any) -> None:
    """A checkpoint of the original YOLOv5 after a change of its network; `content` beside it."""
    made = ORIGINAL.model(network())
    change(made)
    given = {key: value(made) if callable(value) else value for key, value in content.items()}
    ORIGINAL.save(made, path, **given)


def without(*names: str) -> Callable[[Any], object]:
    """Removes attributes from every module that has them, as an older version saved it."""

    def change(made: Any) -> None:
        for module in made.modules():
            for name in names:
                vars(module).pop(name, None)

    return change


def old_class(path: Path, module: str, name: str) -> None:
    """A checkpoint whose arguments are an object of a class that ultralytics had once."""
    home = ModuleType(module)
    kind = type(name, (), {"__module__": module})
    setattr(home, name, kind)
    given = tiny()
    given.args = kind()
    parent = module.rpartition(".")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, parent, ModuleType(parent))
        patch.setitem(sys.modules, module, home)
        torch.save({"model": given, "train_args": {"imgsz": 64}}, path)


def backslashes(path: Path) -> None:
    torch.save({"model": tiny()}, path.with_name("given.pt"))
    with zipfile.ZipFile(path.with_name("given.pt")) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("/", "\\"), old.read(name))


def windows(path: Path) -> None:
    original(path.with_name("given.pt"), opt={"save_dir": Path("runs")})
    edited(path.with_name("given.pt"), lambda data: data.replace(b"PosixPath", b"WindowsPath"), path)


def of_yolov10(path: Path) -> None:
    made: Any = DetectionModel("yolov10n.yaml", nc=3, verbose=False)
    made.names, made.args = dict(NAMES), get_cfg()
    made.criterion = E2EDetectLoss(made)  # as `v10DetectLoss` is called today
    torch.save({"model": made}, path)


def synced(made: Any) -> None:
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


# --- what is read ----------------------------------------------------------------------------------------------------

READ: dict[str, Make] = {
    "interrupted, with optimizer and average": lambda path: original(
        path,
        ema=copy.deepcopy,
        optimizer=lambda made: torch.optim.SGD(made.parameters(), 0.1, momentum=0.9).state_dict(),
        opt={"weights": "yolov5n.pt", "img_size": [64, 64]},
    ),
    "average with its number of updates": lambda path: original(path, ema=lambda made: (made, 7)),
    "average as weights beside the network": lambda path: original(path, ema=lambda made: made.state_dict()),
    "of YOLOv10, with its loss": of_yolov10,
    "paths of another system": lambda path: windows(path),
    "on a GPU": lambda path: replaced(path, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"),
    "on an Apple GPU": lambda path: replaced(path, b"X\x03\x00\x00\x00cpu", b"X\x05\x00\x00\x00mps:0"),
    "in bfloat16": lambda path: changed(path, lambda made: made.bfloat16()),
    "in float64": lambda path: changed(path, lambda made: made.double()),
    "trained with --sync-bn": lambda path: original(path, synced),
    "of ultralytics 8.0, its arguments a class": lambda path: old_class(path, "ultralytics.yolo.cfg", "UltralyticsCFG"),
    "of ultralytics 8.0, a namespace": lambda path: old_class(path, "ultralytics.yolo.utils", "IterableSimpleNamespace"),
    "before torch 1.6, no set of buffers": lambda path: original(path, without("_non_persistent_buffers_set")),
    "of v5.0, no inplace": lambda path: original(path, without("inplace")),
    "of a fork without grids": lambda path: original(path, without("grid", "anchor_grid")),
    "masks that were made permanent": lambda path: changed(path, permanent),
    "packed with backslashes": backslashes,
}  # fmt: skip


def permanent(made: Any) -> None:
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            masks.l1_unstructured(module, "weight", amount=0.3)
            masks.remove(module, "weight")


@pytest.mark.parametrize("name", READ)
def test_is_read(tmp_path: Path, name: str) -> None:
    READ[name](tmp_path / "best.pt")
    found = checkpoint.load(tmp_path / "best.pt")
    assert output(found.model).isfinite().all()
    assert found.names == {0: "circle", 1: "square", 2: "star"}
    assert {type(m).__name__ for m in found.model.modules() if "Norm" in type(m).__name__} == {"BatchNorm2d"}


def test_weights_of_the_average_are_those_that_are_read(model: Any, tmp_path: Path) -> None:
    average = copy.deepcopy(model)
    average.model[0].conv.weight.data.mul_(0.5)
    for ema in (average, average.state_dict(), (average, 12)):
        torch.save({"model": model, "ema": ema}, tmp_path / "last.pt")
        assert torch.equal(output(checkpoint.load(tmp_path / "last.pt").model), output(average))


def test_a_network_of_several_devices_is_cut(model: Any, tmp_path: Path) -> None:
    torch.save({"model": nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))}, tmp_path / "best.pt")
    found: Any = checkpoint.load(tmp_path / "best.pt").model
    assert torch.equal(output(found), output(model))
    checkpoint.save(found, tmp_path / "student.pt", names=dict(model.names), imgsz=64)
    assert b"SyncBatchNorm" not in (tmp_path / "student.pt").read_bytes()


# --- what is refused: what it is, and what to do ---------------------------------------------------------------------


class OwnBlock(nn.Module):
    """A class of somebody's script."""


OwnBlock.__module__, OwnBlock.__qualname__ = "__main__", "C2f_v2"


def own_block(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "C2f_v2", OwnBlock, raising=False)
        changed(path, lambda made: made.model.add_module("own", OwnBlock()))


def unpacked(path: Path) -> None:
    torch.save({"model": tiny()}, path.with_name("given.pt"))
    zipfile.ZipFile(path.with_name("given.pt")).extractall(path)


def of_yolov7(path: Path) -> None:
    writer = Original(rename={"models.yolo.Detect": "models.yolo.IDetect"})
    writer.save(writer.model(network()), path)


def short_average(made: Any) -> Any:
    state = made.state_dict()
    state.popitem()
    return state


def nan(made: Any) -> None:
    made.model[4].cv1.conv.weight.data[0] = float("nan")


def infinite(made: Any) -> None:
    made.model[0].bn.running_var[3] = float("inf")


def negative(made: Any) -> None:
    made.model[1].bn.running_var[:2] = -0.5


REFUSED: dict[str, tuple[Make, str]] = {
    "weights that are NaN": (lambda path: changed(path, nan), r"layer 'model\.4\.cv1\.conv' is broken .*its weight are NaN"),
    "a variance that overflowed": (lambda path: changed(path, infinite), r"layer 'model\.0\.bn' .*1 of the 8 values of its running_var"),
    "a negative variance": (lambda path: changed(path, negative), r"layer 'model\.1\.bn' .*2 of its 16 variances are negative"),
    "weights alone, as .pth": (lambda path: torch.save(tiny().state_dict(), path), "weights but no network"),
    "an average of another network": (lambda path: original(path, ema=short_average), "'ema' are not those of its 'model'.*c\\['ema'\\] = None"),
    "a class of a newer ultralytics": (lambda path: replaced(path, b"block\nC2f\n", b"block\nC9x\n"), r"C9x', which ultralytics 8.* does not have.*pip install -U"),
    "a class of the script that cut it": (own_block, "'__main__.C2f_v2', a class of the script that saved it"),
    "names of another number": (lambda path: changed(path, lambda made: made.names.update({3: "more"})), "has 3 classes, but not a name for each.*names ="),
    "quantized": (lambda path: torch.save({"model": torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))}, path), "is quantized"),
    "quantized weights": (lambda path: torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, path), "is quantized"),
    "unpacked like a zip file": (unpacked, r"was unpacked like a zip file.*zip -0 -r again\.pt given"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>Google Drive"), "a web page"),
    "an ONNX file": (lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch"), "an ONNX file"),
    "packed with gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(80)), "packed with gzip"),
    "pickle protocol 4": (lambda path: torch.save({"model": tiny()}, path, pickle_protocol=4), "pickle protocol 4.*torch.save"),
    "a network for one channel": (lambda path: original(path, lambda made: setattr(made.model[0].conv, "in_channels", 1)), "images of 1 channels"),
    "of YOLOv7": (of_yolov7, "IDetect.*a fork"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_a_line_that_says_what_it_is(tmp_path: Path, name: str) -> None:
    make, says = REFUSED[name]
    make(tmp_path / "best.pt")
    with pytest.raises(DistillError, match=says) as caught:
        checkpoint.load(tmp_path / "best.pt")
    assert len(str(caught.value)) < 900 and str(caught.value).isprintable()
    assert str(caught.value).startswith(str(tmp_path / "best.pt"))


def test_a_path_with_backslashes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "best.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DistillError, match="no such checkpoint, did you mean 'runs/best.pt'"):
        checkpoint.load("runs\\best.pt")


# --- what is refused with the line that mends it ---------------------------------------------------------------------


def masked(made: Any) -> Any:
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            masks.l1_unstructured(module, "weight", amount=0.3)
    return made


def normed(made: Any) -> Any:
    nn.utils.weight_norm(made.model[0].conv)
    return made


def whole(made: Any) -> Any:
    torch.save({"model": made, "train_args": {}}, "yolo.pt")
    return YOLO("yolo.pt")


WRAPPED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DataParallel": (nn.DataParallel, "DataParallel"),
    "torch.compile": (torch.compile, "torch.compile"),
    "masks": (masked, "masks of torch.nn.utils.prune"),
    "weight norm": (normed, "weight norm"),
    "YOLO object": (whole, "YOLO object"),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_the_line_that_is_given_mends_the_file(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trust: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    wrap, says = WRAPPED[name]
    content = wrap(copy.deepcopy(model))
    torch.save(content if name == "YOLO object" else {"model": content, "train_args": {"imgsz": 96}}, "best.pt")
    with pytest.raises(DistillError, match=says) as caught:
        checkpoint.load("best.pt", trust=trust)
    assert len(str(caught.value)) < 700
    exec(str(caught.value).partition(" in Python: ")[2], {})  # noqa: S102  what users are told
    found = checkpoint.load("best-again.pt")
    assert name == "masks" or torch.allclose(output(found.model), output(model), atol=1e-4)
    if name == "DataParallel":
        assert found.imgsz == 96
    if name == "masks":
        assert float((found.model.model[0].conv.weight == 0).float().mean()) > 0.25


def test_the_line_for_another_protocol_mends_the_file(model: Any, tmp_path: Path) -> None:
    torch.save({"model": model}, tmp_path / "best.pt", pickle_protocol=4)
    with pytest.raises(DistillError, match="protocol 4") as caught:
        checkpoint.load(tmp_path / "best.pt")
    exec(str(caught.value).partition(" in Python: ")[2], {})  # noqa: S102  what users are told
    assert torch.equal(output(checkpoint.load(tmp_path / "best-again.pt").model), output(model))


def test_every_line_of_the_document_is_tried() -> None:
    page = (Path(__file__).parents[3] / "docs/compatibility.md").read_text(encoding="utf-8")
    lines = [line for line in page.partition("## Checkpoints")[2].splitlines() if re.match(r"\| [^-k]", line)]
    assert len(lines) >= 20
    assert all(re.search(r"#\d+", line.split("|")[2]) for line in lines)
