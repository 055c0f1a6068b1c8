from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.prune.networks import SMALL, Block, Split, yolo

IMAGE = torch.rand(1, 3, 16, 16)


def widths(model: nn.Module) -> dict[str, int]:
    return {group.name: len(group.channels) for group in prune.trace(model, IMAGE).groups}


def test_a_chain_has_one_group_a_layer() -> None:
    assert widths(nn.Sequential(Block(3, 8), Block(8, 12), nn.Conv2d(12, 4, 1))) == {"0.conv": 8, "1.conv": 12}


def test_summands_are_one_group_and_a_concat_keeps_two_apart() -> None:
    # body's output is added to cat(left, right): the first half lives with left, the other with right.
    assert widths(SMALL["residual"]()) == {"stem.conv": 16, "body.conv[0:8]": 8, "body.conv[8:16]": 8}
    graph = prune.trace(SMALL["residual"](), IMAGE)
    assert [[layer.name for layer in layers] for layers in graph.producers[1:]] == [
        ["body.conv", "left.conv"],
        ["body.conv", "right.conv"],
    ]


def test_the_parts_of_a_split_are_groups_of_a_bundle() -> None:
    graph = prune.trace(Split(), IMAGE)
    names = [group.name for group in graph.groups]
    assert names == ["stem.conv", "cv1.conv[0:8]", "cv1.conv[8:16]", "cv2.conv"]
    assert graph.bundles == [(0,), (1, 2), (3,)]


def test_a_depthwise_layer_has_the_channels_of_its_input() -> None:
    graph = prune.trace(SMALL["depthwise"](), IMAGE)
    assert graph.layer("dw.conv").kind == "depthwise"
    assert graph.layer("dw.conv").outputs == graph.layer("stem.conv").outputs
    assert graph.layer("grouped.conv").kind == "grouped"
    # Four groups of six: the i-th channels of all groups go together.
    assert len(set(graph.layer("grouped.conv").outputs)) == 6


def test_a_flatten_gives_each_channel_its_columns() -> None:
    graph = prune.trace(SMALL["depthwise"](), IMAGE)
    inputs = graph.layer("fc1").inputs
    assert len(inputs) == 96 and inputs[:4] == (inputs[0],) * 4
    assert graph.layer("fc1").kind == "linear"


class Strange(nn.Module):
    """Something without a rule in the middle, and a gate that is a parameter, with a value for each place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.out = Block(3, 8), Block(8, 8), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(1, 8, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "cumsum":
            x = x.cumsum(1)
        elif self.how == "parameter":
            x = x * self.scale
        elif self.how == "permuted":
            x = x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)
        elif self.how == "reshaped":
            x = x.view(1, 4, 2, 16, 16).transpose(1, 2).reshape(1, 8, 16, 16)
        elif self.how == "sliced":
            x = torch.cat([x[:, 3:], x[:, :3]], 1)
        elif self.how == "summed":
            x = x + x.sum(1, keepdim=True)
        return self.out(self.second(x))


@pytest.mark.parametrize(
    "how, reason",
    [
        ("cumsum", "cumsum.default in the model's own forward has no rule"),
        ("parameter", "a tensor in the model's own forward cannot be followed"),
        ("permuted", "softmax in the model's own forward is over the channels"),
        ("reshaped", "channels are reshaped in the model's own forward"),
        ("sliced", "sliced at fixed positions in the model's own forward"),
        ("summed", "channels are reduced in the model's own forward"),
    ],
)
def test_what_cannot_be_followed_is_frozen_with_a_reason_and_the_rest_is_exact(how: str, reason: str) -> None:
    model = Strange(how)
    graph = prune.trace(model, IMAGE)
    assert graph.frozen["first.conv"] == reason
    assert [group.name for group in graph.groups] == ["second.conv"]
    plan = prune.make_plan(graph, prune.score(graph, "random"), ratio=0.5, round_to=1)
    assert prune.verify(model, prune.apply(model, plan), plan, IMAGE) < 1e-10


def test_what_may_give_a_lost_tensor_its_shape_is_frozen() -> None:
    """`B, C, H, W = x.shape` is a number in a trace; another tensor that is viewed as that would not fit a cut x."""
    graph = prune.trace(SMALL["attending"](), IMAGE)
    assert graph.frozen["into.conv"] == "a tensor in 'attention' may be given its shape"
    assert [group.name for group in graph.groups] == ["stem.conv", "body.conv"]


def test_inputs_and_outputs_are_frozen() -> None:
    graph = prune.trace(yolo("yolov8n", width=0.0625), torch.rand(1, 3, 64, 64), adapter=YOLO_ADAPTER)
    assert set(graph.frozen) == {f"model.22.cv{n}.{level}.2" for n in (2, 3) for level in range(3)}
    assert set(graph.frozen.values()) == {"an output of the model"}


@pytest.mark.parametrize("name", ["yolov5n", "yolov8s"])
def test_flops_and_parameters_are_those_that_torch_counts(name: str) -> None:
    model = yolo(name, width=0.125).eval()
    image = torch.rand(1, 3, 96, 64)
    with FlopCounterMode(display=False) as counter:
        model(image)
    graph = prune.trace(model, image, adapter=YOLO_ADAPTER)
    dfl = 2 * 16 * 4 * 126  # the fixed convolution that decodes 126 anchors' boxes is not part of the raw outputs
    assert graph.flops() == counter.get_total_flops() - dfl
    assert graph.params() == sum(p.numel() for p in model.parameters()) - 16
    plan = prune.make_plan(graph, prune.score(graph, "l1"), flops=0.5, round_to=1)
    student = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    with FlopCounterMode(display=False) as counter:
        student(image)
    assert plan.flops_after == counter.get_total_flops() - dfl
    assert plan.params_after == sum(p.numel() for p in student.parameters())


def test_untraceable_and_unprunable_models_are_refused_in_one_line(capfd: pytest.CaptureFixture) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(prune.PruneError, match=r"^Branching cannot be traced: "):
        prune.trace(Branching(), IMAGE)

    class Selecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x[x > 0.5].numel() > 10 else -x

    for model, step in (Branching(), "x.sum()"), (Selecting(), "numel"):
        with pytest.raises(
            prune.PruneError, match=r"a step depends on the values of a tensor \(test_trace.py:"
        ) as error:
            prune.trace(model, IMAGE)
        line = int(str(error.value).partition(".py:")[2].partition(",")[0])
        assert step in Path(__file__).read_text().splitlines()[line - 1] and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # not what torch has traced until then
    with pytest.raises(prune.PruneError, match=r"^Conv2d has no channel that can be cut: an output of the model$"):
        prune.trace(nn.Conv2d(3, 8, 3), IMAGE)
