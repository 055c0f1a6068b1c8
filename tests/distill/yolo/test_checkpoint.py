"""Checkpoints: safe to open, equal to what ultralytics would read, and of use where this project is not installed."""

from __future__ import annotations

import builtins
import copy
import errno
import io
import os
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

import prune
from distill.errors import DistillError, RunError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.yolov5.head import AnchorDetect
from tests.distill.yolo.originals import IMAGE, NAMES, edited, network, tiny
from tests.prune.networks import yolo


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def anchored() -> Any:
    """A network with the original YOLOv5's head."""
    return network()


@pytest.fixture(params=["model", "anchored"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGE)[0]


def zipped(path: Path, data: bytes, **records: bytes) -> Path:
    """A file that is a checkpoint from outside, with `data` as its pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, content in records.items():
            file.writestr(f"archive/{name}", content)
    return path


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Custom(nn.Module):
    """A module of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same_network(either: Any, tmp_path: Path) -> None:
    plan = {"flops": 0.5, "keep": {"model.0.conv": [0, 2]}}
    checkpoint.save(either, tmp_path / "student.pt", names=NAMES, imgsz=96, plan=plan)
    found = checkpoint.load(tmp_path / "student.pt")
    assert (found.names, found.imgsz, found.plan, found.source) == (NAMES, 96, plan, tmp_path / "student.pt")
    assert torch.equal(output(found.model), output(copy.deepcopy(either).half().float()))
    assert type(found.model.model[-1]) is type(either.model[-1])
    assert not found.model.training
    for name, parameter in found.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad == (".dfl." not in name)


def test_saved_again_it_stays_the_same(either: Any, tmp_path: Path) -> None:
    checkpoint.save(either, tmp_path / "a.pt", names=NAMES, imgsz=64)
    first = checkpoint.load(tmp_path / "a.pt")
    checkpoint.save(first.model, tmp_path / "a.pt", names=first.names, imgsz=64)
    assert torch.equal(output(checkpoint.load(tmp_path / "a.pt").model), output(first.model))


def test_an_anchor_head_keeps_its_loss_and_exact_anchors(anchored: Any, tmp_path: Path) -> None:
    """Saved in half precision as the weights are; the anchors are plain numbers, and gains are the network's own."""
    given = copy.deepcopy(anchored)
    given.model[-1].anchors += 1 / 3
    checkpoint.save(given, tmp_path / "student.pt", names=NAMES, imgsz=96)
    found: Any = checkpoint.load(tmp_path / "student.pt").model
    assert torch.equal(found.model[-1].anchors, given.model[-1].anchors)
    assert torch.equal(found.model[-1].stride, given.model[-1].stride)
    assert found.hyp == given.hyp and type(given.model[-1]) is AnchorDetect
    assert found.model[-1].f == given.model[-1].f and list(found.state_dict()) == list(given.state_dict())


def test_ultralytics_reads_the_same(either: Any, tmp_path: Path) -> None:
    checkpoint.save(either, tmp_path / "student.pt", names=NAMES, imgsz=96)
    stock = YOLO(tmp_path / "student.pt")
    assert stock.names == NAMES
    assert stock.overrides["imgsz"] == 96
    assert torch.equal(output(stock.model.eval()), output(checkpoint.load(tmp_path / "student.pt").model))


def test_a_yolo11_is_cut_and_stays_one_that_ultralytics_reads(tmp_path: Path) -> None:
    """With what the others do not have: attention, and depthwise convolutions in the head."""
    torch.save({"model": yolo("yolo11n", width=0.125).half(), "epoch": -1}, tmp_path / "best.pt")
    given: Any = checkpoint.load(tmp_path / "best.pt")
    graph = prune.trace(given.model, IMAGE, adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "bn_scale"), flops=0.6, round_to=1)
    student = prune.apply(given.model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(given.model, student, plan, IMAGE, adapter=YOLO_ADAPTER) < 1e-10
    checkpoint.save(student, tmp_path / "student.pt", names=NAMES, imgsz=64)
    found = checkpoint.load(tmp_path / "student.pt").model
    assert sum(p.numel() for p in found.parameters()) == plan.params_after
    assert torch.equal(output(YOLO(tmp_path / "student.pt").model.eval()), output(found))


def test_works_where_this_project_is_not_installed(model: Any, anchored: Any, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path / "student.pt", names=NAMES, imgsz=64)
    checkpoint.save(anchored, tmp_path / "anchored.pt", names=NAMES, imgsz=64)
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("distill", "prune"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy
from ultralytics import YOLO
for name, to in (("student", {"format": "torchscript"}), ("anchored", {"format": "onnx", "simplify": False})):
    yolo = YOLO(f"{name}.pt")
    result = yolo.predict(numpy.zeros((64, 64, 3), numpy.uint8), device="cpu", verbose=False, conf=0.0)
    assert result[0].names == {0: "circle", 1: "square", 2: "star"}, result[0].names
    assert len(result[0].boxes)
    yolo.export(device="cpu", verbose=False, **to)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "student.torchscript").is_file() and (tmp_path / "anchored.onnx").is_file()


def test_holds_no_class_but_torchs_and_ultralytics(either: Any, tmp_path: Path) -> None:
    checkpoint.save(either, tmp_path / "student.pt", names=NAMES, imgsz=64, plan={"a": [1]})
    with zipfile.ZipFile(tmp_path / "student.pt") as file:
        data = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    used = [argument for instruction, argument, _ in pickletools.genops(data) if instruction.name == "GLOBAL"]
    assert len(used) > 10
    assert {name.split(" ")[0].split(".")[0] for name in used} <= {"torch", "ultralytics", "collections", "__builtin__"}


def test_hooks_and_loss_stay_behind(model: Any, tmp_path: Path) -> None:
    hooked = copy.deepcopy(model)
    teacher = Custom()
    calls: list[int] = []
    hooked.model[3].register_forward_hook(lambda *_: calls.append(1))
    hooked.model[4].register_forward_pre_hook(teacher.forward, with_kwargs=True)
    hooked.criterion = hooked.init_criterion() if hasattr(hooked, "args") else object()
    checkpoint.save(hooked, tmp_path / "student.pt", names=NAMES, imgsz=64)
    found: Any = checkpoint.load(tmp_path / "student.pt").model
    assert not hasattr(found, "criterion")
    assert not any(hooks for module in found.modules() for key, hooks in vars(module).items() if "_hooks" in key)
    assert hooked.model[3]._forward_hooks and hooked.model[4]._forward_pre_hooks and hooked.criterion  # left alone


@pytest.mark.parametrize("note", [DistillError, pytest.approx])
def test_refuses_to_save_what_will_not_be_there(model: Any, tmp_path: Path, note: Any) -> None:
    changed = copy.deepcopy(model)
    changed.note = note
    with pytest.raises(TypeError, match=f"holds .*{note.__name__}"):
        checkpoint.save(changed, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "student.pt").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(model, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert (tmp_path / "student.pt").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["student.pt"]


def test_values_too_large_for_half_are_kept(model: Any, tmp_path: Path) -> None:
    wide = copy.deepcopy(model)
    wide.model[0].bn.running_var.fill_(1e6)
    checkpoint.save(wide, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert torch.equal(output(checkpoint.load(tmp_path / "student.pt").model), output(wide))


def test_fused_is_a_copy_that_computes_the_same(model: Any) -> None:
    before = output(model)
    network = checkpoint.fused(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(output(network), before, atol=1e-3)
    assert torch.equal(output(model), before)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bccd-yolov5nu-320.pt", "third-party/v8n_plate.pt"])
def test_real_checkpoints_equal_what_ultralytics_reads(shared: Path, name: str) -> None:
    found, stock = checkpoint.load(shared / "weights" / name), YOLO(shared / "weights" / name)
    assert float((output(found.model) - output(stock.model.eval())).abs().max()) == 0.0
    assert found.names == stock.names
    assert found.imgsz == stock.overrides["imgsz"]
    assert getattr(found.model, "criterion", None) is None


def test_every_shared_checkpoint_opens_or_is_refused(shared: Path) -> None:
    files = sorted((shared / "weights").rglob("*.pt"))
    assert len(files) > 10
    refused = {}
    for file in files:
        try:
            checkpoint.load(file)
        except DistillError as error:
            refused[file.stem] = str(error)
    assert all("\n" not in text for text in refused.values())
    foreign = {
        "v8n-ghost_nameplate": "does not run with ultralytics .*GhostBottleneck",  # its maker changed that class
        "v5face_zhplate2": r"holds 'models\.common\.StemBlock'.*a fork",
        "v5lite_e_hand_fused_fp32": r"holds 'models\.common\.conv_bn_relu_maxpool'.*a fork",
        "v5mod_gas_qarep_ch8": r"holds 'models\.common\.QARepVGGBlock'.*a fork",
    }
    assert refused.keys() == foreign.keys()
    assert all(re.search(foreign[name], text) for name, text in refused.items())


def test_prefers_the_average_and_takes_names_as_a_list(model: Any, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    other.model[0].bn.weight.data.fill_(2)
    other.names = ["a", "b", "c"]
    torch.save(
        {"epoch": 3, "model": model, "ema": other, "updates": 7, "train_args": {"imgsz": [64, 96]}},
        tmp_path / "last.pt",
    )
    found = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(output(found.model), output(other))
    assert found.names == {0: "a", 1: "b", 2: "c"}
    assert found.imgsz == 96
    assert found.plan is None


def test_a_network_saved_by_itself_opens(model: Any, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(output(checkpoint.load(tmp_path / "model.pt").model), output(model))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SemanticSegmentationModel", "a model for semantic segmentation"),
        ("DepthModel", "a depth model"),
        ("YOLOESegModel", "a YOLOE"),
        ("ClassificationModel", "a classification model"),
        ("RTDETRDetectionModel", "an RT-DETR"),
        ("WorldModel", "a YOLO-World"),
    ],
)
def test_other_tasks_are_named(tmp_path: Path, name: str, says: str) -> None:
    torch.save({"model": getattr(tasks, name), "more": builtins.getattr}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match=f"best.pt is {says}|best.pt is .*{says}"):
        checkpoint.load(tmp_path / "best.pt")


def test_a_fused_network_is_refused(model: Any, tmp_path: Path) -> None:
    torch.save({"model": checkpoint.fused(model)}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="fused"):
        checkpoint.load(tmp_path / "best.pt")


def test_a_broken_network_is_refused(model: Any, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    del broken.model[2].cv2
    torch.save({"model": broken}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="does not run with ultralytics .*cv2"):
        checkpoint.load(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("names", {0: "circle", 1: "square"}, "has 3 classes, but not a name for each"),
        ("names", {0: "circle", 1: "square", "2": "star"}, "has 3 classes, but not a name for each"),
        ("names", None, "has 3 classes, but not a name for each"),
        ("model", nn.Sequential(), "damaged"),
        ("yaml", {"backbone": [3]}, "damaged"),
        ("save", None, "does not run"),
    ],
)
def test_a_network_that_does_not_hold_together_is_refused(
    model: Any, tmp_path: Path, key: str, value: Any, says: str
) -> None:
    other = copy.deepcopy(model)
    setattr(other, key, value)
    torch.save({"model": other}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match=says):
        checkpoint.load(tmp_path / "best.pt")


def test_images_of_other_channels_are_refused(tmp_path: Path) -> None:
    torch.save({"model": DetectionModel("yolov8n.yaml", ch=4, nc=3, verbose=False)}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="images of 4 channels"):
        checkpoint.load(tmp_path / "best.pt")


# --- what is no checkpoint -------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    torch.save({"model": torch.zeros(4096)}, path)
    path.write_bytes(path.read_bytes()[:-900])


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def flipped_bit(path: Path) -> None:
    torch.save({"model": torch.full((4096,), 1.5)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 1.5) * 4) + 64] ^= 1
    path.write_bytes(data)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        file.writestr("archive/data/0", bytes(10_000_000))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("hello"), "not a PyTorch checkpoint"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
        (truncated, "damaged or cut short"),
        (flipped_bit, "damaged"),
        (plain_zip, "not a PyTorch checkpoint"),
        (bomb, "would unpack"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "before version 1.6"),
        (lambda path: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path), "TorchScript"),
        (lambda path: torch.save(nn.Linear(1, 1).state_dict(), path), "state dict"),
        (lambda path: torch.save({"model": nn.Linear(1, 1).state_dict()}, path), "state dict"),
        (lambda path: torch.save([1, 2], path), "holds list"),
        (lambda path: torch.save({"model": nn.Linear(1, 1)}, path), "is a Linear, not a detector"),
        (lambda path: torch.save([1], path, pickle_protocol=5), "protocol 5"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "best.pt"
    make(path)
    with pytest.raises(DistillError, match=says) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# --- what is hostile -------------------------------------------------------------------------------------------------


def evil_config(marker: Path) -> dict[str, Any]:
    return {**yaml_model_load("yolov8n.yaml"), "activation": f"__import__('pathlib').Path({str(marker)!r}).touch()"}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda marker: Call(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: Call(builtins.eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        (lambda marker: Call(builtins.open, str(marker), "w"), "io.open"),
        (lambda marker: Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (lambda marker: Call(torch.load, str(marker)), "torch.serialization.load"),
        (lambda marker: Call(builtins.getattr, Conv, "forward"), "fused"),
    ],
)
def test_a_foreign_name_is_refused_and_not_called(model: Any, tmp_path: Path, call: Any, name: str) -> None:
    marker = tmp_path / "marker"
    torch.save({"model": model, "train_args": call(marker)}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match=name):
        checkpoint.load(tmp_path / "best.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda marker: Call(DetectionModel, evil_config(marker)),  # evaluates cfg["activation"] when it is called
        lambda marker: Call(Conv, 3, Call(Conv, 1, 1)),
    ],
)
def test_an_allowed_class_is_not_called(model: Any, tmp_path: Path, call: Any) -> None:
    """What a call leaves behind is a module without its parts, or data: nothing that could be taken for a network."""
    marker = tmp_path / "marker"
    with pytest.raises(TypeError):  # the file would do it
        DetectionModel(evil_config(marker), verbose=False)
    assert marker.exists()
    marker.unlink()
    torch.save({"model": call(marker)}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="damaged"):
        checkpoint.load(tmp_path / "best.pt")
    assert not marker.exists()


@pytest.mark.parametrize("layer", [["activation"], ["backbone", 0, 2], ["head", 0, 2]])
def test_a_description_cannot_smuggle_in_code(model: Any, tmp_path: Path, layer: list[Any]) -> None:
    """The `yaml` of a network is plain data, but ultralytics evaluates parts of it when it builds the network again."""
    changed = copy.deepcopy(model)
    place: Any = changed.yaml
    for key in layer[:-1]:
        place = place[key]
    place[layer[-1]] = "print" if layer == ["activation"] else "torch_safe_load"
    torch.save({"model": changed}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="holds '(print|torch_safe_load)', which is not part of a YOLO"):
        checkpoint.load(tmp_path / "best.pt")
    place[layer[-1]] = "nn.LeakyReLU(0.1, inplace=True)" if layer == ["activation"] else "nn.Identity"
    torch.save({"model": changed}, tmp_path / "best.pt")
    checkpoint.load(tmp_path / "best.pt")


def test_a_pickle_cannot_change_what_the_next_one_meets(model: Any, tmp_path: Path) -> None:
    """BUILD sets attributes on whatever lies on the stack, classes and functions included."""
    for module, name in [("ultralytics.nn.modules.conv", "Conv"), ("torch._utils", "_rebuild_parameter")]:
        data = (
            b"\x80\x02c"
            + f"{module}\n{name}\n".encode()
            + b"}X\x07\x00\x00\x00forwardK\x01s}X\x07\x00\x00\x00forwardK\x01s\x86b."
        )
        pickletools.dis(data, out=io.StringIO())
        with pytest.raises(DistillError):
            checkpoint.load(zipped(tmp_path / "best.pt", data))
    assert callable(Conv.forward)
    torch.save({"model": model}, tmp_path / "good.pt")
    assert torch.equal(output(checkpoint.load(tmp_path / "good.pt").model), output(model))


def tensor_pickle(size: str, count: int) -> bytes:
    """A tensor of `size` with stride 0 on a storage of `count` floats, as text instructions."""
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM"
        + struct.pack("<H", count)
        + b"tQK\x00J"
        + struct.pack("<i", int(size))
        + b"\x85K\x00\x85\x89ccollections\nOrderedDict\n)RtR."
    )


def test_the_code_of_a_saved_head_is_not_run(anchored: Any, tmp_path: Path) -> None:
    """torch.fx keeps a module as source text, which torch.load executes; `load` takes the module's parts alone."""
    marker, line = tmp_path / "marker", b"def forward("
    checkpoint.save(anchored, tmp_path / "student.pt", names=NAMES, imgsz=64)
    attack = f"\nopen({str(marker)!r}, 'w').close()\n".encode()

    def change(data: bytes) -> bytes:
        end = data.index(line)  # the string's length stands before it
        start = data.rindex(b"X", 0, end - 4)
        (length,) = struct.unpack("<I", data[start + 1 : start + 5])
        return data[: start + 1] + struct.pack("<I", length + len(attack)) + attack + data[start + 5 :]

    path = edited(tmp_path / "student.pt", change, tmp_path / "hostile.pt")
    found = checkpoint.load(path)
    assert not marker.exists()
    assert torch.equal(output(found.model), output(checkpoint.load(tmp_path / "student.pt").model))
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was meant
    assert torch.equal(output(checkpoint.load(path, trust=True).model), output(found.model))


@pytest.mark.parametrize("name", ["m", "cells", "pixels", "nc", "f"])
def test_a_saved_head_without_its_parts_is_refused(anchored: Any, tmp_path: Path, name: str) -> None:
    checkpoint.save(anchored, tmp_path / "student.pt", names=NAMES, imgsz=64)
    content = torch.load(tmp_path / "student.pt", weights_only=False)
    head = content["model"].model[-1]
    delattr(head[0] if name == "m" else head, name)
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="damaged"):
        checkpoint.load(tmp_path / "best.pt")


def test_memory_is_not_blown(tmp_path: Path) -> None:
    four = struct.pack("<4f", 1, 2, 3, 4)
    assert (
        checkpoint.Archive(zipped(tmp_path / "fine.pt", tensor_pickle("4", 4), **{"data/0": four})).load({}).numel()
        == 4
    )
    for data in (
        tensor_pickle("2000000000", 4),  # eight gigabytes out of sixteen bytes
        tensor_pickle("4", 5),  # more than is there
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # a memo of two billion entries
        b"\x80\x05\x96\xff\xff\xff\xff\x7f\x00\x00\x00.",  # a bytearray that is not there
    ):
        with pytest.raises(DistillError, match="damaged"):
            checkpoint.load(zipped(tmp_path / "best.pt", data, **{"data/0": four}))


def test_truncated_pickles_and_wrong_parts_are_refused(model: Any, tmp_path: Path) -> None:
    torch.save({"model": model}, tmp_path / "best.pt")
    with zipfile.ZipFile(tmp_path / "best.pt") as file:
        data = file.read("best/data.pkl")
    for wrong in (data[:-40], data.replace(b"torch.nn.modules.batchnorm\nBatchNorm2d", b"collections\nOrderedDict")):
        with pytest.raises(DistillError):
            checkpoint.load(zipped(tmp_path / "wrong.pt", wrong))


def test_trust_opens_a_file_with_classes_of_its_own(model: Any, tmp_path: Path) -> None:
    own = copy.deepcopy(model)
    own.model[0].act = Custom()
    torch.save({"model": own}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match=r"Custom', which is not part of a YOLO.*trust=true"):
        checkpoint.load(tmp_path / "best.pt")
    found = checkpoint.load(tmp_path / "best.pt", trust=True)
    assert torch.equal(output(found.model), output(own))


def test_the_restricted_pickle_is_a_pickle(tmp_path: Path) -> None:
    """Plain data comes back as it was."""
    content = {
        "a": [1, 2.5, None, True, "x", 2**70],
        "b": (1, (2, 3), {4}),
        "c": torch.Size([1, 2]),
        "d": torch.float16,
    }
    torch.save(content, tmp_path / "data.pt")
    assert checkpoint.Archive(tmp_path / "data.pt").load({}) == content
    assert pickle.loads(pickle.dumps(content)) == content
