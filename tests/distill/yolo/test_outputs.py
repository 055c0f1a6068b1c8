"""Raw outputs of a YOLO in a loss's terms, against ultralytics' own arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from distill.losses import WeightedLoss, resolve
from distill.yolo.families.outputs import distillation, label_terms, run, teacher_of
from distill.yolo.families.points import neck_keep

feature_pkd = resolve("feature_pkd")

CFG = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "Conv", [16, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]],
}


@pytest.fixture
def model() -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(copy.deepcopy(CFG), verbose=False).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:  # all but the head's fixed 0, 1, 2, ...
            nn.init.normal_(module.weight, std=0.5)
    model.args = get_cfg()
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_boxes_and_scores_are_those_that_the_head_decodes(model, images):
    with torch.no_grad():
        decoded = model(images)[0].transpose(1, 2)  # (B, A, 4 + nc)
        outputs = run(model, images)
    anchors = 8 * 12 + 4 * 6
    assert outputs.boxes.shape == (2, anchors, 4) and outputs.dist.shape == (2, anchors, 4, 16)
    torch.testing.assert_close(outputs.boxes, xywh2xyxy(decoded[..., :4]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(outputs.scores.sigmoid(), decoded[..., 4:])
    some = torch.tensor([0, 1, 1]), torch.tensor([3, 100, 119])
    torch.testing.assert_close(outputs.decode.pick(*some)()[0], outputs.boxes[some])
    assert outputs.strides.tolist() == [8.0] * 96 + [16.0] * 24
    assert [tuple(feature.shape) for feature in outputs.features] == [(2, 16, 8, 12), (2, 16, 4, 6)]


@pytest.mark.parametrize("mode", [True, False])
def test_running_changes_no_mode_and_no_statistics_that_it_should_not(model, images, mode):
    model.train(mode)
    before = copy.deepcopy(model.state_dict())
    run(model, images)
    assert all(module.training is mode for module in model.modules())
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(moved) is mode and all("running" in name or "num_batches" in name for name in moved)


def test_label_terms_are_the_detection_loss_of_an_image(model, images):
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])
    batch = {"img": images, "batch_idx": torch.tensor([0, 1]), "cls": torch.tensor([[0], [2]]), "bboxes": boxes}
    model.train()
    outputs = run(model, images)
    terms = label_terms(model, outputs, batch)
    expected, parts = model.init_criterion()(outputs.raw, batch)
    assert list(terms) == ["box_loss", "cls_loss", "dfl_loss"]
    assert all(torch.allclose(terms[name], parts[name]) for name in terms)
    assert sum(terms.values()).item() == pytest.approx(expected.sum().item() / 2, rel=1e-5)
    assert all(term.requires_grad for term in terms.values())


def test_a_cut_student_compares_with_the_channels_it_kept(model, images):
    keep = {"model.4.cv2.0.conv": (0,), "model.4.cv2.0.0.conv": (1, 3, 4), "model.4.cv2.1.0.conv": (0, 2)}
    assert neck_keep(model, keep) == [(1, 3, 4), (0, 2)]
    task = distillation(model, [teacher_of(model, [WeightedLoss("pkd", 1.0, feature_pkd)])], labels=0)
    with torch.no_grad():
        assert task({"img": images})["loss"] == 0
