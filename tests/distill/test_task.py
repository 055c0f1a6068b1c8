"""DistillationTask: what it sums, what it keeps apart, and the losses that it refuses."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses import LossModule, Networks, WeightedLoss, resolve
from distill.losses.context import LossContext, Outputs
from distill.losses.spec import Ramp
from distill.training.task import DistillationTask, check_support
from distill.training.teacher import Teacher

feature_pkd = resolve("feature_pkd")
score_bce = resolve("score_bce")


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.SiLU())
        self.head = nn.Conv2d(width, 2, 1)


def run(net: Net, images: Tensor, points: Sequence[str] = ()) -> Outputs:
    features = net.stem(images)
    at = {"stem.0": net.stem[0](images)} if "stem.0" in points else {}
    return Outputs((features,), net.head(features).flatten(2).transpose(1, 2), at=at)


def squares(ctx: LossContext) -> Tensor:
    return (ctx.student.scores - ctx.teacher.scores).square().mean()


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, ctx: LossContext) -> Tensor:
        return (self.layer(ctx.student.scores) - ctx.teacher.scores).square().mean()


@pytest.fixture
def nets() -> tuple[Net, Net]:
    torch.manual_seed(0)
    return Net(4), Net(6)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {"img": torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), "cls": torch.zeros(2, 1)}


def task_of(
    nets: tuple[Net, Net], *losses: WeightedLoss, keep: list[list[int]] | None = None, **options
) -> DistillationTask:
    student, teacher = nets
    kept = {} if keep is None else {"neck": keep}
    return DistillationTask(student, [Teacher(teacher, losses, run, keep=kept)], run=run, **options)


def test_terms_are_weighted_and_sum_to_the_loss(nets, batch):
    def labelled(student, outputs, batch):
        return {"label": outputs.class_logits.square().mean() + batch["cls"].sum()}

    task = task_of(
        nets, WeightedLoss("a", 2.0, squares), WeightedLoss("b", 0.5, score_bce), labelled=labelled, labels=3.0
    )
    terms = task(batch)
    student, teacher = run(task.student, batch["img"]), run(task.teachers[0].network, batch["img"])
    ctx = LossContext(batch["img"], student, teacher)
    expected = [3 * student.scores.square().mean(), 2 * squares(ctx), 0.5 * score_bce(ctx)]
    assert list(terms) == ["label", "a", "b", "loss"]
    assert [terms[name].item() for name in ("label", "a", "b")] == pytest.approx([v.item() for v in expected], rel=1e-5)
    assert terms["loss"].item() == pytest.approx(sum(v.item() for v in expected), rel=1e-5)


def test_without_labels_in_the_batch_only_the_teacher_teaches(nets, batch):
    seen = []

    def spy(ctx: LossContext) -> Tensor:
        seen.append((ctx.targets, ctx.progress))
        return squares(ctx)

    task = task_of(nets, WeightedLoss("spy", 1.0, spy), labelled=lambda *_: {"label": torch.ones(())})
    assert list(task({"img": batch["img"]}, progress=0.25)) == ["spy", "loss"]
    assert list(task(batch)) == ["label", "spy", "loss"]
    assert seen[0] == (None, 0.25) and seen[1][0].keys() == {"cls"}


def test_the_teacher_is_frozen_and_seen_by_no_optimizer_or_checkpoint(nets, batch):
    task = task_of(nets, WeightedLoss("a", 1.0, squares)).train()
    before = copy.deepcopy(task.teachers[0].network.state_dict())
    task(batch)["loss"].backward()
    assert not task.teachers[0].network.training and task.student.training
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.student.parameters()}
    assert all(name.startswith("student.") for name in task.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in task.teachers[0].network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teachers[0].network.state_dict().items())
    assert all(p.grad is not None for p in task.student.parameters())
    assert all(p.requires_grad for p in nets[1].parameters()), "the caller's network is left alone"


def test_the_teacher_moves_with_the_task_and_is_shared_by_its_copies(nets):
    task = task_of(nets, WeightedLoss("a", 1.0, squares)).double()
    assert next(task.teachers[0].network.parameters()).dtype == torch.float64
    twin = copy.deepcopy(task)
    assert twin.teachers[0] is task.teachers[0]
    assert twin.student is not task.student and torch.equal(twin.student.head.weight, task.student.head.weight)


def test_features_compare_at_the_kept_channels(nets, batch):
    teacher = nets[1]
    student = Net(4)
    keep = [0, 2, 3, 5]
    student.stem[0].load_state_dict({name: value[keep] for name, value in teacher.stem[0].state_dict().items()})
    loss = WeightedLoss("f", 1.0, feature_pkd)
    right, wrong = (task_of((student.eval(), teacher), loss, keep=[each]) for each in (keep, [0, 2, 5, 3]))
    with torch.no_grad():
        assert right(batch)["loss"] < 1e-5
        assert wrong(batch)["loss"] > 0.1


def test_features_of_a_module_compare_at_the_kept_channels_too(nets, batch):
    student, teacher = nets
    keep = [0, 2, 3, 5]
    student.stem[0].load_state_dict({name: value[keep] for name, value in teacher.stem[0].state_dict().items()})
    seen = []

    def spy(ctx: LossContext) -> Tensor:
        seen.extend([ctx.pair("stem.0"), *ctx.features()])
        return (ctx.pair("stem.0")[0] - 1).square().mean()

    kept = {"neck": [keep], "stem.0": [keep]}
    teachers = [Teacher(teacher, [WeightedLoss("spy", 1.0, spy)], run, keep=kept)]
    DistillationTask(student.eval(), teachers, run=run, features=["stem.0", "neck"])(batch)["loss"].backward()
    assert [pair[0].shape[1] for pair in seen] == [4, 4, 4]
    assert torch.equal(*seen[0]) and seen[1] is not seen[2]
    with pytest.raises(DistillError, match=r"a loss asks for features at 'stem.0': there are neck; distill.features"):
        DistillationTask(student, teachers, run=run)(batch)


def test_several_teachers_each_pull_with_losses_of_their_own(nets, batch):
    student, one = nets
    two = Net(8)
    teachers = [
        Teacher(one, [WeightedLoss("a", 2.0, squares)], run, "one"),
        Teacher(two, [WeightedLoss("a", 1.0, squares), WeightedLoss("b", 1.0, score_bce, Ramp(until=0.5))], run, "two"),
    ]
    terms = DistillationTask(student, teachers, run=run)(batch)
    alone = [task_of((student, each), WeightedLoss("a", 1.0, squares))(batch)["a"] for each in (one, two)]
    assert list(terms) == ["one/a", "two/a", "two/b", "loss"]
    assert terms["one/a"] == 2 * alone[0] and terms["two/a"] == alone[1]
    task = DistillationTask(student, teachers, run=run)
    task.scale({"two/a": 3.0})
    assert task(batch)["two/a"] == 3 * alone[1] and task(batch)["one/a"] == terms["one/a"]


def test_a_teacher_that_the_student_was_not_cut_from_is_met_through_a_projector(nets, batch):
    student, teacher = nets
    before = copy.deepcopy(student.state_dict())
    tasks = [
        DistillationTask(
            student, [Teacher(teacher, [WeightedLoss("f", 1.0, feature_pkd)], run, projects=True)], run=run
        )
        for _ in range(2)
    ]
    task = tasks[0]
    (projector,) = task.learned.parameters()
    assert projector.shape == (6, 4, 1, 1) and torch.equal(projector, next(tasks[1].learned.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    twin = copy.deepcopy(task)
    twin(batch)["loss"].backward()
    (trained,) = twin.learned.parameters()
    assert trained.grad is not None and trained.grad.any() and projector.grad is None
    assert any(p is trained for p in twin.parameters()) and not any(p is trained for p in twin.student.parameters())
    assert list(twin.learned.state_dict()) == ["0.project.weight"]


def test_a_view_brings_the_outputs_into_common_terms(nets, batch):
    def swapped(student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        return student, replace(teacher, class_logits=teacher.class_logits.flip(-1))

    other = copy.deepcopy(nets[1])
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.copy_(parameter.flip(0))
    plain = task_of(nets, WeightedLoss("a", 1.0, squares))(batch)["a"]
    teacher = Teacher(other, [WeightedLoss("a", 1.0, squares)], run, view=swapped)
    assert DistillationTask(nets[0], [teacher], run=run)(batch)["a"].item() == pytest.approx(plain.item(), rel=1e-6)


def test_images_without_labels_teach_beside_those_with(nets, batch):
    def labelled(student, outputs, batch):
        assert len(batch["img"]) == len(outputs.class_logits) == len(outputs.raw["maps"][0]) == 1
        return {"label": outputs.class_logits.square().mean()}

    def raw(net: Net, images: Tensor, points: Sequence[str]) -> Outputs:
        outputs = run(net, images)
        return replace(
            outputs, raw={"maps": [outputs.class_logits]}, decode=lambda: outputs.class_logits.repeat(1, 1, 2)
        )

    seen = []

    def spy(ctx: LossContext) -> Tensor:
        seen.append((len(ctx.images), ctx.targets is None, len(ctx.student.boxes)))
        return squares(ctx) + ctx.student.boxes.mean()

    student = nets[0].eval()
    teacher = Teacher(nets[1], [WeightedLoss("spy", 1.0, spy)], raw)
    options = {"run": raw, "labelled": labelled}
    mixed = batch | {"img": torch.cat([batch["img"][:1]] * 2 + [batch["img"][1:]]), "labelled": 1}
    terms = DistillationTask(student, [teacher], **options, unlabelled=0.5)(mixed)
    assert seen == [(1, False, 1), (2, True, 2)]
    with_labels, without = (
        DistillationTask(student, [teacher], run=raw)({"img": part})["spy"]
        for part in (mixed["img"][:1], mixed["img"][1:])
    )
    assert terms["spy"].item() == pytest.approx((with_labels / 3 + 0.5 * without * 2 / 3).item(), rel=1e-5)
    alone = DistillationTask(student, [teacher], **options)({"img": mixed["img"][:1], "cls": mixed["cls"]})
    assert terms["label"].item() == pytest.approx(alone["label"].item(), rel=1e-6)


def test_parameters_of_a_loss_train_and_stay_out_of_the_student(nets, batch):
    task = task_of(nets, WeightedLoss("learned", 1.0, Learned()))
    task(batch)["loss"].backward()
    assert [p.grad is not None for p in task.learned.parameters()] == [True, True]
    assert len(list(task.parameters())) == len(list(task.student.parameters())) + 2


def test_losses_compute_in_float32_under_autocast(nets, batch):
    kinds = []

    def spy(ctx: LossContext) -> Tensor:
        kinds.extend([ctx.student.class_logits.dtype, (ctx.student.scores[0] @ ctx.student.scores[0].T).dtype])
        return squares(ctx)

    with torch.autocast("cpu", torch.bfloat16):
        loss = task_of(nets, WeightedLoss("spy", 1.0, spy))(batch)["loss"]
    assert kinds == [torch.bfloat16, torch.float32] and loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda ctx: 0 * ctx.student.scores.sum(), "'bad' is zero in each of the first 3 batches"),
        (lambda ctx: 1 + 0 * ctx.student.scores.sum(), "'bad' gives the student a gradient of zero"),
        (lambda ctx: ctx.student.scores.mean() / 0 * 0, "'bad' is nan in batch 1"),
        (lambda ctx: ctx.student.scores.detach().square().mean(), "'bad' has no gradient to the student"),
        (lambda ctx: torch.ones((), requires_grad=True) * 2, "'bad' has no gradient to the student"),
        (lambda ctx: ctx.student.scores, "'bad' must return a scalar tensor, not a tensor of shape"),
        (lambda ctx: 1.0, "'bad' must return a scalar tensor, not float"),
        (lambda ctx: ctx.studnet, "'bad' failed at test_task.py:[0-9]+: AttributeError"),
        (lambda ctx: ctx.features("stem"), "features at 'stem'"),
    ],
)
def test_a_loss_that_cannot_teach_is_named(nets, batch, loss, message):
    task = task_of(nets, WeightedLoss("good", 1.0, squares), WeightedLoss("bad", 1.0, loss))
    with pytest.raises(DistillError, match=message):
        for _ in range(3):
            task(batch)


def test_a_loss_may_be_zero_now_and_then(nets, batch):
    calls = iter(range(9))
    task = task_of(nets, WeightedLoss("rare", 1.0, lambda ctx: squares(ctx) * (next(calls) == 2)))
    assert [task(batch)["loss"].item() > 0 for _ in range(5)] == [False, False, True, False, False]


class Counted:
    def __init__(self, factor: float = 1.0) -> None:
        self.calls, self.factor = 0, factor

    def __call__(self, ctx: LossContext) -> Tensor:
        self.calls += 1
        return self.factor * squares(ctx)


def test_a_loss_counts_as_much_as_its_ramp_says_and_is_not_called_when_that_is_over(nets, batch):
    early, late = Counted(), Counted()
    ramps = Ramp(until=0.5, fade="linear"), Ramp(warmup=0.5)
    task = task_of(nets, WeightedLoss("early", 2.0, early, ramps[0]), WeightedLoss("late", 3.0, late, ramps[1]))
    seen = [task(batch, progress / 8) for progress in range(9)]
    assert all(list(terms) == ["early", "late", "loss"] for terms in seen)
    value = seen[0]["early"].item() / 2
    factors = [[terms[name].item() / value for terms in seen] for name in ("early", "late")]
    assert factors[0] == pytest.approx([2, 1.5, 1, 0.5, 0, 0, 0, 0, 0])
    assert factors[1] == pytest.approx([0, 0.75, 1.5, 2.25, 3, 3, 3, 3, 3])
    assert [terms["loss"].item() for terms in seen] == pytest.approx(
        [value * sum(pair) for pair in zip(*factors, strict=True)]
    )
    assert (early.calls, late.calls) == (4, 9)


def test_the_teacher_rests_when_all_losses_are_over(nets, batch):
    labelled = {"labelled": lambda student, outputs, batch: {"label": outputs.class_logits.square().mean()}}
    task = task_of(nets, WeightedLoss("a", 1.0, squares, Ramp(until=0.5)), **labelled)
    seen = []
    task.teachers[0].network.stem.register_forward_hook(lambda *_: seen.append(1))
    terms = [task(batch, progress) for progress in (0.4, 0.5)]
    assert seen == [1] and terms[1]["a"] == 0 and terms[1]["loss"] == terms[1]["label"]
    terms[1]["loss"].backward()


def test_a_loss_is_watched_while_it_warms_up_and_not_where_it_is_over(nets, batch):
    with pytest.raises(DistillError, match="'bad' is zero in each of the first 3 batches"):
        task = task_of(nets, WeightedLoss("good", 1.0, squares), WeightedLoss("bad", 1.0, Counted(0), Ramp(warmup=0.9)))
        for _ in range(3):
            task(batch)
    resumed = task_of(nets, WeightedLoss("good", 1.0, squares), WeightedLoss("past", 1.0, Counted(), Ramp(until=0.5)))
    for _ in range(4):
        resumed(batch, 0.7)


def test_a_task_without_anything_to_learn_from_is_refused(nets, batch):
    with pytest.raises(DistillError, match="nothing to train on"):
        task_of(nets, labelled=lambda *_: {}, labels=0)
    with pytest.raises(DistillError, match="the data has no labels"):
        task_of(nets, labelled=lambda *_: {"label": torch.ones(())})({"img": batch["img"]})
    ends = WeightedLoss("a", 1.0, squares, Ramp(until=0.5))
    with pytest.raises(DistillError, match=r"nothing to train on at the end: distill\.labels is 0"):
        task_of(nets, ends)
    with pytest.raises(DistillError, match="nothing to train on at the end: the data has no labels"):
        task_of(nets, ends, labelled=lambda *_: {"label": torch.ones(())})({"img": batch["img"]})


def test_a_plain_modules_own_methods_are_never_called(nets, batch):
    """Only `LossModule` has hooks: what a user's class calls its methods is its own business."""

    class Plain(Learned):
        def refuse(self, *_):
            raise AssertionError("nobody may call this")

        check = prepare = meet = setup = supports = refuse

    task = task_of(nets, WeightedLoss("plain", 1.0, Plain()))
    check_support(task.losses, nets[1])
    task(batch)["loss"].backward()
    assert all(p.grad is not None for p in task.learned.parameters())


class Projected(LossModule):
    """Serves networks of width 6 alone, and projects the student's features to the teacher's."""

    def supports(self, teacher: nn.Module) -> str | None:
        return None if teacher.head.in_channels == 6 else f"it projects to 6 channels, not {teacher.head.in_channels}"

    def setup(self, networks: Networks) -> None:
        self.networks = [networks]
        (width,) = networks.channels
        self.projector = nn.Conv2d(width, 6, 1)

    def forward(self, ctx: LossContext) -> Tensor:
        return (self.projector(ctx.student.features[0]) - ctx.teacher.features[0]).square().mean()


def test_a_loss_module_sees_the_networks_before_there_is_an_optimizer(nets, batch):
    loss = Projected()
    task = task_of(nets, WeightedLoss("projected", 1.0, loss), keep=[[0, 1, 2, 3]])
    (networks,) = loss.networks
    assert (
        networks.student is task.student and networks.teacher is task.teachers[0].network and networks.channels == (4,)
    )
    assert len(list(task.learned.parameters())) == 2
    task(batch)["loss"].backward()
    assert all(p.grad is not None for p in task.learned.parameters())


def test_a_loss_module_that_cannot_serve_a_teacher_or_fails_is_one_clear_line(nets):
    class Broken(Projected):
        def setup(self, networks):
            self.projector = networks.chanels

    weighted = WeightedLoss("projected", 1.0, Projected())
    check_support([weighted, WeightedLoss("squares", 1.0, squares)], nets[1])
    with pytest.raises(DistillError, match="^loss 'projected': it projects to 6 channels, not 4$"):
        check_support([weighted], nets[0])
    with pytest.raises(DistillError, match="^loss 'broken' failed at test_task.py:[0-9]+: AttributeError: .*'chanels'"):
        task_of(nets, WeightedLoss("broken", 1.0, Broken()))
