"""Layers whose weights are not plain parameters of their own stay whole, and all around them is cut exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import prune
from prune.importance.sparsity import Penalty, near_zero
from tests.prune.networks import Block, randomize

IMAGE = torch.rand(1, 3, 16, 16)


class Scaled(nn.Conv2d):
    """Weights that are computed in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, self.bias, padding=1)


class Own(nn.Module):
    """A convolution that is no nn.Conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


class Rescaled(nn.BatchNorm2d):
    """A BatchNorm whose scales are computed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight + 1, self.bias)


class Penalised(nn.Conv2d):
    """One that uses its weights a second time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.mean()


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1)


class Odd(nn.Module):
    """One or two odd layers, with two plain blocks on either side."""

    def __init__(self, *odd: nn.Module) -> None:
        super().__init__()
        self.stem, self.before, self.odd = Block(3, 8), Block(8, 8), nn.ModuleList(odd)
        self.after, self.last, self.out = Block(8, 8), Block(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.stem(x))
        for layer in self.odd:
            x = layer(x)
        return self.out(self.last(self.after(x)))


class Borrowing(nn.Module):
    """Runs another module's weights itself."""

    def __init__(self, lender: nn.Conv2d) -> None:
        super().__init__()
        self.lender = lender

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.lender.weight, self.lender.bias, padding=1)


def tied(make, attribute: str = "weight") -> list[nn.Module]:
    a, b = make(), make()
    setattr(b, attribute, getattr(a, attribute))
    return [a, b]


def borrowed(also_run: bool) -> list[nn.Module]:
    lender = conv()
    return [lender, Borrowing(lender)] if also_run else [Borrowing(lender)]


@pytest.mark.parametrize(
    "odd, name, reason",
    [
        ([Scaled(8, 8, 3, padding=1)], "odd.0", "the weights in 'odd.0' are computed"),
        ([weight_norm(conv())], "odd.0", "the weights in 'odd.0' are computed"),
        ([nn.utils.spectral_norm(conv())], "odd.0", "the weights in 'odd.0' are computed"),
        ([Rescaled(8)], "odd.0", "the weights in 'odd.0' are computed"),
        ([Own()], "odd.0", "the weights in 'odd.0' are those of Own, which surgery does not know"),
        ([Penalised(8, 8, 3, padding=1)], "odd.0", "the weights of 'odd.0' are used in 'odd.0' too"),
        (tied(conv), "odd.0", "the weights in 'odd.0' are 'odd.1.weight'"),
        (tied(conv), "odd.1", "the weights in 'odd.1' are 'odd.0.weight'"),
        (tied(conv, "bias"), "odd.1", "the weights in 'odd.1' are 'odd.0.bias'"),
        (tied(lambda: nn.BatchNorm2d(8)), "odd.0", "the weights in 'odd.0' are 'odd.1.weight'"),
        (tied(lambda: nn.BatchNorm2d(8), "running_mean"), "odd.0", "the weights in 'odd.0' are 'odd.1.running_mean'"),
        (borrowed(False), "odd.0", "the weights in 'odd.0' are 'odd.0.lender.weight'"),
        (borrowed(True), "odd.0", "the weights of 'odd.0' are used in 'odd.1' too"),
    ],
)
def test_odd_weights_stay_whole_and_the_rest_is_exact(odd: list[nn.Module], name: str, reason: str) -> None:
    model = randomize(Odd(*odd))
    graph = prune.trace(model, IMAGE)
    assert graph.frozen[name] == reason
    assert graph.frozen["before.conv"].startswith("the weights ")  # of the first of two odd ones
    assert name not in {layer.name for layer in graph.layers}
    assert {"stem.conv", "last.conv"} <= {group.name for group in graph.groups}
    plan = prune.make_plan(graph, prune.score(graph, "l1"), ratio=0.4, round_to=1)
    student = prune.apply(model, plan)
    assert sum(p.numel() for p in student.parameters()) == plan.params_after < plan.params_before
    assert prune.verify(model, student, plan, torch.rand(2, 3, 16, 16)) < 1e-10
    scores = prune.score(graph, "obs", batches=torch.rand(2, 3, 16, 16))
    plan = prune.make_plan(graph, scores, ratio=0.4, round_to=1)
    prune.repair(prune.apply(model, plan), model, plan, torch.rand(4, 3, 16, 16))


def test_flops_of_layers_that_stay_whole_count() -> None:
    plain, odd = prune.trace(Odd(conv()), IMAGE), prune.trace(Odd(Scaled(8, 8, 3, padding=1)), IMAGE)
    assert odd.flops() == plain.flops()
    assert prune.keep_all(odd).flops_after == plain.flops()


def test_a_batch_norm_of_channels_that_no_layer_knows_stays_whole() -> None:
    model = randomize(nn.Sequential(Block(3, 8), Block(8, 8), weight_norm(nn.Conv2d(8, 4, 1)), nn.BatchNorm2d(4)))
    graph = prune.trace(model, IMAGE)
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.4, round_to=1)
    student = prune.apply(model, plan)
    assert student[3].num_features == 4
    assert prune.verify(model, student, plan, IMAGE) < 1e-10


def test_a_model_of_nothing_but_odd_weights_is_refused_with_the_reasons() -> None:
    with pytest.raises(prune.PruneError) as error:
        prune.trace(nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.SiLU(), Scaled(8, 4, 3)), IMAGE)
    assert str(error.value) == (
        "Sequential has no channel that can be cut: the weights in '0' are computed; the weights in '2' are computed"
    )


def test_tied_linear_layers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = Block(3, 8), nn.Linear(8, 12), nn.Linear(12, 12)
            self.again, self.out = nn.Linear(12, 12), nn.Linear(12, 3)
            self.again.weight = self.down.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(self.stem(x).mean((2, 3))).relu()
            return self.out(self.again(self.down(x).relu()).relu())

    model = randomize(Tied())
    graph = prune.trace(model, IMAGE)
    assert [group.name for group in graph.groups] == ["stem.conv"]
    assert graph.frozen["up"] == "the weights in 'down' are 'again.weight'"
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=1)
    student = prune.apply(model, plan)
    assert student.again.weight is student.down.weight
    assert prune.verify(model, student, plan, IMAGE) < 1e-10


def test_a_batch_norm_without_weights_passes_channels() -> None:
    model = randomize(Odd(nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.Sigmoid()))
    graph = prune.trace(model, IMAGE)
    assert "before.conv" in {group.name for group in graph.groups}
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.4, round_to=1)
    student = prune.apply(model, plan)
    assert student.odd[0].num_features == student.before.conv.out_channels < 8
    assert prune.verify(model, student, plan, torch.rand(2, 3, 16, 16)) < 1e-10


class Twice(nn.Module):
    """One module under two names, and run under both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.out = Block(3, 8), Block(8, 8), nn.Conv2d(8, 4, 1)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(self.stem(x))))


def test_a_module_with_two_names_goes_by_the_first() -> None:
    model = randomize(Twice())
    graph = prune.trace(model, IMAGE)
    assert [layer.name for layer in graph.layers] == ["stem.conv", "a.conv", "out"]
    assert [norm.name for norm in graph.norms] == ["stem.bn", "a.bn"]
    for importance in prune.IMPORTANCES:
        plan = prune.make_plan(
            graph, prune.score(graph, importance, batches=torch.rand(2, 3, 16, 16)), ratio=0.4, round_to=1
        )
        student = prune.apply(model, plan)
        assert student.a is student.b and student.a.conv.out_channels < 8
        assert prune.verify(model, student, plan, torch.rand(2, 3, 16, 16)) < 1e-10
    prune.repair(student, model, plan, torch.rand(4, 3, 16, 16))
    prune.reconstruct(student, model, plan, torch.rand(4, 3, 16, 16), steps=1)
    assert Penalty(graph, 1.0)(model).isfinite() and near_zero(graph, model)["channels"] == 8


class Sliced(nn.Module):
    """Parts of containers run by themselves, as in backbones; one activation is shared, for which torch goes by ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        act = nn.SiLU()
        self.how, self.layers = how, nn.Sequential(*(Block(c1, c2, act=act) for c1, c2 in ((3, 8), (8, 12), (12, 8))))
        self.others = nn.ModuleList([Block(8, 12, act=act), Block(12, 8, act=act), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "called":
            x = self.layers[1:](self.layers[:1](x))
        elif self.how == "twice":
            x = self.layers[1:][-1](self.layers[::1][:-1](x))
        elif self.how == "walked":
            for layer in self.layers[:-1]:
                x = layer(x)
            x = self.layers[-1](x)
        else:
            x = nn.Sequential(self.layers[0], nn.ReLU(), *self.layers[1:])(x)
        x = self.others[0](x)
        for layer in self.others[1:]:  # a ModuleList counts what is in its slices from 0
            x = layer(x)
        return x


@pytest.mark.parametrize("how", ["called", "twice", "walked", "made"])
def test_a_slice_of_a_container_runs_modules_of_the_model(how: str) -> None:
    model = randomize(Sliced(how))
    graph = prune.trace(model, IMAGE)
    names = ["layers.0.conv", "layers.1.conv", "layers.2.conv", "others.0.conv", "others.1.conv", "others.2"]
    assert [layer.name for layer in graph.layers] == names
    assert graph.frozen == {"others.2": "an output of the model"}
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.4, round_to=1)
    student, images = prune.apply(model, plan), torch.rand(2, 3, 16, 16)
    assert prune.verify(model, student, plan, IMAGE) < 1e-10
    assert prune.repair(student, model, plan, images) and prune.reconstruct(student, model, plan, images, steps=1)
