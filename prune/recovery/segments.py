"""Blocks of a traced network: runs of operators between which its values are compared with another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prune.cut.plan import PrunePlan
from prune.program.interpret import Program
from prune.program.operators import channel_dim, operator_name


@dataclass(frozen=True)
class Target:
    """A value that leaves a block and can be compared.

    Attributes:
        node: Its number among the program's nodes.
        dim: The dimension that holds channels.
        channels: The model's channels that the student still has; None: all of them.
    """

    node: int
    dim: int
    channels: tuple[int, ...] | None

    def kept(self, value: Tensor) -> Tensor:
        """Of the model's value, the part that the student has too."""
        if self.channels is None:
            return value
        return value.index_select(self.dim, torch.tensor(self.channels, device=value.device))


@dataclass(frozen=True)
class Segment:
    """A block of operators.

    Attributes:
        name: Path of the module that they belong to.
        nodes: Their numbers among the program's nodes. Weights and inputs precede the first segment.
        targets: The values that later blocks, or the caller, use.
    """

    name: str
    nodes: range
    targets: tuple[Target, ...]


def segments(program: Program, plan: PrunePlan) -> list[Segment]:
    """The model cut into its top-level blocks, in execution order. One without weights is joined to the next."""
    blocks = _blocks(program.model)
    first = next(i for i, node in enumerate(program.nodes) if node.op == "call_function")
    names, starts = [""], [first]
    for i, node in enumerate(program.nodes[first:], first):
        name = _owner(node, blocks)
        if name is not None and name != names[-1]:
            if any(program.layer(each) is not None for each in program.nodes[starts[-1] : i]):
                names.append(name)
                starts.append(i)
            else:
                names[-1] = name
    ends = [*starts[1:], len(program.nodes) - 1]  # the last node is the output
    number, result = program.number, []
    for name, start, end in zip(names, starts, ends, strict=True):
        nodes = (node for node in program.nodes[start:end] if node.op == "call_function")
        leaving = [node for node in nodes if any(number[user] >= end for user in node.users)]
        channels = {node: channels for node in leaving if (channels := kept_channels(program, plan, node)) is not None}
        targets = tuple(Target(number[node], dim, indices) for node, (dim, indices) in channels.items())
        result.append(Segment(name, range(start, end), targets))
    return result


def _blocks(model: nn.Module) -> set[str]:
    """Paths of the outermost modules that stand beside others: the children of the first module with several."""
    path, module = "", model
    while True:
        children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
        if len(children) != 1:
            return {f"{path}{name}" for name, _ in module.named_children()}
        path, module = f"{path}{children[0][0]}.", children[0][1]


def _owner(node: Node, blocks: set[str]) -> str | None:
    """The block whose forward computes the node; None for what no block does."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        name = path.removeprefix("net").removeprefix(".")
        if name in blocks:
            return name
    return None


Channels = tuple[int, tuple[int, ...] | None]  # dimension that holds them; indices of the kept ones, None for all


def kept_channels(program: Program, plan: PrunePlan, node: Node) -> Channels | None:
    """Which of the model's channels of a node's value the student has; None if that cannot be told.

    Channels are followed back to the layers that made them.

    Args:
        program: Of the model.
        plan: The student's.
        node: Of the program.
    """
    name, value = program.layer(node), node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    if name is not None:
        dim, indices = channel_dim(node), plan.keep.get(name)
        return dim, None if indices is None or len(indices) == value.shape[dim] else indices
    if operator_name(node) == "cat":
        return _concatenated(program, plan, node)
    for used in node.all_input_nodes:  # of a sum or product any: its operands are cut alike
        channels = kept_channels(program, plan, used) if used.op == "call_function" else None
        if channels is None:
            continue
        dim, indices = channels
        source = used.meta["val"]
        if source.dim() == value.dim() and source.shape[dim] == 1 < value.shape[dim]:
            continue  # one channel weighs all those of another operand
        turned = operator_name(node) in ("permute", "transpose", "t")
        if not turned and source.dim() == value.dim() and source.shape[dim] == value.shape[dim]:
            return channels
        # Elements moved between dimensions can only be compared if none is missing.
        return (1, None) if indices is None else None
    return None


def _concatenated(program: Program, plan: PrunePlan, node: Node) -> Channels | None:
    args: Any = node.args
    parts, dim, rank = args[0], args[1] if len(args) > 1 else 0, node.meta["val"].dim()
    channels = [each for part in parts if (each := kept_channels(program, plan, part)) is not None]
    if len(channels) < len(parts):
        return None
    if any(own_dim % rank != dim % rank for own_dim, _ in channels):  # along another dimension: all are cut alike
        return channels[0] if len({indices for _, indices in channels}) == 1 else None
    if all(indices is None for _, indices in channels):
        return dim, None
    kept, offset = [], 0
    for part, (_, indices) in zip(parts, channels, strict=True):
        width = part.meta["val"].shape[dim]
        kept += [offset + channel for channel in (range(width) if indices is None else indices)]
        offset += width
    return dim, tuple(kept)
