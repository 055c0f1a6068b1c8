"""What is checked before anything is done: a user's losses are called, a network to train first is built."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prune
from distill.cli.main import main
from distill.demo.dataset import generate
from distill.engine.planning import calibration_images, make_plan
from distill.engine.preflight import check_network, preflight, size_warnings
from distill.engine.stages.cut import CUT
from distill.engine.teachers import open_teachers
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data import dataset as datasets
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.kind import YOLO
from tests.distill.test_compare import Told
from tests.distill.yolo.test_trainer import tiny, write_images

LOSSES = """
import torch
from torch import nn
from distill.losses import LossModule

def misspelt(ctx):
    return ctx.student.scroes.mean()

def no_context():
    return torch.ones(())

def number(ctx):
    return 1.0

def none_on_this_image(ctx):
    return torch.zeros(())

def of_labels(ctx):
    return ctx.student.scores.mean() * len(ctx.targets["cls"])

class Learned(LossModule):
    def setup(self, networks):
        self.layers = nn.ModuleList(nn.Conv2d(each, each, 1) for each in networks.channels)

    def forward(self, ctx):
        return sum(layer(s).mean() for layer, (s, _) in zip(self.layers, ctx.features("neck")))
"""


@pytest.fixture
def teacher() -> Detector:
    return Detector(tiny(), {0: "square", 1: "disc"}, 320, Path("best.pt"), None)


def recipe(*words: str) -> Recipe:
    return recipes.load("half", ["model=best.pt", "data=shapes", *words])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("misspelt", "loss 'misspelt' failed at mine.py:7: AttributeError: 'Outputs' object has no attribute 'scroes'"),
        (
            "no_context",
            "loss 'no_context' failed: TypeError: no_context() takes 0 positional arguments but 1 was given",
        ),
        ("number", "loss 'number' must return a scalar tensor, not float"),
        ("none_on_this_image", None),  # it may teach on others
        ("of_labels", None),
        ("Learned", None),
    ],
)
def test_a_users_loss_is_called_before_anything_is_done(
    teacher: Detector, tmp_path: Path, name: str, says: str | None
) -> None:
    (tmp_path / "mine.py").write_text(LOSSES)
    losses = f"distill.losses={{{tmp_path}/mine.py:{name}: {{until: 0.5}}, box_iou: 1}}"
    wanted = recipe(losses, "imgsz=64", "prune.round_to=1")
    before = copy.deepcopy(teacher.model.state_dict())
    teachers = open_teachers(wanted, teacher)
    if says is None:
        check_network(wanted, teacher).run(wanted, teachers, None)
        made = teachers[0].losses
        assert [loss.name for loss in made] == [name, "box_iou"] and not hasattr(made[0].call, "layers")
    else:
        with pytest.raises(DistillError) as caught:
            check_network(wanted, teacher).run(wanted, teachers, None)
        assert str(caught.value) == says
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("yolov5n", "teacher.train.model: no model 'yolov5n': use yolov5n.yaml, "),
        ("yolo5n.yaml", "teacher.train.model: no model 'yolo5n.yaml': use "),
        ("yolov8-rtdetr.yaml", "yolov8-rtdetr.yaml ends in the head RTDETRDecoder"),
        ("yolo26n-sem.yaml", "yolo26n-sem.yaml ends in the head SemanticSegment"),
        ("yolov8-world.yaml", "teacher.train.model: no detector comes of 'yolov8-world.yaml' ("),
        ("{tmp}/data.yaml", "teacher.train.model: no detector comes of '{tmp}/data.yaml' ("),
    ],
)
def test_a_network_that_could_not_be_pruned_is_not_trained_first(tmp_path: Path, model: str, says: str) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [square]\n")
    train = f"teacher.train={{model: {model.format(tmp=tmp_path)}}}"
    with pytest.raises(DistillError) as caught:
        check_network(recipes.load("half", ["model=null", "data=shapes", train]), None)
    assert str(caught.value).startswith(says.format(tmp=tmp_path)) and "\n" not in str(caught.value)


def test_a_pattern_that_protects_nothing_is_refused_before_anything_is_done(teacher: Detector) -> None:
    wanted = recipes.load("half", ["model=best.pt", "data=shapes", "imgsz=64", "prune.protect=[modle.0.*]"])
    with pytest.raises(
        prune.PruneError, match=r"^protect='modle\.0\.\*' matches no layer of \w+: did you mean 'model\.0'\?$"
    ):
        check_network(wanted, teacher)


def test_a_network_with_a_stride_of_64_can_be_cut(tmp_path: Path) -> None:
    data = datasets.load(generate(tmp_path / "data", train=4, val=2, imgsz=64))
    raw = tmp_path / "p6.pt"
    checkpoint.save(build("yolov5n6.yaml", data.names, width=0.125), raw, names=data.names, imgsz=128)
    given = [f"model={raw}", f"data={data.path}", "prune.importance=l1", "prune.round_to=1"]
    wanted, teacher = recipes.load("half", [*given, "imgsz=128"]), checkpoint.load(raw)
    plan = make_plan(wanted, teacher, data, torch.device("cpu"), Told())
    images = calibration_images(wanted, teacher, data, 2)
    assert images.shape == (2, 3, 192, 192)  # half a stride on each side, as validators pad
    assert (
        prune.verify(
            teacher.model, prune.apply(teacher.model, plan, adapter=YOLO_ADAPTER), plan, images, adapter=YOLO_ADAPTER
        )
        < 1e-9
    )
    with pytest.raises(DistillError, match=r"^imgsz is 96, and this network takes multiples of 64: give 64 or 128$"):
        check_network(recipes.load("half", [*given, "imgsz=96"]), teacher)


def test_a_proof_that_says_nothing_is_a_warning_of_the_run(tmp_path: Path, teacher: Detector) -> None:
    """Behind a head of zeros any cut is exact."""
    data = datasets.load(generate(tmp_path / "data", train=2, val=1, imgsz=64))
    for module in teacher.model.model[-1].modules():
        if isinstance(module, torch.nn.Conv2d):
            module.requires_grad_(False).weight.zero_()
    given = [f"data={data.path}", "model=best.pt", "prune.importance=l1", "prune.round_to=1", "imgsz=64"]
    wanted, saved = recipes.load("half", given), []
    session: Any = SimpleNamespace(
        recipe=wanted,
        data=data,
        device=torch.device("cpu"),
        console=Told(),
        base=None,
        load=lambda network: teacher,
        kind=YOLO,
    )
    session.images = lambda network, count: calibration_images(wanted, network, data, count)
    session.folder, session.save = SimpleNamespace(write_text=lambda *_: None), lambda *given: saved.append(given)
    assert CUT.work(session).verify < 1e-9 and len(saved) == 1
    (warning,) = session.console.warnings
    assert warning.startswith("verify proves nothing here: the outputs of ")


def test_another_size_than_that_of_training_is_a_warning(teacher: Detector) -> None:
    assert size_warnings(recipe("imgsz=320"), teacher) == ()
    assert size_warnings(recipe("imgsz=320"), replace(teacher, imgsz=None)) == ()
    (warning,) = size_warnings(recipe("imgsz=640"), teacher)
    assert warning == "best.pt was trained at 320 pixels, and imgsz is 640: give imgsz=320 unless that is meant"


def test_one_preflight_returns_what_it_opened_and_what_to_warn_of(tmp_path: Path) -> None:
    data = datasets.load(write_images(tmp_path / "data"))
    raw = tmp_path / "best.pt"
    checkpoint.save(tiny(), raw, names={0: "square", 1: "disc"}, imgsz=320)
    given = [f"model={raw}", f"data={data.path}", "imgsz=64", "prune.importance=l1", "prune.round_to=1", "export=[]"]
    checked = preflight(recipes.load("half", given))
    assert checked.teacher is not None and checked.data is not None and checked.data.train == data.train
    assert [loss.name for loss in checked.losses] == ["score_bce", "box_iou", "dfl_kl", "feature_pkd"]
    assert checked.notes == ("loss objectness_bce left out: this head has no objectness",)
    assert "was trained at 320 pixels" in checked.warnings[0]
    told = Told()
    checked.show(told)
    assert tuple(told.warnings) == checked.warnings and list(checked.notes) == told.lines
    told = Told()
    checked.introduce(told, Path("runs/half-1"))
    facts = told.known
    assert list(facts) == ["model", "family", "classes", "images", "size", "losses", "device", "folder"]
    assert facts["model"].startswith(f"{raw}, 0.") and facts["family"].endswith("v9, YOLO11 and YOLO12")
    assert (
        facts["classes"] == "2: square, disc"
        and facts["images"] == f"{len(data.train)} train, {len(data.val)} val: {data.path}"
    )
    assert (facts["size"], facts["folder"]) == ("imgsz 64, as given", "runs/half-1")
    deeper = replace(checked.recipe.distill, features=("neck", "model.2"))
    assert dict(replace(checked, recipe=replace(checked.recipe, distill=deeper)).facts)["features"] == "neck, model.2"


def test_plan_and_check_refuse_a_size_in_the_same_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = datasets.load(generate(tmp_path / "data", train=4, val=2, imgsz=64))
    raw = tmp_path / "p6.pt"
    checkpoint.save(build("yolov5n6.yaml", data.names, width=0.125), raw, names=data.names, imgsz=128)
    words = ["half", f"model={raw}", f"data={data.path}", "imgsz=352", "export=[]"]
    lines = []
    for command in ("plan", "check", "run", "compare"):
        out = ["--out", str(tmp_path / "out")] if command in ("run", "compare") else []
        assert main([command, *words, *out]) == 2
        lines.append(capsys.readouterr().err.strip())
    assert set(lines) == {"imgsz is 352, and this network takes multiples of 64: give 320 or 384"}
    assert not (tmp_path / "out").exists()


IMPORTANCES = """
import prune

def spread(graph, context):
    modules = dict(graph.model.named_modules())
    weights = {layer: modules[layer.name].weight.detach() for layer in graph.layers}
    return prune.per_group(graph, ((layer.outputs, w.flatten(1).std(1)) for layer, w in weights.items()))

def misspelt(graph, context):
    return graph.groops
"""


def test_an_importance_of_the_users_own_decides_what_is_cut(teacher: Detector, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORTANCES)
    data = datasets.load(generate(tmp_path / "made", train=4, val=2, imgsz=64))
    words = ("imgsz=64", "prune.images=2", "prune.rounds=1")
    own = recipe(f"prune.importance={tmp_path}/mine.py:spread", *words)
    check_network(own, teacher)
    plan = make_plan(own, teacher, data, torch.device("cpu"), Told())
    assert plan.flops_after < 0.51 * plan.flops_before
    assert plan != make_plan(recipe("prune.importance=l1", *words), teacher, data, torch.device("cpu"), Told())
    wrong = recipe(f"prune.importance={tmp_path}/mine.py:misspelt", *words)
    with pytest.raises(
        DistillError, match=r"^importance '.*mine.py:misspelt' failed at mine.py:10: AttributeError: .*'groops'"
    ):
        make_plan(wrong, teacher, data, torch.device("cpu"), Told())


def test_an_importance_that_cannot_be_loaded_is_refused_before_anything_is_done(
    teacher: Detector, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(IMPORTANCES)
    with pytest.raises(DistillError, match=r"importance '.*mine.py:spraed': nothing named 'spraed' in .*'spread'"):
        check_network(recipe("imgsz=64", f"prune.importance={tmp_path}/mine.py:spraed"), teacher)
