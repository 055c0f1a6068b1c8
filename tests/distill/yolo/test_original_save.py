"""Checkpoints in the original's format: names that its code has, the same network, and nothing of ours in them."""

from __future__ import annotations

import builtins
import copy
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv

import prune
from distill.errors import DistillError, RunError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.archive import Archive
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.yolov5.checkpoint import HYP
from distill.yolo.families.yolov5.head import AnchorDetect
from distill.yolo.families.yolov5.saving import save_original
from tests.distill.yolo.originals import IMAGE, NAMES, output, tiny

STRIDE = torch.tensor([8.0, 16.0, 32.0])
ANCHORS = torch.tensor([[[1.25, 1.625], [2.0, 3.75], [4.125, 2.875]]]).repeat(3, 1, 1)


class Custom(nn.Module):
    """A module of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def model() -> Any:
    """As `checkpoint.load` opens an original one, with few channels."""
    made = tiny("yolov5n.yaml")
    old: Any = made.model[-1]
    convolutions = [nn.Conv2d(branch[0].conv.in_channels, 3 * (5 + len(NAMES)), 1) for branch in old.cv2]
    head = AnchorDetect(convolutions, ANCHORS, STRIDE, len(NAMES))
    head.i, head.f, head.type, head.np = old.i, old.f, "models.yolo.Detect", 0
    made.model[-1] = head
    made.hyp = {**HYP, "cls": 0.0125, "mosaic": 1.0}
    made.args, made.task, made.pt_path, made.criterion = {"imgsz": 64}, "detect", "best.pt", object()
    return made.eval()


def read(path: Path) -> Any:
    """The file's content as it lies there, whatever its classes would make of it."""
    archive = Archive(path)
    modules = {name: nn.Module for name in archive.names if name.startswith(("models.", "torch.nn."))}
    return archive.load(
        modules, [name for name in archive.names if name.startswith(("pathlib.", "numpy.", "_codecs."))]
    )


def test_names_only_what_the_original_has(model: Any, tmp_path: Path) -> None:
    save_original(model, tmp_path / "student.pt", names=NAMES, imgsz=96)
    names = Archive(tmp_path / "student.pt").names
    own = {name for name in names if not name.startswith(("torch.", "collections.", "builtins."))}
    assert own == {
        *("models.yolo.Model", "models.yolo.Detect", "models.common.Conv", "models.common.C3"),
        *("models.common.Bottleneck", "models.common.SPPF", "models.common.Concat"),
    }
    assert {name for name in names if name.startswith("builtins.")} <= {"builtins.set"}
    assert "models" not in sys.modules


def test_saved_and_loaded_is_the_same_network(model: Any, tmp_path: Path) -> None:
    save_original(model, tmp_path / "student.pt", names=NAMES, imgsz=96)
    found: Any = checkpoint.load(tmp_path / "student.pt")
    assert torch.equal(output(found.model), output(copy.deepcopy(model).half().float()))
    assert (found.names, found.imgsz, found.model.hyp) == (NAMES, 96, model.hyp)
    assert torch.equal(found.model.model[-1].anchors, ANCHORS)
    save_original(found.model, tmp_path / "again.pt", names=found.names, imgsz=found.imgsz)
    assert torch.equal(output(checkpoint.load(tmp_path / "again.pt").model), output(found.model))


def test_holds_what_the_originals_code_reads(model: Any, tmp_path: Path) -> None:
    save_original(model, tmp_path / "student.pt", names=NAMES, imgsz=96)
    content = read(tmp_path / "student.pt")
    network, none = content.pop("model"), ("best_fitness", "ema", "updates", "optimizer", "git")
    assert isinstance(content.pop("date"), str)
    assert content == {"epoch": -1, "opt": {"imgsz": 96}, **dict.fromkeys(none)}
    state = {name: value for name, value in vars(network).items() if name not in vars(nn.Module())}
    assert state.keys() == {"yaml", "save", "names", "inplace", "stride", "nc", "hyp"}
    assert (state["names"], state["nc"], state["save"], state["hyp"]) == (NAMES, 3, model.save, model.hyp)
    assert torch.equal(state["stride"], STRIDE)
    assert {p.dtype for p in network.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())

    layers = list(network.model.children())
    assert [layers[i].type for i in (0, 2, 9)] == ["models.common.Conv", "models.common.C3", "models.common.SPPF"]
    assert {layer.type for layer in layers} >= {"torch.nn.modules.upsampling.Upsample", "models.common.Concat"}
    assert [layer.i for layer in layers] == list(range(len(layers)))
    head = layers[-1]
    assert (head.nc, head.no, head.nl, head.na, head.inplace, head.type) == (3, 8, 3, 3, True, "models.yolo.Detect")
    assert (head.f, len(list(head.m.children()))) == (model.model[-1].f, 3)
    assert [tensor.numel() for tensor in (*head.grid, *head.anchor_grid)] == [0] * 6
    assert list(head.state_dict()) == ["anchors", *(f"m.{i}.{name}" for i in range(3) for name in ("weight", "bias"))]
    assert torch.equal(head.anchors, ANCHORS.half())
    assert "stride" not in head.state_dict()
    assert torch.equal(head.stride, STRIDE.half())


def test_the_network_is_left_alone(model: Any, tmp_path: Path) -> None:
    before, was, types = output(model), set(vars(model)), [layer.type for layer in model.model]
    hooks = [model.model[3].register_forward_pre_hook(lambda *_: None), model.register_forward_hook(Custom().forward)]
    model.train().requires_grad_(True)
    save_original(model, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert model.training
    assert type(model.model[-1]) is AnchorDetect
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert (set(vars(model)), [layer.type for layer in model.model]) == (was, types)
    assert model.model[3]._forward_pre_hooks and model._forward_hooks
    for hook in hooks:
        hook.remove()
    assert torch.equal(output(model.eval()), before)


def test_a_pruned_network_is_saved(model: Any, tmp_path: Path) -> None:
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    student = prune.apply(
        model, prune.make_plan(graph, prune.score(graph, "l1"), flops=0.6, round_to=2), adapter=YOLO_ADAPTER
    )
    save_original(student, tmp_path / "student.pt", names=NAMES, imgsz=64)
    found = checkpoint.load(tmp_path / "student.pt").model
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.equal(output(found), output(copy.deepcopy(student).half().float()))


def test_a_repeated_layer_has_the_type_of_its_parts(model: Any, tmp_path: Path) -> None:
    changed = copy.deepcopy(model)
    width = changed.model[1].conv.out_channels
    layer: Any = nn.Sequential(changed.model[1], Conv(width, width, 3))
    layer.i, layer.f, layer.type, layer.np = 1, -1, "", 0
    changed.model[1] = layer
    save_original(changed, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert next(iter(read(tmp_path / "student.pt")["model"].model.children())).type == "models.common.Conv"
    assert list(read(tmp_path / "student.pt")["model"].model.children())[1].type == "models.common.Conv"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.2", C2f(4, 4), "holds ultralytics.nn.modules.block.C2f, which the original YOLOv5 does not have"),
        ("model.0.act", Custom(), "holds .*Custom, which the original"),
        ("model.0.note", builtins.getattr, r"holds builtins\.getattr, which the original"),
        ("model.0.note", DistillError, "holds distill.errors.DistillError, which the original"),
        ("model.9.n", 2, "no SPPF but"),
    ],
)
def test_refuses_what_the_original_lacks(model: Any, tmp_path: Path, path: str, value: Any, says: str) -> None:
    changed = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    if name.isdigit():  # a layer
        value.i, value.f, value.type, value.np = int(name), -1, "", 0
    setattr(changed.get_submodule(parent), name, value)
    with pytest.raises(DistillError, match=says):
        save_original(changed, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert not list(tmp_path.iterdir())


def test_refuses_another_head(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="ends in a Detect, not in"):
        save_original(tiny("yolov8n.yaml"), tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_half_are_kept(model: Any, tmp_path: Path) -> None:
    wide = copy.deepcopy(model)
    wide.model[0].bn.running_var.fill_(1e6)
    save_original(wide, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert torch.equal(output(checkpoint.load(tmp_path / "student.pt").model), output(wide))


def test_a_full_disk_leaves_the_old_file(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "student.pt").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        save_original(model, tmp_path / "student.pt", names=NAMES, imgsz=64)
    assert (tmp_path / "student.pt").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["student.pt"]


@pytest.mark.parametrize("name", ["cornpest-yolov5n-416.pt", "third-party/coco_yolov5n_v60.pt"])
def test_a_real_checkpoint_comes_back_as_it_was(shared: Path, tmp_path: Path, name: str) -> None:
    found = checkpoint.load(shared / "weights" / name)
    save_original(found.model, tmp_path / "again.pt", names=found.names, imgsz=found.imgsz or 640)
    again = checkpoint.load(tmp_path / "again.pt")
    assert torch.equal(output(again.model), output(found.model))
    assert (again.names, again.model.hyp) == (found.names, found.model.hyp)
    ours, theirs = (read(path)["model"].state_dict() for path in (tmp_path / "again.pt", shared / "weights" / name))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert set(theirs) - set(ours) <= {"model.24.anchor_grid"}  # up to v5.0
