from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from prune.cut.plan import plan_from_channels
from prune.importance.statistics import gaussian
from prune.program.interpret import Program
from prune.program.raw import raw_copy, refill, tensors
from prune.recovery.reconstruct import target_weights
from prune.recovery.segments import segments
from tests.prune.networks import SMALL, Block, randomize, yolo
from tests.prune.test_repair import cut, distance


class Deep(nn.Module):
    """Blocks of several layers, where solving layer by layer leaves something to win."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 12)
        self.first = nn.Sequential(Block(12, 24), Block(24, 24), Block(24, 12))
        self.last = nn.Sequential(Block(12, 24, s=2), Block(24, 24), nn.Conv2d(24, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.stem(x)))


def network(name: str) -> tuple[nn.Module, int]:
    return (randomize(SMALL[name]()), 16) if name in SMALL else (yolo(name, width=0.0625), 64)


def test_outputs_come_closer_than_the_closed_form_brought_them() -> None:
    torch.manual_seed(0)
    model = randomize(Deep())
    images, unseen = torch.randn(96, 3, 16, 16), torch.randn(16, 3, 16, 16)
    student, plan = cut(model, images)
    prune.repair(student, model, plan, images)
    before = distance(student, model, unseen)
    blocks = prune.reconstruct(student, model, plan, images, steps=60, lr=2e-3)
    assert [block.name for block in blocks] == ["stem", "first", "last"]
    assert distance(student, model, unseen) < 0.95 * before
    assert any(block.changed for block in blocks)
    assert all(block.error_after < block.error_before for block in blocks if block.changed)


@pytest.mark.parametrize("name", [*SMALL, "yolov5n"])
def test_blocks_cover_every_operator_once_and_compare_like_with_like(name: str) -> None:
    """With the cut channels zero in the teacher, what is compared must be equal, and it must be all that leaves."""
    model, side = network(name)
    images = torch.rand(2, 3, side, side)
    student, plan = cut(model, images)
    teacher = raw_copy(model, YOLO_ADAPTER)
    silenced = _silence(teacher, plan)
    programs = Program(silenced, images, YOLO_ADAPTER), Program(raw_copy(student, YOLO_ADAPTER), images, YOLO_ADAPTER)
    parts = segments(programs[0], plan)
    covered = [i for part in parts for i in part.nodes]
    assert covered == list(range(covered[0], len(programs[0].nodes) - 1))
    assert all(node.op == "placeholder" for node in programs[0].nodes[: covered[0]])
    values: list[dict[int, torch.Tensor]] = []
    for program in programs:
        seen: dict[int, torch.Tensor] = {}
        number = {node: i for i, node in enumerate(program.nodes)}

        def keep(node, value, _, seen=seen, number=number):
            if isinstance(value, torch.Tensor):
                seen[number[node]] = value.clone()
            return value

        with torch.no_grad():
            program.run(images, keep)
        values.append(seen)
    targets = [target for part in parts for target in part.targets]
    assert targets
    for target in targets:
        torch.testing.assert_close(target.kept(values[0][target.node]), values[1][target.node], atol=1e-4, rtol=1e-4)
    if name.startswith("yolo"):  # every block that has weights is taught
        assert all(part.targets for part in parts)
        assert [part.name for part in parts][:3] == ["model.0", "model.1", "model.2"]


def _silence(teacher: nn.Module, plan: prune.PrunePlan) -> nn.Module:
    """No layer reads a channel that was cut."""
    modules = dict(teacher.named_modules())
    with torch.no_grad():
        for name, kept in plan.keep_inputs.items():
            weight = modules[name].weight
            gone = torch.ones(modules[name].in_channels if weight.dim() == 4 else weight.shape[1], dtype=torch.bool)
            gone[list(kept)] = False
            if weight.shape[1] == len(gone):  # a depthwise or grouped layer has its own channel's weights
                weight[:, gone] = 0
            else:
                columns = gone.view(modules[name].groups, -1)
                for group, rows in enumerate(weight.unflatten(0, (modules[name].groups, -1)).unbind(0)):
                    rows[:, columns[group]] = 0
    return teacher


def test_a_student_that_is_right_and_one_that_is_not_trained_stay_as_they_are() -> None:
    model, images = randomize(SMALL["residual"]()), torch.rand(48, 3, 16, 16)
    graph = prune.trace(model, images[:1])
    whole = plan_from_channels(graph, set(graph.group_of))
    same = prune.apply(model, whole)
    assert not any(block.changed for block in prune.reconstruct(same, model, whole, images, steps=5))
    student, plan = cut(model, images)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    blocks = prune.reconstruct(student, model, plan, images, steps=0)
    assert all(block.error_after == block.error_before for block in blocks)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_a_block_that_ends_worse_keeps_its_weights() -> None:
    model, images = randomize(SMALL["pyramid"]()), torch.rand(48, 3, 16, 16)
    student, plan = cut(model, images)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    blocks = prune.reconstruct(student, model, plan, images, steps=3, lr=1e3)
    assert not any(block.changed for block in blocks)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_only_the_students_weights_change_and_the_same_seed_changes_them_alike() -> None:
    model, images = randomize(SMALL["depthwise"]()), torch.rand(48, 3, 16, 16)
    student, plan = cut(model, images)
    twin = prune.apply(model, plan, adapter=YOLO_ADAPTER)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    statistics = {key: value.clone() for key, value in student.state_dict().items() if "running" in key}
    random = torch.get_rng_state()
    for each in (student.train(), twin):
        prune.reconstruct(each, model, plan, images, steps=3, seed=3)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(student.state_dict()[key], value) for key, value in statistics.items())
    pairs = zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(module.training for module in student.modules())
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in student.parameters())


def test_outputs_are_put_back_into_their_structure() -> None:
    returned = {"feats": [torch.zeros(1)], "maps": [torch.zeros(2), (torch.zeros(3), None)], "scores": torch.zeros(4)}
    outputs = YOLO_ADAPTER.outputs(returned)
    flat = [torch.ones(2), torch.ones(3), torch.ones(4)]
    refilled = refill(outputs, iter(flat))
    assert [t.shape for t in tensors(refilled)] == [t.shape for t in flat] and "feats" not in refilled
    assert all((t == 1).all() for t in tensors(refilled)) and refilled["maps"][1][1] is None


def test_an_output_that_is_called_feats_is_one_unless_a_detection_head_gives_it() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    for returned, listed in (
        ({"feats": [one], "boxes": two, "scores": two}, 2),
        ({"one2many": {"feats": [one], "boxes": two, "scores": two}, "one2one": {"feats": [one], "maps": [two]}}, 3),
        ({"feats": [one], "maps": [two]}, 1),
        ({"feats": [one], "scores": two}, 2),
        ({"feats": one}, 1),
        (namedtuple("Out", "feats logits")(one, [two]), 2),
    ):
        outputs = YOLO_ADAPTER.outputs(returned)
        assert len(tensors(outputs)) == listed
        refilled = refill(outputs, iter([torch.ones(1)] * listed))
        assert type(refilled) is type(returned) and all((t == 1).all() for t in tensors(refilled))


def test_what_a_block_changes_in_place_is_there_for_the_next_step() -> None:
    """Dropout in eval mode gives its input itself, which is the block's input here, held for all steps."""
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        late = nn.Sequential(nn.Dropout(0.1), nn.SiLU(inplace), Block(16, 16), nn.Conv2d(16, 4, 1))
        model = randomize(nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), late))
        images = torch.rand(24, 3, 8, 8)
        student, plan = cut(model, images)
        found.append(prune.reconstruct(student, model, plan, images, steps=10, lr=3e-3))
    assert found[0] == found[1] and found[0][-1].changed


def test_a_layer_of_two_blocks_is_trained_in_neither() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice, self.between, self.last = (
                Block(3, 16),
                Block(16, 16),
                Block(16, 16),
                nn.Conv2d(16, 4, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.twice(self.between(self.twice(self.stem(x)))))

    torch.manual_seed(0)
    model, images = randomize(Shared()), torch.rand(24, 3, 8, 8)
    student, plan = cut(model, images)
    before = {name: value.clone() for name, value in student.named_parameters()}
    prune.reconstruct(student, model, plan, images, steps=10)
    changed = {name.split(".")[0] for name, value in student.named_parameters() if not torch.equal(value, before[name])}
    assert "between" in changed and "twice" not in changed


def test_each_channel_has_a_weight_of_its_own_behind_linear_layers_too() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()), nn.Linear(12, 4)]
    model, tokens = nn.Sequential(*layers).eval(), torch.randn(6, 5, 8)
    plan = prune.keep_all(prune.trace(model, tokens))
    program = Program(raw_copy(model, YOLO_ADAPTER), tokens, YOLO_ADAPTER)
    weights = target_weights(program, segments(program, plan), [tokens], gaussian, seed=0)
    sizes = {target.dim: each.shape for target, ((each, _),) in weights.items()}
    assert sizes and all(shape[-1] > 1 for shape in sizes.values())
    assert all(each.unique().numel() > 1 for ((each, _),) in weights.values())
