"""Agreement with the teacher: 1 for itself, less the further a network is from it, and measured where the boxes are."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.utils.ops import xywh2xyxy

from distill.results.figures import Evaluation
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as data
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation import agreement
from distill.yolo.evaluation.agreement import Agreement, Reference
from distill.yolo.evaluation.evaluate import EvalSettings
from tests.distill.yolo.originals import NAMES, network, seeing_one_object, tiny

SIZES = [(64, 64), (40, 64), (160, 96), (64, 32)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Twenty images without labels, of which four are held back: noise in blocks, of several shapes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(20):
        height, width = SIZES[index // 5]
        noise = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        large = cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{index:02}.png"), large)
    return data.load(folder, NAMES)


def spread(convolution: nn.Conv2d, values: torch.Tensor, rows: torch.Tensor) -> None:
    """Give a head's raw outputs, which of a network that has not learned are all alike, a mean of -3 and a width of 2."""
    weight, bias = convolution.weight.data, convolution.bias
    assert bias is not None
    values = values.transpose(0, 1).flatten(1)[rows]
    scale = 2 / values.std(1)
    weight[rows] *= scale.view(-1, 1, 1, 1)
    bias.data[rows] = bias.data[rows] * scale - 3 - values.mean(1) * scale


def seeing(head: str) -> Any:
    """A network of either kind that is sure of some boxes and not of others."""
    model: Any = tiny() if head == "dfl" else network()
    detect = model.model[-1]
    if head == "anchor":
        detect.anchors.add_(5)  # large enough that no box lies wholly in the padding
    convolutions = [branch[-1] for branch in detect.cv3] if head == "dfl" else list(detect.m)
    seen: list[torch.Tensor] = []
    hooks = [convolution.register_forward_hook(lambda *args: seen.append(args[2])) for convolution in convolutions]
    with torch.no_grad():
        model(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for convolution, values, hook in zip(convolutions, seen, hooks, strict=True):
        rows = torch.arange(convolution.out_channels)
        spread(convolution, values, rows if head == "dfl" else rows[rows % 8 >= 5])
        if head == "anchor":
            convolution.bias.data[4::8] = 4.0  # an object everywhere: the classes decide
        hook.remove()
    return model


@pytest.fixture(scope="module", params=["dfl", "anchor"])
def seen(request: pytest.FixtureRequest, images: DataSet) -> tuple[Any, Reference]:
    """A teacher and what it sees."""
    teacher = seeing(request.param)
    return teacher, agreement.predict_reference(teacher, images, EvalSettings(64, 3))


def measure(student: Any, reference: Reference) -> Agreement:
    return agreement.measure(student, reference)


def noisy(model: Any, noise: float) -> Any:
    """A copy with noise on its weights, the same whatever its strength."""
    result, random = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for weight in result.parameters():
        if weight.ndim == 4 and weight.requires_grad:
            width = weight.data.std((1, 2, 3), keepdim=True)
            weight.data += noise * width * torch.randn(weight.shape, generator=random)
    return result


def test_the_teacher_agrees_with_itself(seen: tuple[Any, Reference]) -> None:
    teacher, reference = seen
    found = measure(teacher, reference)
    assert (found.agreement50_95, found.agreement50) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))
    assert list(found.agreement_per_class.values()) == pytest.approx([1] * len(reference.boxes), abs=1e-9)


def test_the_further_a_network_is_from_the_teacher_the_less_it_agrees(seen: tuple[Any, Reference]) -> None:
    teacher, reference = seen
    found = [measure(noisy(teacher, noise), reference) for noise in (0.0, 0.1, 0.4)]
    overall = [one.agreement50_95 or 0.0 for one in found]
    assert overall[0] > overall[1] + 0.1 and overall[1] > overall[2] + 0.1
    for one in found[1:]:
        assert one.agreement50 is not None and one.agreement50 > (one.agreement50_95 or 0.0) - 1e-9
        assert one.agreement50_95 == pytest.approx(np.mean(list(one.agreement_per_class.values())))


def test_the_boxes_of_each_class_are_counted(seen: tuple[Any, Reference]) -> None:
    _, reference = seen
    classes = np.concatenate([record["cls"] for record in reference.data.records["val"]])[:, 0]
    assert reference.boxes == {NAMES[c]: int((classes == c).sum()) for c in NAMES if (classes == c).any()}
    assert sum(reference.boxes.values()) > 10 and reference.data.labelled
    assert sorted(record["im_file"] for record in reference.data.records["val"]) == sorted(map(str, reference.data.val))


def test_a_class_that_the_teacher_never_sees_does_not_count(images: DataSet) -> None:
    teacher = seeing("dfl")
    for branch in teacher.model[-1].cv3:
        branch[-1].bias.data[1] -= 40
    reference = agreement.predict_reference(teacher, images, EvalSettings(64))
    student = seeing("dfl")  # sees it
    assert "square" not in reference.boxes and set(measure(student, reference).agreement_per_class) == {
        "circle",
        "star",
    }


def test_a_teacher_that_sees_nothing_gives_no_figure(images: DataSet) -> None:
    blind = seeing("dfl")
    for branch in blind.model[-1].cv3:
        branch[-1].bias.data -= 40
    nothing = agreement.predict_reference(blind, images, EvalSettings(64))
    assert nothing.boxes == {}
    assert measure(seeing("dfl"), nothing) == Agreement(None, None, {})


@pytest.mark.parametrize("head", ["dfl", "anchor"])
def test_a_student_that_sees_nothing_agrees_in_nothing(head: str, images: DataSet) -> None:
    teacher = seeing(head)
    reference, blind = agreement.predict_reference(teacher, images, EvalSettings(64)), copy.deepcopy(teacher)
    for convolution in blind.model[-1].cv3 if head == "dfl" else blind.model[-1].m:
        (convolution[-1] if head == "dfl" else convolution).bias.data -= 40
    assert measure(blind, reference) == Agreement(0, 0, dict.fromkeys(reference.boxes, 0.0))


def test_boxes_on_an_image_without_any_are_false_alarms(seen: tuple[Any, Reference]) -> None:
    teacher, reference = seen
    first, *others = sorted(reference.data.records["val"], key=lambda record: len(record["cls"]))
    empty = {**first, "cls": first["cls"][:0], "bboxes": first["bboxes"][:0]}
    emptied = replace(reference, data=replace(reference.data, records={"val": (empty, *others)}))
    found = measure(teacher, emptied).agreement50_95
    assert len(first["cls"]) and found is not None and 0.1 < found < 0.999


def test_the_boxes_are_shares_of_the_image_without_its_padding(images: DataSet) -> None:
    """The network sees one object over the whole of every image and far beyond it."""
    model = seeing_one_object()
    reference = agreement.predict_reference(model, images, EvalSettings(64))
    boxes = np.concatenate([record["bboxes"] for record in reference.data.records["val"]])
    assert reference.boxes == {"square": 4} and np.allclose(boxes, [0.5, 0.5, 1, 1], atol=1e-6)


def test_the_boxes_are_those_that_ultralytics_predicts(shared: Path) -> None:
    teacher = checkpoint.load(shared / "weights" / "bccd-yolov5nu-320.pt")
    held = data.load(shared / "data" / "bccd" / "images" / "val", teacher.names)
    few = replace(held, val=held.val[:3], records={"val": held.records["val"][:3]})
    reference = agreement.predict_reference(teacher.model, few, EvalSettings(320))
    stock = YOLO(teacher.source)
    for record in reference.data.records["val"]:
        (found,) = stock.predict(record["im_file"], imgsz=320, conf=0.25, iou=0.7, verbose=False, save=False)
        ours = xywh2xyxy(torch.as_tensor(record["bboxes"]))
        overlap = box_iou(ours, found.boxes.xyxyn) * (torch.as_tensor(record["cls"]) == found.boxes.cls)
        assert len(ours) > 5 and (overlap.amax(1) > 0.8).float().mean() > 0.9


def test_networks_are_judged_by_map_and_without_labels_by_agreement() -> None:
    name = "agreement with the teacher"
    for agreed in (None, 0.9):
        assert Evaluation(0.5, 0.8, {}, agreement50_95=agreed).yardstick == ("mAP50-95", 0.5)
        assert Evaluation(None, None, None, agreement50_95=agreed).yardstick == (name, agreed)
