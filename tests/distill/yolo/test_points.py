"""Features at modules: what is captured, how it is matched by a plan, and the names that would compare unlike things."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg

import prune
from distill import losses
from distill.errors import DistillError
from distill.losses import LossModule, Networks, WeightedLoss
from distill.losses.context import LossContext, Outputs
from distill.losses.spec import LossSpec, Ramp
from distill.training.points import feature_at, is_feature
from distill.training.schedule import Schedule
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import distillation, foreign_teacher, run, teacher_of
from distill.yolo.families.points import keep_at, outputs_of
from distill.yolo.training.learner import Learner
from tests.distill.yolo.originals import NAMES, network, tiny

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
FEATURES = ("feature_pkd", "feature_cwd", "feature_at", "feature_fgd")
NETWORKS: dict[str, Callable[[], Any]] = {"v8": tiny, "11": lambda: tiny("yolo11n.yaml"), "v5": network}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def cut(model: Any) -> tuple[Any, prune.PrunePlan]:
    graph = prune.trace(model, IMAGES[:1], adapter=YOLO_ADAPTER)
    plan = prune.make_plan(graph, prune.score(graph, "random", seed=1), ratio=0.4, round_to=1)
    return prune.apply(model, plan, adapter=YOLO_ADAPTER), plan


def spying(seen: list[Any], read: Callable[[LossContext], Any], reads: Any = None) -> Any:
    """A loss that notes what it reads."""

    def spy(ctx: LossContext) -> Tensor:
        seen.append(read(ctx))
        return ctx.student.scores.square().mean()

    if reads is not None:
        spy.reads = reads  # type: ignore[attr-defined]
    return spy


def test_what_modules_give_is_captured_and_no_hook_stays() -> None:
    model = tiny()
    given: list[Tensor] = []
    handle = model.model[4].register_forward_hook(lambda module, inputs, output: given.append(output))
    outputs = run(model, IMAGES, ["neck", "model.4", "model.6.cv1"])
    handle.remove()
    assert list(outputs.at) == ["model.4", "model.6.cv1"] and torch.equal(outputs.at["model.4"], given[0])
    assert not hooks(model) and run(model, IMAGES).at == {}
    with pytest.raises(RuntimeError):
        run(model, IMAGES[:, :2], ["model.4"])
    assert not hooks(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_uncut_student_is_its_fused_teacher_at_every_module_that_can_be_named(name: str) -> None:
    model = NETWORKS[name]()
    outputs = outputs_of(model)
    points = [path for path in outputs if path.count(".") == 1 or path.endswith((".cv1", ".cv2"))]
    points = [path for path in points if is_feature(outputs[path])]
    assert len(points) > 20 and f"model.{len(model.model) - 1}" not in points  # the head gives no feature
    teacher = teacher_of(checkpoint.fused(model), losses.build([LossSpec("feature_pkd")]))
    task = distillation(model, [teacher], labels=0, features=points)
    with torch.no_grad():
        assert task({"img": IMAGES})["feature_pkd"] < 1e-6


@pytest.mark.parametrize("name", ["v8", "v5"])
def test_a_cut_student_meets_the_channels_that_it_kept(name: str) -> None:
    model = NETWORKS[name]()
    student, plan = cut(model)
    points = ["model.4", "neck", "model.6.cv1", "model.9", "model.11"]
    keep = keep_at(model, plan, points)
    assert (
        keep.keys() <= set(points)
        and len(keep) > 3
        and len(keep["model.6.cv1"][0]) == len(plan.keep["model.6.cv1.conv"])
    )
    seen: list[list[tuple[Tensor, Tensor]]] = []
    spy = WeightedLoss("spy", 1.0, spying(seen, lambda ctx: [ctx.pair("model.4"), *ctx.features()]))
    build = losses.build([LossSpec(loss) for loss in (*FEATURES[:3], "feature_mgd")])
    task = distillation(student, [teacher_of(checkpoint.fused(model), [spy, *build], keep)], labels=0, features=points)
    terms = task({"img": IMAGES})
    terms["loss"].backward()
    assert len(seen[0]) == 5 + len(run(model, IMAGES).neck) and torch.equal(seen[0][0][0], seen[0][1][0])
    whole = run(checkpoint.fused(model), IMAGES, points).at["model.4"]
    torch.testing.assert_close(seen[0][0][1], whole[:, list(keep["model.4"][0])])
    assert all(parameter.grad is not None for parameter in task.learned.parameters())


TRAPS = {
    "model.44": r"no module 'model\.44', did you mean 'model\.4'\?.*distill ls features",
    "nekc": "no module 'nekc', did you mean 'neck'",
    "model.6.cv1.conv": r"'model\.6\.cv1\.conv' is inside 'model\.6\.cv1', whose BatchNorm is folded .* name 'model\.6\.cv1'",
    "model.6.cv1.bn": r"is inside 'model\.6\.cv1'",
    "model.9.m": r"'model\.9\.m' runs 3 times in one pass: name another module",
    "model.6.m": r"'model\.6\.m' does not run: name another module",
    "model.22": r"'model\.22' does not give one tensor \(B, C, H, W\)",
}


@pytest.mark.parametrize("point", TRAPS)
def test_a_name_that_compares_nothing_or_unlike_things_is_refused(point: str) -> None:
    model = tiny()
    with pytest.raises(DistillError, match=TRAPS[point]) as error:
        task = distillation(
            model,
            [teacher_of(checkpoint.fused(model), losses.build([LossSpec("feature_pkd")]))],
            labels=0,
            features=[point],
        )
        task({"img": IMAGES})
    assert "\n" not in str(error.value) and not hooks(model)


def test_a_trace_refuses_such_names_too() -> None:
    outputs = outputs_of(tiny())
    for point, message in {
        "model.44": r"no module 'model\.44', did you mean 'model\.4'",
        "model.9.m": "runs 3 times in one pass",
        "model.22": "gives a dict, not one tensor",
        "": "there is no module ''",
    }.items():
        with pytest.raises(DistillError, match=message):
            feature_at(outputs, point)


def test_what_is_overwritten_is_refused() -> None:
    model = tiny()
    model.model[4].cv1.act = nn.SiLU(inplace=True)  # as in most checkpoints
    with pytest.raises(DistillError, match=r"'model\.4\.cv1\.bn' gives a tensor that the next module overwrites"):
        run(model, IMAGES, ["model.4.cv1.bn"])


@torch.no_grad()
def test_each_loss_may_have_points_of_its_own_and_only_what_is_read_is_captured() -> None:
    model, asked, seen = tiny(), [], []

    def running(network: nn.Module, images: Tensor, points: Sequence[str]) -> Outputs:
        asked.append(tuple(points))
        return run(network, images, points)

    def task(*given: WeightedLoss) -> Any:
        made = distillation(model, [teacher_of(model, given)], labels=0, features=["neck", "model.4"])
        made.run = running
        return made

    scores = losses.build([LossSpec("score_bce")])
    pkd = losses.build([LossSpec("feature_pkd", features=("model.6",))])
    said = spying(seen, lambda ctx: (ctx.points, ctx.pair("model.9")), ["scores", "model.9"])
    unsaid = WeightedLoss("unsaid", 1.0, spying(seen, lambda ctx: ctx.points), Ramp(until=0.5))
    task(*scores)({"img": IMAGES})
    task(*scores, *pkd)({"img": IMAGES})
    task(*scores, *pkd, WeightedLoss("said", 1.0, said))({"img": IMAGES})
    assert asked == [(), ("model.6",), ("model.6", "model.9")] and seen[0][0] == ("model.9",)
    both = task(*scores, unsaid)
    both({"img": IMAGES}, 0.1)
    both({"img": IMAGES}, 0.9)
    assert asked[3:] == [("neck", "model.4"), ()] and seen[1] == ("neck", "model.4")


def test_a_loss_that_asks_for_what_nobody_captured_names_the_nearest() -> None:
    model = tiny()
    loss = WeightedLoss("spy", 1.0, spying([], lambda ctx: ctx.pair("model.4")))
    task = distillation(model, [teacher_of(model, [loss])], labels=0, features=["model.6"])
    with pytest.raises(
        DistillError, match=r"features at 'model\.4', did you mean 'model\.6'\?; distill\.features lists"
    ):
        task({"img": IMAGES})
    loss = WeightedLoss("spy", 1.0, spying([], lambda ctx: ctx.pair("neck")))
    with pytest.raises(DistillError, match=r"'neck' has 3 features, one for each level: ctx\.features\('neck'\)"):
        distillation(model, [teacher_of(model, [loss])], labels=0)({"img": IMAGES})
    task = distillation(model, [teacher_of(model, losses.build([LossSpec("feature_pkd")]))], labels=0, features=[])
    with pytest.raises(DistillError, match=r"no point is named: list some in distill\.features"):
        task({"img": IMAGES})


def test_quality_is_known_on_the_grids_of_the_head_alone() -> None:
    model = tiny()

    def task(*points: str) -> Any:
        return distillation(
            model, [teacher_of(model, losses.build([LossSpec("feature_fgd")]))], labels=0, features=list(points)
        )

    same = [
        task(*points)({"img": IMAGES})["loss"] for points in (("model.4", "model.6", "model.9"), ("neck", "model.4"))
    ]
    assert all(value == 0 for value in same)
    with pytest.raises(DistillError, match=r"'model\.2' has a grid of 16x24, .* \(8x12, 4x6, 2x3\): choose another"):
        task("neck", "model.2")({"img": IMAGES})


def test_another_teacher_is_met_at_a_name_that_both_have_on_the_same_grid() -> None:
    student, other = tiny(), checkpoint.fused(tiny("yolo11n.yaml"))

    def task(point: str) -> Any:
        built = losses.build([LossSpec("feature_pkd", features=(point,))])
        return distillation(student, [foreign_teacher(other, built, student, "other")], labels=0)

    made = task("model.4")
    made({"img": IMAGES})["loss"].backward()
    assert [tuple(each.shape[:2]) for each in made.learned.parameters()] == [
        tuple(run(network, IMAGES, ["model.4"]).at["model.4"].shape[1] for network in (other, student))
    ]
    with pytest.raises(DistillError, match=r"features at 'model\.10' have grids of 4x4 and 2x2 cells .* teacher other"):
        task("model.10")
    with pytest.raises(DistillError, match=r"the teacher has no module 'model\.4\.m\.1'"):
        task("model.4.m.1")


def test_a_loss_that_learns_gets_the_channels_of_its_own_points() -> None:
    model = tiny()
    student, plan = cut(model)
    widths: dict[str, tuple[int, ...]] = {}

    class Learned(LossModule):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def setup(self, networks: Networks) -> None:
            widths[self.name] = networks.channels

        def forward(self, ctx: LossContext) -> Tensor:
            return torch.stack([(s - t).square().mean() for s, t in ctx.features()]).mean()

    keep = keep_at(model, plan, ["neck", "model.4", "model.6"])
    given = [WeightedLoss("all", 1.0, Learned("all")), WeightedLoss("own", 1.0, Learned("own"), features=("model.6",))]
    task = distillation(student, [teacher_of(model, given, keep)], labels=0, features=["model.4", "neck"])
    assert widths["own"] == (len(plan.keep["model.6.cv2.conv"]),)
    assert widths["all"] == (len(plan.keep["model.4.cv2.conv"]), *map(len, keep["neck"]))
    task({"img": IMAGES})


def test_training_with_features_leaves_no_hook_in_copies_or_in_what_is_saved(tmp_path: Path) -> None:
    model = tiny()
    model.args = get_cfg()
    student, plan = cut(model)
    points = ["neck", "model.4", "model.6.cv1"]
    teacher = teacher_of(checkpoint.fused(model), losses.build([LossSpec("feature_pkd")]), keep_at(model, plan, points))
    task = distillation(student, [teacher], labels=0, features=points)
    learner = Learner(student, task, None, Schedule(epochs=1, batch=2, steps=1)).train()
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    full, _ = learner({"img": images})
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = copy.deepcopy(learner)({"img": images})
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.05)
    assert not hooks(learner) and not hooks(learner.task.teachers[0].network)
    checkpoint.save(learner.student_model.eval(), tmp_path / "student.pt", names=NAMES, imgsz=64)
    saved = torch.load(tmp_path / "student.pt", weights_only=False)
    assert not hooks(saved["model"])
