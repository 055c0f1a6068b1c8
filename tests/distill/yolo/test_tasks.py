"""Segmentation, poses and oriented boxes: heads, labels, figures as ultralytics' own, and a whole run of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten
from ultralytics import YOLO

from distill import losses
from distill.cli.main import main
from distill.errors import DistillError
from distill.losses.spec import LossSpec
from distill.results.results import Results
from distill.training.schedule import Schedule
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.data import dataset as datasets
from distill.yolo.data import unlabelled
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.evaluation import agreement
from distill.yolo.evaluation.evaluate import EvalSettings, detect, evaluate
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import distillation, label_terms, raw_outputs, run, sensitivity_of, teacher_of
from distill.yolo.families.segment import _curvature as curvature
from distill.yolo.families.table import gives_of
from distill.yolo.tasks.table import TASKS
from distill.yolo.tasks.task import Task
from distill.yolo.training.batches import mixed_loader
from distill.yolo.upstream import get_cfg
from tests.distill.yolo.turned import SIDE, YAMLS, write_bars, write_label

OTHERS = ("segment", "pose", "obb")
OUTPUTS = {"segment": "mask_coefficient", "pose": "kpts", "obb": "angle"}  # of a head beside boxes and scores
OF_26 = {"segment": "yolo26n-seg", "pose": "yolo26n-pose", "obb": "yolo26n-obb"}
BY_ANCHOR = {"segment": "mask_coefficients", "pose": "keypoints", "obb": "angles"}
LOSSES = {"segment": "mask_bce", "pose": "keypoint_oks", "obb": "angle_sin"}
OF_TASK = {task.name: task for task in TASKS}
STEPS = 20


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SHORT = """# a backbone and a head of one stride each, which are cut in a third of the time of a YOLO11n
nc: 1
kpt_shape: [4, 3]
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, C3k2, [24, False]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[3, 4, 5], 1, %s]
"""
HEADS = {"segment": "Segment, [nc, 8, 16]", "pose": "Pose, [nc, kpt_shape]", "obb": "OBB, [nc, 1]"}


def network(task: str, name: str = "") -> Any:
    """A narrow network with random weights, of one class and 4 keypoints."""
    return build(f"{name or YAMLS[task]}.yaml", {0: "bar"}, width=0.125, kpt_shape=(4, 3))


def opened(path: Path, task: str) -> DataSet:
    return datasets.load(path, {0: "bar"}, task=OF_TASK[task], keys={"kpt_shape": [4, 3]} if task == "pose" else {})


@pytest.fixture(scope="module", params=OTHERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task, and a folder with data and a network that has learned them by heart: best.pt."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = opened(write_bars(folder, task), task)
    (folder / f"short-{task}.yaml").write_text(SHORT % HEADS[task])
    model: Any = build(str(folder / f"short-{task}.yaml"), data.names, kpt_shape=(4, 3))
    images = build_dataset(data, "train", imgsz=SIDE, batch=8, rect=False)
    batch = images.collate_fn([images[index] for index in range(len(images))])
    batch["img"] = batch["img"].float() / 255
    model.args = get_cfg()
    weights = [weight for name, weight in model.named_parameters() if ".dfl." not in name]
    optimizer = torch.optim.Adam(weights, lr=5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        terms = label_terms(model.train(), run(model, batch["img"]), batch)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        run(model, batch["img"])  # the statistics of these weights
    checkpoint.save(model, folder / "best.pt", names={0: "bar"}, imgsz=SIDE)
    return task, folder


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in OTHERS for name in (YAMLS[task], OF_26[task])])
def test_a_head_is_read_as_ultralytics_decodes_it(task: str, name: str) -> None:
    """Of a head with two branches that is the one that NMS follows; the other has what its task needs too."""
    model = network(task, name).eval()
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, given = run(model, images), model(images)
    rows = given[0][0] if isinstance(given[0], tuple) else given[0]
    low, high = found.boxes.split(2, -1)
    assert torch.allclose(torch.cat(((low + high) / 2, high - low), -1).transpose(1, 2), rows[:, :4], atol=1e-3)
    assert len(found.branches) == 1 + (name == OF_26[task])
    assert all(getattr(branch, BY_ANCHOR[task]) is not None for branch in found.branches)
    if found.keypoints is not None:
        points = torch.cat((found.keypoints[..., :2], found.keypoints[..., 2:].sigmoid()), -1)
        assert torch.allclose(points.flatten(2).transpose(1, 2), rows[:, 5:], atol=1e-3)
    if found.angles is not None:
        assert torch.equal(found.angles, rows[:, 5])
    if found.mask_coefficients is not None:
        anchor = torch.tensor([[3, 50], [0, 7]])
        masks = found.mask_logits(anchor)
        for image, row in ((0, 1), (1, 0)):
            expected = torch.einsum("m,mhw->hw", rows[image, 5:, anchor[image, row]], given[0][1][image])
            assert torch.allclose(masks[image, row], expected, atol=1e-4)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in OTHERS for name in (YAMLS[task], OF_26[task])])
def test_the_sensitivity_counts_what_the_task_has_beside_boxes(task: str, name: str) -> None:
    """Every output has a gradient, but for those that only training on labels uses."""
    model = network(task, name).eval()
    raw, _ = raw_outputs(model, torch.rand(1, 3, 64, 64))
    seen = YOLO_ADAPTER.outputs(raw)  # as `prune` gives them
    leaves = [leaf.detach().requires_grad_() for leaf in tree_leaves(seen)]
    torch.manual_seed(0)
    scalar = sensitivity_of(model)(tree_unflatten(leaves, tree_structure(seen)))
    gradients = torch.autograd.grad(scalar, leaves, allow_unused=True)
    found = tree_unflatten(gradients, tree_structure(seen))
    branches = [found] if "scores" in found else list(found.values())
    for branch in branches:
        used = [gradient for key, gradient in branch.items() if key != "kpts_sigma"]
        assert OUTPUTS[task] in branch and all(
            each is not None and each.any() and each.isfinite().all() for each in used
        )


def test_figures_are_those_of_ultralytics(trained: tuple[str, Path], tmp_path: Path) -> None:
    task, folder = trained
    model = checkpoint.load(folder / "best.pt")
    assert model.model.task == task and type(model.model) is OF_TASK[task].network
    ours = evaluate(model.model, opened(folder / "data.yaml", task), EvalSettings(SIDE, 4))
    options: dict[str, Any] = {"imgsz": SIDE, "batch": 4, "plots": False, "verbose": False, "workers": 0}
    theirs = YOLO(folder / "best.pt").val(
        data=str(folder / "data.yaml"), device="cpu", project=str(tmp_path), **options
    )
    assert ours.map50_95 > 0.2 and ours.map50_95 == pytest.approx(theirs.box.map, abs=1e-6)
    if task == "obb":
        assert ours.beside is None and ours.score == ours.map50_95
        return
    name, other = ("mask", theirs.seg) if task == "segment" else ("pose", theirs.pose)
    assert ours.beside is not None and ours.beside.name == name
    assert ours.beside.map50_95 == pytest.approx(other.map, abs=1e-6) and ours.beside.map50_95 > 0.2
    assert ours.beside.per_class["bar"] == pytest.approx(other.maps[0], abs=1e-6)
    assert ours.score == pytest.approx((theirs.box.map + other.map) / 2)


def test_the_teacher_agrees_with_itself_and_a_worse_network_less(trained: tuple[str, Path]) -> None:
    task, folder = trained
    teacher, settings = checkpoint.load(folder / "best.pt").model, EvalSettings(SIDE, 3)
    keys = OF_TASK[task].keys(teacher.model[-1])
    data = datasets.load(folder / "images" / "val", {0: "bar"}, task=OF_TASK[task], keys=keys)
    reference = agreement.predict_reference(teacher, data, settings)
    own = agreement.measure(teacher, reference)
    assert own.agreement50_95 == pytest.approx(1) and sum(reference.boxes.values()) >= 4
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=random))
    other = agreement.measure(teacher, reference)
    assert other.agreement50_95 is not None and other.agreement50_95 < 1
    if task != "obb":
        assert own.beside is not None and other.beside is not None
        assert own.beside.map50_95 == pytest.approx(1) and other.beside.map50_95 < 1


def test_boxes_alone_are_measured_on_data_of_boxes(trained: tuple[str, Path], tmp_path: Path) -> None:
    """A segmentation model has an mAP of boxes on data without masks, if they are opened as such."""
    task, folder = trained
    if task != "segment":
        return
    model = checkpoint.load(folder / "best.pt").model
    found = evaluate(model, opened(write_bars(tmp_path / "data", "detect"), "detect"), EvalSettings(SIDE))
    assert found.beside is None and found.map50_95 > 0.2
    assert all(
        boxes.shape[1] == 6 for boxes in detect(model, opened(folder / "data.yaml", task), EvalSettings(SIDE)).values()
    )


def wrong(task: str, given: str) -> tuple[str, str]:
    """What is said of data of one task that are given to a model of another."""
    needs = {"segment": "a mask, as a polygon", "obb": "an oriented box, as its corners", "pose": "has no 'kpt_shape'"}
    return needs[task], given


@pytest.mark.parametrize(
    ("task", "given"),
    [(task, given) for task in OTHERS for given in OF_TASK if given != task and (task, given) != ("segment", "obb")],
)
def test_data_of_another_task_are_refused_in_a_line(task: str, given: str, tmp_path: Path) -> None:
    path = write_bars(tmp_path / "data", given, train=2, val=1)
    with pytest.raises(DistillError) as caught:
        opened(path, task)
    text = str(caught.value)
    assert wrong(task, given)[0] in text and "\n" not in text and str(tmp_path) in text
    if task != "pose" and given != "segment":
        assert re.search(r"labels/train/\d\.txt:1: \d+ numbers", text)


def test_what_is_wrong_with_keypoints_is_said_in_a_line(tmp_path: Path) -> None:
    path = write_bars(tmp_path / "data", "pose", train=2, val=1)
    good = path.read_text()

    def says(new: str, text: str, old: str = "kpt_shape: [4, 3]") -> None:
        path.write_text(good.replace(old, new))
        with pytest.raises(DistillError) as caught:
            opened(path, "pose")
        assert text in str(caught.value) and "\n" not in str(caught.value)

    says("kpt_shape: [5, 3]", "'kpt_shape: [5, 3]', and the model has [4, 3]")
    says("kpt_shape: [4, 4]", "must be points of an object and 2 or 3 numbers of each")
    says("kpt_shape: 4", "must be points of an object")
    says("flip_idx: [1, 0, 3]", "must have each of the 4 points once", "flip_idx: [1, 0, 3, 2]")
    says("kpt_oks_sigmas: [1, 1, 0, 1]", "must be 4 numbers above 0", "flip_idx: [1, 0, 3, 2]")
    path.write_text(good)
    write_label(path.parent / "labels/train/1.txt", [0.5, 0.5, 0.2, 0.2])
    with pytest.raises(DistillError, match=r"labels/train/1\.txt:1: 5 numbers.*a box and its keypoints"):
        opened(path, "pose")


def test_keypoints_of_two_numbers_are_seen_unless_one_is_below_zero(tmp_path: Path) -> None:
    path = write_bars(tmp_path / "data", "pose", train=1, val=1)
    path.write_text(path.read_text().replace("[4, 3]", "[2, 2]").replace("[1, 0, 3, 2]", "[1, 0]"))
    for split in ("train", "val"):
        write_label(path.parent / "labels" / split / "0.txt", [0.5, 0.5, 0.2, 0.2, 0.4, 0.4, -0.005, 0.2])
    (record,) = datasets.load(path, task=OF_TASK["pose"]).records["train"]
    assert np.allclose(record["keypoints"], [[[0.4, 0.4, 1], [-0.005, 0.2, 0]]])


def test_images_without_labels_join_those_with_keypoints(tmp_path: Path) -> None:
    path = write_bars(tmp_path / "data", "pose", train=3, val=1)
    (path.parent / "labels/train/1.txt").unlink()
    images = build_dataset(opened(path, "pose"), "train", imgsz=SIDE, batch=3, rect=False)
    batch = images.collate_fn([images[index] for index in range(3)])
    assert batch["keypoints"].shape == (2, 4, 3) and len(batch["cls"]) == 2


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in OTHERS for name in (YAMLS[task], OF_26[task])])
def test_images_without_labels_share_a_batch(task: str, name: str, tmp_path: Path) -> None:
    """Labels teach on the first images alone, and the teacher on all: each loss by both of its halves, mosaic included."""
    data = opened(write_bars(tmp_path / "data", task, train=4, val=1), task)
    write_bars(tmp_path / "more", "detect", train=6, val=1, seed=1)
    both = unlabelled.beside(data, unlabelled.find([str(tmp_path / "more/images/train")]))
    schedule = Schedule(epochs=1, batch=4, steps=2, labelled=2, mosaic=1.0)
    hyp = get_cfg(overrides=schedule.augmentation)
    loader = mixed_loader(both, schedule, imgsz=SIDE, hyp=hyp, device=torch.device("cpu"))
    batch = next(iter(loader))
    batch["img"] = batch["img"].float() / 255
    student, teacher = network(task, name).train(), network(task, name)
    student.args = get_cfg(overrides={"epochs": 1})
    specs, _ = losses.joined([LossSpec("score_bce"), LossSpec("box_iou")], gives_of(student))
    task_of_both = distillation(student, [teacher_of(teacher, losses.build(specs))])
    terms = task_of_both(batch)
    own = {"segment": "seg_loss", "pose": "pose_loss", "obb": "angle_loss"}[task]
    assert {LOSSES[task], own} <= terms.keys() and all(term.isfinite() for term in terms.values())
    terms["loss"].backward()
    (head,) = (module for name, module in student.model[-1].named_children() if name == "cv4")
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in head.parameters())


def recipe_for(folder: Path, task: str, **keys: str) -> Path:
    lines = {
        "model": f"{folder}/best.pt",
        "data": f"{folder}/data.yaml",
        "imgsz": str(SIDE),
        "batch": "4",
        "device": "cpu",
        "prune": "{flops: 0.5, images: 8, round_to: 1}",
        "repair": "{images: 8, steps: 0}",
        "distill": "{epochs: 1, lr: 1e-4}",
        "latency": "{runs: 1}",
        "pictures": "0",
    }
    file = folder / f"{task}.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in (lines | keys).items()))
    return file


def test_a_whole_run(trained: tuple[str, Path]) -> None:
    """Cut to half, repaired, trained, exported; the figures of the task in results and report; one of them is resumed too."""
    task, folder = trained
    out = folder / "out"
    recipe = recipe_for(folder, task, export="[onnx]" if task == "segment" else "[torchscript]")  # which is faster
    assert main(["run", str(recipe), "--out", str(out), "--quiet"]) == 0
    results = Results.read(out)
    assert results.student.gflops / results.teacher.gflops < 0.52 and results.plan.verify < 1e-6
    (row,) = results.history
    own = {"segment": "seg_loss", "pose": "pose_loss", "obb": "angle_loss"}[task]
    assert row[LOSSES[task]] > 0 and row[own] > 0 and row["box_loss"] > 0
    assert results.exports[0].max_abs_diff is not None and results.exports[0].max_abs_diff < 1e-3
    text = (out / "report.md").read_text()
    if task == "obb":
        assert all(model.beside is None for model in results.models.values())
    else:
        name = {"segment": "mask", "pose": "pose"}[task]
        beside = {key: model.beside for key, model in results.models.items()}
        assert all(each is not None and each.name == name for each in beside.values())
        assert beside["teacher"] is not None and f"{beside['teacher'].map50_95:.3f}" in text
        assert f"{name} mAP50-95" in text and f"{name} mAP50-95" in str(results)
        assert row["beside_map50_95"] is not None
    student = YOLO(out / "student.pt")
    (found,) = student.predict(str(folder / "images/val/0.png"), imgsz=SIDE, device="cpu", verbose=False)
    assert student.task == task and len(found) > 0
    assert {"segment": found.masks, "pose": found.keypoints, "obb": found.obb}[task] is not None
    if task != "segment":
        return
    before = (out / "student.pt").read_bytes()
    stages = json.loads((out / "stages.json").read_text())
    for name in ("train", "evaluate trained", "average", "evaluate averaged", "select", "export", "measure"):
        stages["stages"].pop(name, None)
    (out / "stages.json").write_text(json.dumps(stages))
    (out / "results.json").unlink()
    assert main(["run", "--resume", str(out), "--quiet"]) == 0
    assert (out / "results.json").is_file() and len((out / "student.pt").read_bytes()) == len(before)


def test_a_teacher_is_trained_first(tmp_path: Path) -> None:
    """From data alone, with as many keypoints as they have."""
    write_bars(tmp_path, "pose", train=4, val=2)
    train = "{train: {model: yolo11n-pose.yaml, width: 0.125, epochs: 1, mosaic: 0}}"
    keys = {"model": "null", "teacher": train, "prune": "null", "repair": "null", "export": "[]"}
    recipe = recipe_for(tmp_path, "pose", **keys, distill="{epochs: 1, lr: 1e-4, losses: {}}")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    found = checkpoint.load(tmp_path / "out" / "student.pt").model
    assert list(found.model[-1].kpt_shape) == [4, 3] and found.task == "pose"


@pytest.mark.parametrize(("task", "loss"), [("segment", "pseudo_labels"), ("obb", "pseudo_labels")])
def test_a_loss_that_a_task_cannot_have_is_refused(task: str, loss: str, tmp_path: Path, capsys: Any) -> None:
    write_bars(tmp_path, task, train=2, val=1)
    checkpoint.save(network(task), tmp_path / "best.pt", names={0: "bar"}, imgsz=SIDE)
    recipe = recipe_for(tmp_path, task, distill=f"{{epochs: 1, losses: {{{loss}: 1}}}}")
    assert main(["check", str(recipe)]) == 2
    assert f"loss '{loss}': its labels are boxes" in capsys.readouterr().err


def test_a_task_says_what_it_is() -> None:
    assert isinstance(OF_TASK["segment"], Task) and [task.name for task in TASKS] == [
        "detect",
        "segment",
        "pose",
        "obb",
    ]


def test_a_sure_pixel_is_not_taken_for_a_safe_one() -> None:
    """By hand: KL of p = σ(4) from 1/2 is 0.6031, so the parabola through it has a curvature of 2 · 0.6031 / 16."""
    logits = torch.tensor([0.0, 0.05, 0.2, 4.0, -4.0, 30.0])
    found = curvature(logits)
    assert torch.allclose(found[:2], torch.tensor(0.25)) and found[2].item() == pytest.approx(0.2488, abs=2e-4)
    p = torch.tensor(4.0).sigmoid()
    divergence = (p * (2 * p).log() + (1 - p) * (2 * (1 - p)).log()).item()
    assert found[3:5].tolist() == pytest.approx([divergence / 8] * 2, rel=1e-4)
    assert found[3] > 3 * p * (1 - p) and 0 < found[5] < found[3]
