"""The table of families: each network's own is looked up by its head, and an unknown head is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import head as heads
from ultralytics.nn.modules.head import Detect

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families import table
from distill.yolo.families.end_to_end import END_TO_END
from distill.yolo.families.family import Evaluation
from distill.yolo.families.outputs import run, sensitivity_of
from distill.yolo.families.points import neck_keep
from distill.yolo.families.table import FAMILIES, family_of
from distill.yolo.families.ultralytics_dfl import DFL
from distill.yolo.families.yolov5.family import ANCHOR
from tests.distill.yolo.originals import IMAGE, NAMES, network, tiny

CH = (8, 16)


class Shifted(Detect):
    """A head of a contributor's own: a Detect whose boxes mean something else."""


def ending_in(head: nn.Module) -> Any:
    model = tiny()
    old = model.model[-1]
    for name in ("i", "f", "type", "np"):
        setattr(head, name, getattr(old, name))
    model.model[-1] = head
    return model


def of_one_branch(head: Any) -> nn.Module:
    """As a network is left that runs without NMS and was fused."""
    head.end2end = True
    head.fuse()
    return head


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "Shifted": lambda: Shifted(3, ch=CH),
    "Identity": nn.Identity,
    "YOLOESegment": lambda: heads.YOLOESegment(3, ch=CH),
    "SemanticSegment": lambda: heads.SemanticSegment(3, ch=CH),
    "Depth": lambda: heads.Depth(ch=CH),
    "WorldDetect": lambda: heads.WorldDetect(3, ch=CH),
    "RTDETRDecoder": lambda: heads.RTDETRDecoder(3, ch=CH, hd=16, nh=2, ndl=1, d_ffn=16),
    "v10Detect with one of its two branches": lambda: of_one_branch(heads.v10Detect(3, ch=CH)),
    "Detect with one of its two branches": lambda: of_one_branch(Detect(3, reg_max=1, end2end=True, ch=CH)),  # YOLO26's
}


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (tiny, DFL),
        (lambda: tiny("yolo11n.yaml"), DFL),
        (network, ANCHOR),
        (lambda: ending_in(heads.v10Detect(3, ch=CH)), END_TO_END),
        (lambda: tiny("yolo26n.yaml"), END_TO_END),
    ],
    ids=["v8", "11", "v5", "v10", "26"],
)
def test_a_network_is_of_the_family_of_its_head(model: Callable[[], Any], family: Any) -> None:
    assert family_of(model()) is family
    assert [other for other in FAMILIES if other.owns(model().model[-1])] == [family]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_head_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model = ending_in(UNKNOWN[name]())
    for use in (
        family_of,
        sensitivity_of,
        lambda model: neck_keep(model, {}),
        lambda model: checkpoint.save(model, tmp_path / "student.pt", names=NAMES, imgsz=64),
        lambda model: checkpoint.check_network(tmp_path / "best.pt", model),
    ):
        with pytest.raises(DistillError) as error:
            use(model)
        text = str(error.value)
        assert f"ends in the head {name}" in text and "\n" not in text
        assert "the original YOLOv5" in text and "YOLOv10 and YOLO26 are supported" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["YOLOESegment", "SemanticSegment", "Depth", "WorldDetect", "Detect with one of its two branches"]
)
def test_a_checkpoint_with_an_unknown_head_is_refused(name: str, tmp_path: Path) -> None:
    torch.save({"model": ending_in(UNKNOWN[name]())}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match=rf"best\.pt ends in the head {name}"):
        checkpoint.load(tmp_path / "best.pt")


def test_what_is_no_yolo_is_refused_by_name() -> None:
    for model in (nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))):
        with pytest.raises(DistillError, match=f"the network ends in the head {type(model).__name__}"):
            family_of(model)


def test_a_family_is_one_value_in_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A family with a head of its own is looked up, run, saved, and named in messages."""
    model = ending_in(Shifted(3, ch=tuple(branch[0].conv.in_channels for branch in tiny().model[-1].cv2)))
    model.model[-1].stride = model.stride
    family = replace(
        DFL,
        title="somebody's YOLO",
        owns=lambda head: type(head) is Shifted,
        evaluation=Evaluation(nms_iou=0.5),
        checkpoints=replace(DFL.checkpoints, portable=as_detect),
    )
    monkeypatch.setattr(table, "FAMILIES", (*FAMILIES, family))
    assert family_of(model) is family and family_of(tiny()) is DFL and family_of(network()) is ANCHOR
    assert run(model, IMAGE).scores.shape[-1] == 3
    with pytest.raises(DistillError, match="and of somebody's YOLO are supported"):
        family_of(ending_in(nn.Identity()))
    checkpoint.save(model, tmp_path / "best.pt", names=NAMES, imgsz=64)
    assert type(model.model[-1]) is Shifted
    assert type(checkpoint.load(tmp_path / "best.pt").model.model[-1]) is Detect  # as `portable` wrote it


def as_detect(head: nn.Module) -> nn.Module:
    plain = copy.deepcopy(head)
    plain.__class__ = Detect
    return plain


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_native_commands_can_be_filled_in(family: Any) -> None:
    if family.native is not None:
        lines = [line.format(file="a.pt", data="d.yaml", imgsz=416) for line in family.native.commands]
        assert all("a.pt" in line and "416" in line for line in lines)
    assert family.entry.format(level=0) != family.entry.format(level=1)
