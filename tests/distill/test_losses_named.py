"""Losses found by name, shipped or a user's, and what is said of a name or an option that is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill import losses
from distill.errors import DistillError
from distill.losses.box import box_iou
from distill.losses.spec import ALWAYS, RESERVED, LossSpec, Ramp
from tests.distill.contexts import context, leaves, outputs

OF_TASKS = ("mask_bce", "keypoint_oks", "angle_sin")


def test_every_shipped_loss_resolves_and_describes_itself():
    rows = losses.describe()
    assert [row.name for row in rows] == list(losses.BUILTIN)
    assert all(row.help.endswith(".") for row in rows)
    assert {row.name: dict(row.options) for row in rows}["dfl_kl"] == {
        "focus": 2.0,
        "temperature": 1.0,
        "anchors": "all",
    }


def test_a_recipe_keeps_the_losses_that_a_head_can_have():
    specs = [LossSpec(name) for name in (*losses.BUILTIN, "my.module:dfl_kl")]
    fit, lines = losses.fitting(specs, {"dist"})
    assert [spec for spec in specs if spec not in fit] == [
        LossSpec(name) for name in ("objectness_bce", *OF_TASKS, "kl", "dkd", "nkd", "dist")
    ]
    assert [lines[0], lines[1], lines[4]] == [
        "loss objectness_bce left out: this head has no objectness",
        "loss mask_bce left out: this head predicts no masks",
        "loss kl left out: this head has class scores that are independent sigmoids",
    ]
    fit, lines = losses.fitting(iter(specs), {"objectness"})
    left_out = ("dfl_kl", *OF_TASKS, "kl", "dkd", "nkd", "dist")
    assert [spec for spec in specs if spec not in fit] == [LossSpec(name) for name in left_out]
    assert lines[0] == "loss dfl_kl left out: this head predicts no distributions over box sides"
    assert losses.fitting(specs, set(losses.NEEDS)) == (specs, [])
    assert losses.fitting([], set()) == ([], [])
    declared = [losses.resolve(name) for name in losses.BUILTIN if name != "ultralytics"]
    assert {loss.needs for loss in declared if isinstance(loss, losses.FromContext)} == {None, *losses.NEEDS}


@pytest.mark.parametrize(("need", "name"), zip(("masks", "keypoints", "angles"), OF_TASKS, strict=True))
def test_a_loss_of_the_task_joins_those_on_outputs_unless_it_is_there_or_not_wanted(need: str, name: str) -> None:
    boxes = [LossSpec("feature_pkd"), LossSpec("box_iou", 2.0)]
    specs, lines = losses.joined(boxes, {"dist", need})
    assert specs == [*boxes, LossSpec(name)] and len(lines) == 1
    assert lines[0].startswith(f"loss {name} joins, for this head predicts {need}: {name}: 0 leaves it out")
    given = [*boxes, LossSpec(name, 3.0)]
    assert losses.joined(given, {need}) == (given, [])
    assert losses.joined(boxes, {need}, {name}) == (boxes, [])
    assert losses.joined(boxes, {"dist"}) == (boxes, [])
    for alone in ([], [LossSpec("feature_pkd")], [LossSpec("my.module:my_kd")]):
        assert losses.joined(alone, {need}) == (alone, [])


def test_listing_names_loads_no_torch():
    code = "import sys, distill.losses; assert 'torch' not in sys.modules and distill.losses.BUILTIN"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = '''
import torch

def my_kd(ctx, temperature=1.0):
    """Squares."""
    return temperature * sum((s - t).square().mean() for s, t in ctx.features("neck"))

class Learned(torch.nn.Module):
    """Learns."""
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, ctx):
        return self.layer(ctx.student.scores).square().mean()

class Bare(torch.nn.Module):
    def __init__(self, **others):
        super().__init__()

number = 3
'''
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(0)\n")
    return tmp_path / "mine.py"


def test_a_users_function_and_module_are_built_with_their_options(file: Path):
    function = LossSpec(f"{file}:my_kd", 0.5, {"temperature": 2.0}, Ramp(until=0.5))
    module = LossSpec(f"{file}:Learned", 1.0, {"width": 3})
    first, second = losses.build([function, module])
    ctx = context(outputs(leaves(0)), outputs(leaves(1)))
    pairs = ctx.features()
    expected = 2 * sum((s - t).square().mean() for s, t in pairs)
    assert (first.name, first.weight, first.call(ctx).item()) == ("my_kd", 0.5, pytest.approx(expected.item()))
    assert (first.ramp, second.ramp) == (Ramp(until=0.5), ALWAYS)
    assert second.name == "Learned" and isinstance(second.call, torch.nn.Module) and second.call(ctx).requires_grad


def test_user_losses_are_found_beside_the_recipe_and_in_packages(file: Path):
    row, module, bare = losses.describe([f"mine.py:{name}" for name in ("my_kd", "Learned", "Bare")])
    assert (row.help, dict(row.options), row.required) == ("Squares.", {"temperature": 1.0}, ())
    assert (module.help, dict(module.options), module.required) == ("Learns.", {}, ("width",))
    assert (bare.help, dict(bare.options), bare.required) == ("", {}, ()), "no docstring of torch's, and no **others"
    assert losses.resolve("distill.losses.box:box_iou") is box_iou


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score_bec", "no loss 'score_bec', did you mean 'score_bce'"),
        ("mime.py:my_kd", "no file .*mime.py, did you mean 'mine.py'"),
        ("mine.py:my_dk", "nothing named 'my_dk' in mine.py, did you mean 'my_kd'"),
        ("mine.py:number", "'number' in mine.py is int, not a function or class"),
        ("broken.py:x", "running .*broken.py failed: ModuleNotFoundError: No module named"),
        ("script.py:x", "running .*script.py failed: SystemExit: 0"),
        ("distill.yolo.stock:Ultralytics", "'distill.yolo.stock:Ultralytics' is called 'ultralytics' now"),
        ("no_such_package:x", "importing no_such_package failed"),
        ("distill.losses.box:box_uoi", "nothing named 'box_uoi'.*did you mean 'box_iou'"),
    ],
)
def test_a_loss_that_is_not_there_is_one_clear_line(file: Path, name: str, message: str):
    with pytest.raises(DistillError, match=message) as error:
        losses.resolve(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("dfl_kl", "temprature", "'dfl_kl' has no option 'temprature', did you mean 'temperature'"),
        ("score_bce", "weighing", "'score_bce' has no option 'weighing', did you mean 'weighting'"),
        ("score_bce", "wieght", "'score_bce' has no option 'wieght', did you mean 'weight'"),
        ("score_bce", "warm_up", "'score_bce' has no option 'warm_up', did you mean 'warmup'"),
        ("feature_mgd", "masks", "'feature_mgd' has no option 'masks', did you mean 'mask'"),
        ("feature_at", "temperature", "'feature_at' has no option 'temperature'; it takes none"),
    ],
)
def test_an_option_that_a_loss_does_not_take_is_named(name, option, message):
    with pytest.raises(DistillError, match=message):
        losses.build([LossSpec(name, 1.0, {option: 2})])


def test_no_loss_has_an_option_that_a_recipe_cannot_give():
    own = {"weight", "warmup", "until", "fade", "features"}
    assert set(RESERVED) == own, "CONTRIBUTING.md names them"
    assert all(own.isdisjoint((*row.options, *row.required)) for row in losses.describe()), (
        "a recipe reads it as its own"
    )


@pytest.mark.parametrize("option", RESERVED)
def test_a_users_loss_with_such_an_option_is_refused(tmp_path: Path, option: str):
    (tmp_path / "mine.py").write_text(f"def kd(ctx, {option}=1, **others): pass\n")
    with pytest.raises(DistillError, match=f"mine.py:kd' cannot have an option '{option}': .* rename"):
        losses.build([LossSpec(f"{tmp_path}/mine.py:kd")])


def test_an_option_that_a_loss_cannot_do_without_is_named(file: Path):
    with pytest.raises(DistillError, match="needs its option 'width'"):
        losses.build([LossSpec(f"{file}:Learned", 1.0)])
