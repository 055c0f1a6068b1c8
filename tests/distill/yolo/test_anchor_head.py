"""The original YOLOv5's head: what it computes, what losses and `prune` read of it, and its loss on labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune
from distill import losses
from distill.losses.context import LossContext
from distill.losses.spec import LossSpec
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import distillation, label_terms, run, sensitivity_of, teacher_of
from distill.yolo.families.points import keep_at, neck_keep
from distill.yolo.families.table import ANCHOR, family_of
from distill.yolo.families.yolov5 import head as anchor_head
from distill.yolo.families.yolov5.head import AnchorDetect
from distill.yolo.families.yolov5.loss import anchor_loss
from tests.distill.yolo.originals import HYP, IMAGE, network, output

SIZES = ((4, 6), (2, 3))  # rows and columns of the levels
STRIDE = torch.tensor([8.0, 16.0])
ANCHORS = torch.tensor([[[1.5, 2.0], [3.0, 1.0]], [[2.0, 2.0], [4.0, 3.0]]])
NC = 3


@pytest.fixture
def head() -> AnchorDetect:
    torch.manual_seed(0)
    return AnchorDetect([nn.Conv2d(width, 2 * (5 + NC), 1) for width in (4, 6)], ANCHORS, STRIDE, NC).eval()


def raw_maps(seed: int = 0, reach: float = 1.0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2 * (5 + NC), *size, generator=make) * reach for size in SIZES]


def outputs_of(head: AnchorDetect, maps: list[Tensor]) -> Any:
    return anchor_head.outputs(head, {"feats": [], "maps": maps})


def channel(box: int, what: int) -> int:
    return box * (5 + NC) + what


# --- decoding --------------------------------------------------------------------------------------------------------


def test_one_cell_worked_out_by_hand(head: AnchorDetect) -> None:
    """x y = (2 p - 0.5 + cell) stride and w h = (2 p)² anchor stride, for box 1 of level 1 in row 1 and column 2."""
    raw = torch.zeros(1, 2 * (5 + NC), *SIZES[1])
    p = torch.tensor([0.75, 0.25, 0.5, 0.75, 0.9, 0.2, 0.5, 0.6])
    raw[0, channel(1, 0) : channel(1, 0) + 8, 1, 2] = torch.logit(p)
    found = head.decode(raw, 1)
    assert found.shape == (1, 2 * 2 * 3, 8)
    expected = torch.tensor([48.0, 16.0, 64.0, 108.0, 0.9, 0.2, 0.5, 0.6])
    torch.testing.assert_close(found[0, 6 + 1 * 3 + 2], expected)
    torch.testing.assert_close(found[0, 0, :5], torch.tensor([8.0, 8.0, 32.0, 32.0, 0.5]))  # box 0 in the corner


def test_ultralytics_wants_objectness_times_class_where_the_original_keeps_both(head: AnchorDetect) -> None:
    features = [torch.rand(2, width, *size) for width, size in zip((4, 6), SIZES, strict=True)]
    with torch.no_grad():
        stock = head(features)
        head.layout = "original"
        own = head(features)
        head.training = True
        raw = head(features)
    anchors = 2 * (24 + 6)
    assert stock.shape == (2, 4 + NC, anchors) and own.shape == (2, anchors, 5 + NC)
    assert torch.equal(stock[:, :4], own[..., :4].transpose(1, 2))
    assert torch.equal(stock[:, 4:], (own[..., 4:5] * own[..., 5:]).transpose(1, 2))
    assert [each.shape for each in raw["maps"]] == [(2, 16, *size) for size in SIZES]
    assert torch.equal(raw["maps"][0], head.m[0](features[0])) and raw["feats"][1] is features[1]
    assert torch.equal(own, torch.cat([head.decode(level, i) for i, level in enumerate(raw["maps"])], 1))


def test_code_in_a_checkpoint_names_no_types(head: AnchorDetect) -> None:
    """Annotations are text to us; torch 2.11 takes such a one for an object to import and cannot save the head."""
    for name in ("i", "f", "type", "np"):  # what ultralytics notes on a layer
        setattr(head, name, 0)
    code = anchor_head.portable(head)[0]
    assert isinstance(code, torch.fx.GraphModule)
    assert {node.type for node in code.graph.nodes} == {None} and "Any" not in code.code


def test_anchors_are_no_weights(head: AnchorDetect) -> None:
    assert set(head.state_dict()) == {f"m.{level}.{name}" for level in (0, 1) for name in ("weight", "bias")}
    assert {name for name, _ in head.named_buffers()} == {"anchors", "stride"}


# --- what losses read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "box", "row", "column"), [(0, 0, 0, 0), (0, 0, 3, 5), (0, 1, 2, 1), (1, 0, 1, 0), (1, 1, 0, 2)]
)
def test_an_anchor_has_the_same_place_in_all_that_losses_read(
    head: AnchorDetect, level: int, box: int, row: int, column: int
) -> None:
    """Change the logits of one box of one cell, and find them: in order level, box, row, column."""
    before, maps = outputs_of(head, raw_maps()), raw_maps()
    maps[level][1, channel(box, 0) : channel(box, 5 + NC), row, column] += 2
    after = outputs_of(head, maps)
    rows, columns = SIZES[level]
    place = [1, level * 2 * 24 + (box * rows + row) * columns + column]
    for name in ("scores", "objectness", "boxes"):
        changed = (getattr(after, name) != getattr(before, name)).reshape(2, 60, -1).any(-1)
        assert changed.nonzero().tolist() == [place], name
    assert after.strides is not None and after.strides[place[1]] == STRIDE[level]
    difference = after.scores[1, place[1]] - before.scores[1, place[1]]
    torch.testing.assert_close(difference, torch.full((NC,), 2.0))
    corners = before.boxes[1, place[1]]
    centre = (corners[:2] + corners[2:]) / 2 / STRIDE[level] - torch.tensor([column, row])
    assert (centre > -0.5).all() and (centre < 1.5).all()


def test_outputs_are_what_the_head_decodes() -> None:
    model = network()
    with torch.no_grad():
        found = run(model, IMAGE)
        model.model[-1].layout = "original"
        decoded = model(IMAGE)
    anchors = 3 * (8 * 12 + 4 * 6)
    assert found.boxes.shape == (1, anchors, 4) and found.scores.shape == (1, anchors, 3) and found.dist is None
    centre, size = decoded[..., :2], decoded[..., 2:4]
    torch.testing.assert_close(found.boxes, torch.cat((centre - size / 2, centre + size / 2), -1))
    some = torch.tensor([0, 0, 0]), torch.tensor([5, 100, 300])
    torch.testing.assert_close(found.decode.pick(*some)()[0], found.boxes[some])  # type: ignore[union-attr]
    assert found.objectness is not None
    torch.testing.assert_close(found.objectness.sigmoid(), decoded[..., 4])
    torch.testing.assert_close(found.scores.sigmoid(), decoded[..., 5:])
    assert found.strides is not None and found.strides.tolist() == [8.0] * 288 + [16.0] * 72
    assert [tuple(level.shape) for level in found.raw] == [(1, 3, 8, 12, 8), (1, 3, 4, 6, 8)]
    assert [tuple(level.shape) for level in found.features] == [(1, 16, 8, 12), (1, 24, 4, 6)]


def test_an_anchor_is_worth_objectness_times_its_best_class(head: AnchorDetect) -> None:
    teacher = outputs_of(head, raw_maps())
    ctx = LossContext(torch.zeros(2, 3, 32, 48), teacher, teacher)
    assert teacher.objectness is not None
    torch.testing.assert_close(ctx.quality, teacher.objectness.sigmoid() * teacher.scores.sigmoid().amax(-1))
    assert not torch.allclose(ctx.quality, teacher.scores.sigmoid().amax(-1), atol=0.1)


def test_the_loss_on_labels_is_the_originals() -> None:
    model = network()
    images = torch.rand(2, 3, 64, 96)
    batch = {
        "img": images,
        "batch_idx": torch.tensor([0.0, 1.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3], [0.7, 0.2, 0.1, 0.2]]),
    }
    found = run(model, images)
    terms = label_terms(model, found, batch)
    targets = torch.cat((batch["batch_idx"][:, None], batch["cls"], batch["bboxes"]), 1)
    expected = anchor_loss(found.raw, targets, model.model[-1].anchors, HYP)
    assert list(terms) == ["box", "obj", "cls"] and all(torch.equal(terms[name], expected[name]) for name in terms)
    assert all(term > 0 for term in terms.values())
    model.hyp = {**HYP, "box": 3 * HYP["box"]}
    again = label_terms(model, found, batch)
    assert again["box"].item() == pytest.approx(3 * terms["box"].item()) and again["obj"] == terms["obj"]
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- sensitivity -----------------------------------------------------------------------------------------------------


def sensitivity_gradients(head: AnchorDetect, maps: list[Tensor], draws: int = 1) -> list[Tensor]:
    """Per level the squared gradient, a mean over draws, as (B, boxes, H, W, 5 + nc)."""
    leaves = [level.clone().requires_grad_() for level in maps]
    total = [torch.zeros_like(level) for level in maps]
    for _ in range(draws):
        value = anchor_head.sensitivity(head, {"feats": [], "maps": leaves})
        assert value.shape == ()
        for sum_, gradient in zip(total, torch.autograd.grad(value, leaves), strict=True):
            sum_ += gradient**2 / draws
    return [head.split(level) for level in total]


def test_where_no_object_is_boxes_and_classes_do_not_matter(head: AnchorDetect) -> None:
    maps = raw_maps()
    for level in maps:
        level[:, channel(0, 4)] = -40
    for level in sensitivity_gradients(head, maps):
        silent, other = level[:, 0], level[:, 1]
        assert silent.abs().max() < 1e-12
        assert (other > 0).float().mean() > 0.99


@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_sensitivity_is_finite_for_any_logits(head: AnchorDetect, value: float) -> None:
    maps = [torch.full_like(level, value) for level in raw_maps()]
    mixed = raw_maps(reach=abs(value))
    for each in (maps, mixed, [level.bfloat16() for level in mixed]):
        assert all(level.isfinite().all() for level in sensitivity_gradients(head, each))


def test_the_squared_gradient_is_the_metric_of_the_outputs(head: AnchorDetect) -> None:
    """In expectation: p (1 - p) of objectness; the same of classes, and the change of boxes, times objectness."""
    torch.manual_seed(0)
    draws = 3000
    maps = [level.double() for level in raw_maps()]
    found = [level.float() for level in sensitivity_gradients(head, maps, draws)]
    for index, (raw, squared) in enumerate(zip(maps, found, strict=True)):
        p = head.split(raw.float()).sigmoid()
        believed = p[..., 4:5]
        expected = p * (1 - p)
        expected[..., 5:] *= believed
        expected[..., :4] = anchor_head.BOX**2 * box_metric(head, raw.float(), index) * believed
        ratio = squared / expected
        assert (ratio - 1).abs().max() < 6 * (2 / draws) ** 0.5  # a mean of squares of normal numbers
        assert (ratio.mean((0, 1, 2, 3)) - 1).abs().max() < 0.02


def box_metric(head: AnchorDetect, raw: Tensor, level: int) -> Tensor:
    """Squares of d(centre / size) and d(log size) by each logit, by differentiating what `decode` computes."""
    raw = raw.clone().requires_grad_()
    boxes = head.decode(raw, level)[..., :4]
    centre, size = boxes[..., :2], boxes[..., 2:]
    moved = torch.cat((centre / size.detach(), size.log()), -1)
    (gradient,) = torch.autograd.grad(moved.sum(), raw)  # each output depends on its own logit alone
    return head.split(gradient)[..., :4] ** 2


# --- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["v7.0", "v5.0", "P6"])
def test_a_network_with_this_head_is_cut_exactly(architecture: str) -> None:
    model = network(architecture)
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    last = len(model.model) - 1
    assert graph.frozen == {f"model.{last}.m.{i}": "an output of the model" for i in range(model.model[-1].nl)}
    plan = prune.make_plan(graph, prune.score(graph, "random", seed=1), ratio=0.4, round_to=1)
    student: Any = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    assert prune.verify(model, student, plan, IMAGE, adapter=YOLO_ADAPTER) < 1e-10
    assert sum(p.numel() for p in student.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert output(student).shape == output(model).shape and student.hyp == model.hyp
    assert torch.equal(student.model[-1].anchors, model.model[-1].anchors)

    keep = neck_keep(student, plan.keep_inputs)
    features = run(student, IMAGE).neck
    assert [len(channels) for channels in keep] == [feature.shape[1] for feature in features]
    whole = run(model, IMAGE).neck
    assert any(len(channels) < feature.shape[1] for channels, feature in zip(keep, whole, strict=True))


def test_a_cut_student_learns_from_its_teacher_and_from_labels() -> None:
    model = network()
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "random", seed=1), ratio=0.4, round_to=1)
    specs = [LossSpec(name) for name in ("score_bce", "objectness_bce", "box_iou", "feature_pkd")]
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    batch = {"img": IMAGE, "batch_idx": torch.tensor([0.0]), "cls": torch.tensor([[1.0]]), "bboxes": boxes}
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    task = distillation(student, [teacher_of(model, losses.build(specs), keep_at(model, plan, ["neck"]))])
    terms = task(batch)
    assert list(terms) == ["box", "obj", "cls", *(spec.name for spec in specs), "loss"]
    assert all(0 < term < float("inf") for term in terms.values())
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    with torch.no_grad():
        same = distillation(model, [teacher_of(model, losses.build(specs))], labels=0)(batch)
    assert all(abs(term) < 1e-5 for term in same.values())


def test_a_head_is_told_by_its_class() -> None:
    model = network()
    assert family_of(model) is ANCHOR and ANCHOR.gives(model.model[-1]) == {"objectness"}
    graph = prune.trace(model, IMAGE, adapter=YOLO_ADAPTER)
    scores = prune.score(graph, "obs", batches=IMAGE, sensitivity=sensitivity_of(model), seed=0)
    assert prune.make_plan(graph, scores, flops=0.6, round_to=1).flops_after < 0.61 * graph.flops()
