"""Heads with a second branch that works without NMS (YOLOv10, YOLO26): both are cut, taught, trained and measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.ops import xywh2xyxy

import prune
from distill.engine.preflight import preflight
from distill.engine.teachers import open_teachers
from distill.errors import DistillError
from distill.losses import WeightedLoss, resolve
from distill.losses.context import LossContext
from distill.machine.measure import count_gflops
from distill.machine.runtimes.table import RUNTIMES
from distill.recipe import load as recipes
from distill.training.trial import try_out
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.end_to_end import MANY, ONE, SECOND
from distill.yolo.families.fit import fitted
from distill.yolo.families.match import match
from distill.yolo.families.outputs import (
    distillation,
    foreign_teacher,
    label_terms,
    run,
    sensitivity_of,
    teacher_of,
)
from distill.yolo.families.points import neck_keep
from distill.yolo.families.table import family_of, gives_of
from distill.yolo.training.in_memory import InRuntime, difference, missing_packages
from prune.importance.statistics import measure_sensitivity
from prune.program.interpret import Program
from prune.program.raw import raw_copy
from tests.distill.yolo.test_match import IMAGES, TWO, awake, detector, dfl, permuted
from tests.distill.yolo.test_trainer import Interrupted, Interrupting, go, weights, write_images

BATCH = {"img": IMAGES, "batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([[0.0], [2.0]])}
BATCH |= {"bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])}


def both(bins: int = 1, seed: int = 0, width: int = 16, nc: int = 3) -> Any:
    """A network that ends like YOLO26 (1 bin) or like YOLOv10 (16)."""
    torch.manual_seed(seed)
    described = copy.deepcopy(TWO) | {"nc": nc}
    described["backbone"][2][3][0] = width
    described["head"][1][2] = "Detect" if bins == 1 else "v10Detect"
    return awake(DetectionModel(described | ({"reg_max": 1, "end2end": True} if bins == 1 else {}), verbose=False))


@pytest.fixture(params=[1, 16], ids=["26", "v10"])
def model(request: pytest.FixtureRequest) -> Any:
    return both(request.param)


def decoded(model: Any, without_nms: bool) -> Tensor:
    """What ultralytics predicts: by itself (B, 4 + nc, A), or (B, k, 6)."""
    twin = copy.deepcopy(model)
    twin.end2end = without_nms
    with torch.no_grad():
        return twin(IMAGES)[0]


def test_both_branches_are_read_and_decoded(model: Any) -> None:
    with torch.no_grad():
        outputs = run(model, IMAGES)
    many, one = outputs.branches
    whole = decoded(model, without_nms=False).transpose(1, 2)
    torch.testing.assert_close(many.boxes, xywh2xyxy(whole[..., :4]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(many.scores.sigmoid(), whole[..., 4:])
    best = decoded(model, without_nms=True)[:, 0]  # (B, 6)
    score, place = one.scores.sigmoid().flatten(1).max(1)
    torch.testing.assert_close(best[:, 4], score)
    torch.testing.assert_close(best[:, :4], one.boxes[range(2), place // 3], rtol=1e-5, atol=1e-3)
    assert not torch.allclose(many.scores, one.scores) and not many.beside and not one.beside
    part = outputs.part(slice(1, None)).branches
    assert all(torch.equal(a.boxes, b.boxes[1:]) for a, b in zip(part, (many, one), strict=True))
    assert neck_keep(model, {f"model.4.cv2.{level}.0.conv": (level,) for level in range(2)}) == [(0,), (1,)]


def test_labels_train_through_ultralytics_own_loss_of_both_branches(model: Any) -> None:
    outputs = run(model.train(), IMAGES)
    terms = label_terms(model, outputs, BATCH)
    expected, _ = E2ELoss(model)(outputs.raw, BATCH)
    assert sum(terms.values()).item() == pytest.approx(expected.sum().item() / 2, rel=1e-5)
    torch.stack([*terms.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or ".dfl." in name, name


def test_only_what_stands_beside_the_neck_learns_through_the_branch_without_nms(model: Any) -> None:
    """As in ultralytics: there, features reach it detached."""
    one = run(model, IMAGES).branches[1]
    (one.scores.sum() + one.boxes.sum()).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved and all(".one2one_" in name for name in moved)


def test_what_prunes_and_repairs_sees_both_branches_and_what_is_before_them(model: Any) -> None:
    program = Program(raw_copy(model, YOLO_ADAPTER), IMAGES, YOLO_ADAPTER)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and ".dfl" not in name]
    found = measure_sensitivity(program, layers, [IMAGES], sensitivity_of(model)).channels
    assert found.keys() == set(layers)

    def alone(raw: Any) -> Tensor:
        return sensitivity_of(model)(raw | {MANY: {name: value.detach() for name, value in raw[MANY].items()}})

    without = measure_sensitivity(program, layers, [IMAGES], alone).channels
    assert without.keys() == {name for name in layers if ".4.cv" not in name}  # the first layer too


def test_a_cut_is_exact_and_its_budget_that_of_one_branch() -> None:
    for bins in (1, 16):
        model = both(bins, width=32)
        graph = prune.trace(model, IMAGES[:1], adapter=YOLO_ADAPTER)
        scores = prune.score(graph, "obs", batches=[IMAGES], sensitivity=sensitivity_of(model))
        plan = prune.make_plan(graph, scores, flops=0.5, round_to=1)
        student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
        assert prune.verify(model, student, plan, IMAGES, adapter=YOLO_ADAPTER) < 1e-8
        cut = {name for name, kept in plan.keep.items() if len(kept) < len(model.get_submodule(name).weight)}
        assert any(".4.cv" in name for name in cut) and any(".one2one_cv" in name for name in cut)
        halves = []
        for network in (student, model):
            twins = [copy.deepcopy(network), copy.deepcopy(network)]
            twins[1].end2end = True
            halves.append(sum(count_gflops(checkpoint.deployed(twin), 64) for twin in twins))
        assert halves[0] / halves[1] == pytest.approx(0.5, abs=0.02)
        assert plan.flops_after / plan.flops_before == pytest.approx(halves[0] / halves[1], abs=0.01)


def test_folding_keeps_both_branches_for_losses_and_drops_one_to_deploy(model: Any) -> None:
    folded, deployed = checkpoint.fused(model), checkpoint.deployed(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert [name for name, _ in folded.named_children()] == [name for name, _ in model.named_children()]
    with torch.no_grad():
        for ours, theirs in zip(run(model, IMAGES).branches, run(folded, IMAGES).branches, strict=True):
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)
    assert all(getattr(deployed.model[-1], name) is None for name in SECOND)
    assert all(getattr(model.model[-1], name) is not None for name in SECOND)


def test_a_network_without_batchnorm_or_with_one_branch_is_refused_by_name(model: Any, tmp_path: Path) -> None:
    half = copy.deepcopy(model)
    half.end2end = True
    half.model[-1].fuse()
    with pytest.raises(DistillError, match=r"best\.pt ends in the head \w+ with one of its two branches, as fusing"):
        checkpoint.check_network(tmp_path / "best.pt", half)
    with pytest.raises(DistillError, match=r"best\.pt holds a fused network"):
        checkpoint.check_network(tmp_path / "best.pt", half.fuse(verbose=False))


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_both_branches_run_in_a_runtime(model: Any, runtime: Any) -> None:
    if missing := missing_packages(runtime):
        pytest.skip(f"needs {' and '.join(missing)}")
    folded = checkpoint.fused(model).eval()
    with torch.no_grad():
        found, expected = InRuntime(runtime, folded, IMAGES)(folded, IMAGES), run(folded, IMAGES)
    assert difference(found, expected) < 1e-3 and len(found.branches) == 2
    assert torch.allclose(found.branches[1].boxes, expected.branches[1].boxes, atol=0.1)


# --- teachers --------------------------------------------------------------------------------------------------------


def test_a_loss_on_outputs_is_the_mean_over_the_branches_and_one_on_features_is_taken_once(model: Any) -> None:
    student, seen = both(model.model[-1].reg_max, seed=1), []

    def of_scores(ctx: LossContext) -> Tensor:
        return (ctx.student.scores - ctx.teacher.scores).square().mean()

    def of_features(ctx: LossContext) -> Tensor:
        seen.append(ctx.features("neck"))
        return torch.stack([(ours - theirs).square().mean() for ours, theirs in seen[-1]]).mean()

    of_features.reads = ("neck",)  # type: ignore[attr-defined]
    own = [WeightedLoss("scores", 1.0, of_scores), WeightedLoss("features", 1.0, of_features)]
    task = distillation(student, [teacher_of(model, own)], labels=0.0)
    terms = task({"img": IMAGES})
    pairs = zip(run(student, IMAGES).branches, run(model, IMAGES).branches, strict=True)
    means = [(ours.scores - theirs.scores).square().mean().item() for ours, theirs in pairs]
    assert terms["scores"].item() == pytest.approx(sum(means) / 2) and means[0] != means[1]
    assert len(seen) == 1
    terms["loss"].backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if ".4." in name and ".3.weight" in name)


@pytest.mark.parametrize("name", ["score_bce", "box_iou", "dfl_kl", "crosskd", "pseudo_labels", "ultralytics"])
def test_a_loss_that_fits_teaches_and_says_nothing_to_an_equal_student(name: str) -> None:
    model = both(16)
    call: Any = resolve(name)
    call = call(**({"threshold": 0.05} if name == "pseudo_labels" else {})) if isinstance(call, type) else call
    task = distillation(both(16, seed=1), [teacher_of(model, [WeightedLoss(name, 1.0, call)])], labels=0.0)
    try_out(task, BATCH)
    assert task(BATCH)["loss"] > 0
    if name not in ("pseudo_labels", "ultralytics"):
        same = distillation(copy.deepcopy(model), [teacher_of(model, [WeightedLoss(name, 1.0, call)])], labels=0.0)
        with torch.no_grad():
            assert same(BATCH)["loss"].abs() < 1e-5


def test_through_the_teachers_head_the_branch_without_nms_moves_the_features_too() -> None:
    model = both(16)
    features = [feature.detach().requires_grad_() for feature in run(model, IMAGES).neck]
    raw = family_of(model).through(model.model[-1], features)
    gradients = torch.autograd.grad(raw[ONE]["scores"].sum(), features)
    assert all(gradient.any() for gradient in gradients)


def test_classes_in_another_order_are_put_right_in_both_branches() -> None:
    student, teacher = both(seed=0), both(seed=1)
    other = permuted(teacher, [2, 0, 1])
    for branch, old in zip(other.model[-1].one2one_cv3, teacher.model[-1].one2one_cv3, strict=True):
        branch[-1].weight.data, branch[-1].bias.data = old[-1].weight.data[[2, 0, 1]], old[-1].bias.data[[2, 0, 1]]
    found = fitted(detector(other, other.names), detector(student, source="best.pt")).model
    for ours, theirs in zip(run(found, IMAGES).branches, run(teacher, IMAGES).branches, strict=True):
        assert torch.equal(ours.scores, theirs.scores)


def test_a_teacher_of_another_family_teaches_the_branch_that_it_has(tmp_path: Path) -> None:
    """A branch for NMS says nothing of how an object is seen once: it does not teach the other."""
    for student, teacher, count, alone in (
        (both(), dfl(), 1, True),
        (dfl(), both(), 1, False),
        (both(), both(16), 2, False),
    ):
        own, calls = WeightedLoss("score_bce", 1.0, resolve("score_bce")), []

        def look(ctx: LossContext, calls: list[Any] = calls) -> Tensor:
            calls.append(ctx)
            return ctx.student.boxes.square().mean()

        pair = [own, WeightedLoss("look", 1.0, look)]
        task = distillation(student, [foreign_teacher(teacher, pair, student, "big")], labels=0.0)
        assert task({"img": IMAGES})["score_bce"] > 0 and len(calls) == count
        assert match(student, teacher).alone is alone and match(student, teacher).by_cell
    checkpoint.save(both(), tmp_path / "best.pt", names=both().names, imgsz=64)
    checkpoint.save(dfl(), tmp_path / "big.pt", names=dfl().names, imgsz=64)
    wanted = recipes.load("distill", [f"model={tmp_path}/best.pt", f"teacher={tmp_path}/big.pt", "data=shapes"])
    notes = [note for each in open_teachers(wanted, checkpoint.load(tmp_path / "best.pt")) for note in each.notes]
    assert "teacher big: it has no branch that works without NMS, so the student's learns from labels alone" in notes
    images = write_images(tmp_path / "data").parent / "images" / "train"
    for more, warned in (["distill.losses={score_bce: 1}"], True), (["distill.losses={pseudo_labels: 1}"], False):
        given = [f"model={tmp_path}/best.pt", f"teacher={tmp_path}/big.pt", f"data={images}", "imgsz=64", *more]
        warnings = preflight(recipes.load("distill", given)).warnings
        assert any("nothing teaches the student's branch" in warning for warning in warnings) is warned


def test_losses_on_distributions_are_left_out_with_a_word_whether_the_network_is_there_or_trained_first(
    tmp_path: Path,
) -> None:
    assert gives_of(both()) == frozenset() and gives_of(both(16)) == {"dist"}
    checkpoint.save(both(), tmp_path / "best.pt", names=both().names, imgsz=64)
    for given in ([f"model={tmp_path}/best.pt"], ["model=null", "teacher.train={model: yolo26n.yaml, width: 0.1}"]):
        wanted = recipes.load("half", [*given, "data=shapes", "imgsz=64", "prune=null", "export=[]"])
        checked = preflight(wanted)
        assert any(note.startswith("loss dfl_kl left out: this head predicts no distri") for note in checked.notes)
        assert [loss.name for loss in checked.losses] == ["score_bce", "box_iou", "feature_pkd"]


# --- training and measuring ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_loop_moves_the_weights_of_both_branches_and_a_resumed_one_goes_on_there(
    shapes: datasets.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    forward = E2ELoss.__call__

    def watched(self: Any, *args: Any) -> Any:
        shares.append(round(self.o2m, 3))
        return forward(self, *args)

    monkeypatch.setattr(E2ELoss, "__call__", watched)
    whole = go(both(nc=2), shapes, tmp_path / "whole")
    expected = [0.8] * 3 + [0.45] * 3 + [0.1] * 3  # steps of three epochs
    assert shares == expected
    shares.clear()
    with pytest.raises(Interrupted):
        go(both(nc=2), shapes, tmp_path / "run", console=Interrupting())
    resumed = go(both(nc=2), shapes, tmp_path / "run", resume=True)
    assert shares == expected
    assert resumed.history == whole.history and torch.equal(weights(resumed), weights(whole))
    assert set(whole.history[0]) >= {"box_loss", "cls_loss", "l1_loss"}
