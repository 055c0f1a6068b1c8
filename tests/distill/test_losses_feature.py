"""Losses on features: values worked by hand or otherwise, what they forgive, and the one that learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from distill import losses
from distill.errors import DistillError
from distill.losses.base import Networks
from distill.losses.context import Outputs
from distill.losses.masked import FeatureMGD
from distill.losses.spec import LossSpec
from distill.training.task import DistillationTask
from distill.training.teacher import Teacher
from tests.distill.contexts import context, leaves, maps, outputs

# As a run calls them, with a context.
feature_at, feature_cwd, feature_fgd, feature_pkd = (
    losses.resolve(name) for name in ("feature_at", "feature_cwd", "feature_fgd", "feature_pkd")
)


def prepared(channels: list[int], **options) -> FeatureMGD:
    loss = FeatureMGD(**options)
    loss.setup(Networks(nn.Identity(), nn.Identity(), tuple(channels)))
    return loss


def test_feature_pkd_is_one_minus_the_correlation_of_each_channel():
    student, teacher = outputs(leaves(5)), outputs(leaves(6))
    levels = []
    for s, t in zip(student.features, teacher.features, strict=True):
        pairs = zip(s.transpose(0, 1).flatten(1), t.transpose(0, 1).flatten(1), strict=True)
        levels.append(torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())
    assert feature_pkd(context(student, teacher)).item() == pytest.approx(torch.stack(levels).mean().item(), rel=1e-4)


@pytest.mark.parametrize("loss", [feature_pkd, feature_cwd, feature_at, feature_fgd])
def test_each_channel_is_compared_with_the_one_it_was_cut_from(loss):
    teacher, keep = leaves(7), [[1, 2, 5], [0, 3, 4]]
    cut = teacher | {"near": teacher["near"][:, keep[0]], "far": teacher["far"][:, keep[1]]}
    right = loss(context(outputs(cut), outputs(teacher), keep))
    wrong = loss(context(outputs(cut), outputs(teacher), [[3, 1, 5], keep[1]]))
    assert right.item() == pytest.approx(0, abs=1e-5) and wrong > 0.02
    with pytest.raises(DistillError, match="another teacher"):
        loss(context(outputs(cut), outputs(teacher)))


@pytest.mark.parametrize(
    ("loss", "scale", "shift"),
    [(feature_pkd, True, True), (feature_cwd, False, True), (feature_at, True, False), (feature_fgd, False, False)],
)
def test_what_a_loss_forgives(loss, scale, shift):
    teacher = leaves(7)
    for change, forgiven in ((lambda x: 3 * x, scale), (lambda x: x + 1, shift)):
        student = teacher | {name: change(teacher[name]) for name in ("near", "far")}
        assert (loss(context(outputs(student), outputs(teacher))).item() < 1e-4) is forgiven


def test_feature_cwd_has_the_value_of_its_formula():
    # 1:3 against 1:1 in one channel of two, in one image of two, on one level of two.
    student = torch.zeros(2, 2, 1, 2)
    student[0, 0, 0, 1] = 2 * math.log(3)
    same = torch.ones(2, 1, 2, 2)
    ctx = context(maps(student, same), maps(torch.zeros(2, 2, 1, 2), same))
    assert feature_cwd(ctx, temperature=2.0).item() == pytest.approx(4 * 0.5 * math.log(4 / 3) / 8, rel=1e-5)


def test_feature_at_has_the_value_of_its_formula():
    # Channels squared and summed: (3, 4) and (2, 0). As unit vectors (0.6, 0.8) and (1, 0).
    student = torch.tensor([[[[3**0.5, 0.0]], [[0.0, -2.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])
    assert feature_at(context(maps(student), maps(teacher))).item() == pytest.approx(0.4**2 + 0.8**2, rel=1e-5)
    pair = (torch.cat((student, teacher)), torch.cat((teacher, teacher)))  # two images, the second one right
    assert feature_at(context(*map(maps, pair))).item() == pytest.approx(0.4, rel=1e-5)


def test_feature_fgd_has_the_value_of_its_formula_where_all_is_equally_strong():
    teacher = torch.ones(1, 2, 2, 2)
    student = teacher.clone()
    student[0, 0, 0, 0] = -1  # as strong as before, so attention is the same everywhere, and the square is 4
    scores = torch.logit(torch.tensor([0.8, 0.2, 0.2, 0.2]))[None, :, None]
    ctx = context(maps(student), maps(teacher, scores=scores))
    objects, rest = 0.8 * 2 / 1.4, 0.2 * 2 / 2.6
    assert feature_fgd(ctx).item() == pytest.approx(objects + 0.5 * rest, rel=1e-5)
    assert feature_fgd(ctx, background=3.0).item() == pytest.approx(objects + 3 * rest, rel=1e-5)


def test_feature_fgd_has_the_value_of_its_formula_with_attention():
    student, teacher = (2 * torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    scores = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    total = 0.0
    for s, t, quality in zip(student, teacher, scores.sigmoid().amax(-1).view(2, 2, 3), strict=True):
        place, own_place = (
            6 * torch.exp(x.abs().mean(0) / 0.7) / torch.exp(x.abs().mean(0) / 0.7).sum() for x in (t, s)
        )
        strength, own_strength = (torch.exp(x.abs().mean((1, 2)) / 0.7) for x in (t, s))
        channel, own_channel = (3 * x / x.sum() for x in (strength, own_strength))
        for y in range(2):
            for x in range(3):
                difference = place[y, x] * sum(channel[c] * (s[c, y, x] - t[c, y, x]) ** 2 for c in range(3)) / 3
                total += quality[y, x] * difference / quality.sum().clamp(min=1)
                total += 0.25 * (1 - quality[y, x]) * difference / (1 - quality).sum().clamp(min=1)
        total += 2 * ((own_place - place).abs().mean() + (own_channel - channel).abs().mean())
    ctx = context(maps(student), maps(teacher, scores=scores))
    assert feature_fgd(ctx, temperature=0.7, background=0.25, attention=2.0).item() == pytest.approx(
        total.item() / 2, rel=1e-4
    )


def test_feature_fgd_finds_objects_by_the_best_of_a_cells_anchors():
    """Two boxes to a cell, on grids of 2x2 and 1x1: anchors are per level (box, row, column), as heads lay them out."""
    teacher = [torch.ones(1, 2, 2, 2), torch.ones(1, 2, 1, 1)]
    probability = torch.full((10,), 1e-3)
    probability[4 + 1] = 0.9  # first level, second box, first row, second column
    scores = torch.logit(probability)[None, :, None]

    def cost(level: int, y: int, x: int) -> float:
        student = [feature.clone() for feature in teacher]
        student[level][0, 0, y, x] = -1
        return feature_fgd(context(maps(*student), maps(*teacher, scores=scores)), background=0.0).item()

    assert cost(0, 0, 1) == pytest.approx(0.9 * 2 / 2, rel=1e-4)
    assert all(cost(*cell) < 0.01 for cell in ((0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0)))


def test_feature_fgd_on_anchors_that_are_not_on_the_grid_says_what_it_needs():
    pair = [maps(torch.ones(1, 2, 7, 7), scores=torch.zeros(1, 1, 3)) for _ in range(2)]
    with pytest.raises(DistillError, match="'feature_fgd': 1 anchors on 49 cells: it needs a detector"):
        feature_fgd(context(*pair))


def test_feature_mgd_asks_for_the_teachers_feature_at_positions_that_it_blots_out():
    feature = 1 + torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = prepared([3], mask=0.4)
    with torch.no_grad():
        for convolution in (loss.generators[0][0], loss.generators[0][2]):  # each passes on what it is given
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        torch.manual_seed(5)
        value = loss(context(maps(feature), maps(feature)))
        torch.manual_seed(5)
        blotted = torch.rand(2, 1, 4, 4) < 0.4
        assert value.item() == pytest.approx((feature * blotted).square().mean().item(), rel=1e-5)
        assert 0 < blotted.sum() < 32
        loss.mask = 0.0
        assert loss(context(maps(feature), maps(feature))) == 0


def test_feature_mgd_learns_and_then_prefers_the_better_of_two_students():
    teacher, noise = leaves(0), leaves(1)
    loss = prepared([6, 6], mask=0.3)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    torch.manual_seed(0)
    values = []
    for _ in range(60):
        value = loss(context(outputs(teacher), outputs(teacher)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    values = []
    for miss in (0.0, 0.3, 1.0):
        student = teacher | {name: teacher[name] + miss * noise[name] for name in ("near", "far")}
        torch.manual_seed(0)
        values.append(loss(context(outputs(student), outputs(teacher))).item())
    assert values[0] < values[1] < values[2]


def test_feature_mgd_begins_the_same_in_every_run_and_draws_another_mask_in_each_batch():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = prepared([4, 2]), prepared([4, 2])
    assert torch.equal(torch.rand(3), expected), "nothing is drawn from the generator that training draws from"
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert len(pairs) == 8 and all(torch.equal(*pair) and pair[0].std() > 0.01 for pair in pairs)
    assert sum(p.numel() for p in first.parameters()) == 18 * (16 + 4) + 2 * (4 + 2)
    feature = [torch.ones(1, count, 8, 8) for count in (4, 2)]
    ctx = context(maps(*feature), maps(*feature))
    assert first(ctx) != first(ctx)


@pytest.mark.parametrize("mask", [1.0, -0.1])
def test_feature_mgd_refuses_a_mask_out_of_range(mask):
    with pytest.raises(DistillError, match=f"'feature_mgd': mask is at least 0 and below 1, not {mask}"):
        losses.build([LossSpec("feature_mgd", 1.0, {"mask": mask})])


def test_feature_mgd_that_nobody_prepared_says_so():
    ctx = context(*(outputs(leaves(seed)) for seed in (0, 1)))
    with pytest.raises(DistillError, match=r"set up for 0 features, not 2: call setup\(networks\)"):
        FeatureMGD()(ctx)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, 2, 1)


def run(net: Net, images: Tensor, points: Sequence[str]) -> Outputs:
    features = net.stem(images)
    return Outputs((features,), net.head(features).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("width", "keep"), [(4, [[0, 2, 3, 5]]), (6, None)])
def test_a_task_prepares_a_loss_before_there_is_an_optimizer(width, keep):
    student, teacher = Net(width), Net(6)
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    kept = {} if keep is None else {"neck": keep}
    frozen = Teacher(teacher, losses.build([LossSpec("feature_mgd")]), run, keep=kept)
    task = DistillationTask(student, [frozen], run=run)
    for state, network in zip(before, (student, task.teachers[0].network), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    start = copy.deepcopy(task.learned.state_dict())
    assert [value.shape[0] for value in start.values()] == [width] * 4
    twin = copy.deepcopy(task)  # which is what is trained
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin({"img": torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))})["loss"].backward()
    optimizer.step()
    assert not any(torch.equal(value, start[name]) for name, value in twin.learned.state_dict().items())
    assert all(torch.equal(value, start[name]) for name, value in task.learned.state_dict().items())
