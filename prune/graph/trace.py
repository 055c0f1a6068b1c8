"""torch.export -> ChannelGraph."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from torch import Tensor, nn

from prune.errors import PruneError
from prune.graph.graph import ChannelGraph, Channels, Group, Layer, Norm, Split
from prune.graph.rules import Rules
from prune.program.owners import Owners
from prune.program.raw import export, set_raw


def trace(model: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Find which channels of `model` live and die together.

    The model is traced on a copy, in eval mode, with a detection head emitting its raw outputs; `model` is untouched.

    Args:
        model: Any module that torch.export can trace.
        example_input: (N, C, H, W) tensor, or whatever one tensor the model takes. FLOPs are counted at this size.

    Returns:
        The graph, with every channel that may not be cut and the reason.

    Raises:
        PruneError: The model cannot be traced, or nothing in it can be cut.
    """
    try:
        copied = set_raw(copy.deepcopy(model))
        program = export(copied, example_input)
    except Exception as error:  # torch.export raises many types; the first line is the part that tells
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PruneError(f"{type(model).__name__} cannot be traced: {reason}") from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    rules = Rules(Owners(copied, {placeholder: name.removeprefix("net.") for placeholder, name in names.items()}))
    for node in program.graph.nodes:
        if node.op == "call_function":
            rules.apply(node)
        elif node.op == "output":
            rules.output(node)
        elif node.name in signature.user_inputs:
            rules.input(node)
        else:
            rules.vectors[node] = None  # a weight or a constant
    graph = _graph(rules, model, tuple(example_input.shape))
    if not graph.groups:
        reasons = "; ".join(sorted(set(graph.frozen.values()))) or "it has no convolution or linear layer"
        raise PruneError(f"{type(model).__name__} has no channel that can be cut: {reasons}")
    return graph


def _graph(rules: Rules, model: nn.Module, shape: tuple[int, ...]) -> ChannelGraph:
    while any(_even_out(rules, parts) for _, parts, _ in rules.chunks):  # one split may tie what another took as free
        pass
    roots, keys, frozen_roots = _keys(rules)
    members: dict[tuple, list[int]] = {}
    for root, key in keys.items():
        if root not in frozen_roots:
            members.setdefault(key, []).append(root)

    def ids(atoms: list[int]) -> Channels:
        return tuple(roots[a] for a in atoms)

    layers = tuple(
        Layer(**{**spec, "inputs": ids(spec["inputs"]), "outputs": ids(spec["outputs"])})
        for spec in rules.layers.values()
    )
    reasons = {layer.name: [frozen_roots[c] for c in layer.outputs if c in frozen_roots] for layer in layers}
    return ChannelGraph(
        model=model,
        input_shape=shape,
        layers=layers,
        norms=tuple(Norm(name, ids(atoms), affine) for name, (atoms, affine) in rules.norms.items()),
        groups=tuple(
            Group(i, _group_name(channels, layers), tuple(channels)) for i, channels in enumerate(members.values())
        ),
        splits=tuple(Split(owner, tuple(ids(part) for part in parts)) for owner, parts, _ in rules.chunks),
        frozen={name: why[0] for name, why in reasons.items() if why} | rules.whole,
        whole_flops=rules.whole_flops,
    )


def _keys(rules: Rules) -> tuple[list[int], dict[int, tuple], dict[int, str]]:
    """Root of every atom; per root, what tells its group: (labels, how often each layer reads it); frozen roots."""
    roots = rules.atoms.roots()
    labels: dict[int, set[tuple]] = {}
    for root, of_atom in zip(roots, rules.atoms.labels, strict=True):
        labels.setdefault(root, set()).update(of_atom)
    reads: dict[int, Counter] = {root: Counter() for root in labels}
    for name, spec in rules.layers.items():
        for atom in spec["inputs"]:
            reads[roots[atom]][name] += 1
    keys: dict[int, tuple[Any, Any]] = {r: (frozenset(labels[r]), frozenset(reads[r].items())) for r in labels}
    return roots, keys, {roots[a]: reason for a, reason in rules.atoms.reasons.items()}


def _even_out(rules: Rules, parts: list[list[int]]) -> bool:
    """Parts that are one group each may lose different channels, equally many; others must be cut in step.

    Returns:
        Whether that ties channels that were free of each other.
    """
    roots, keys, frozen = _keys(rules)
    kinds = [{keys[roots[a]] for a in part} for part in parts]
    often = {len(part) // len({roots[a] for a in part}) for part in parts}  # how often a part holds a channel
    if not (
        len(often) > 1
        or any(len(kind) > 1 for kind in kinds)
        or any(roots[a] in frozen for part in parts for a in part)
    ):
        return False
    for part in parts[1:]:
        rules.atoms.unite(parts[0], part)
    return rules.atoms.roots() != roots


def _group_name(channels: list[int], layers: tuple[Layer, ...]) -> str:
    """The first layer that produces the channels, and where in its outputs they stand if they are not all of them."""
    layer = next(layer for layer in layers if channels[0] in layer.outputs)
    places = [i for i, channel in enumerate(layer.outputs) if channel in set(channels)]
    return layer.name if len(places) == len(layer.outputs) else f"{layer.name}[{places[0]}:{places[-1] + 1}]"
