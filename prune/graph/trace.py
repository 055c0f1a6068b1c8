"""torch.export -> ChannelGraph."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from prune.adapter import Adapter, adapter_for
from prune.errors import PruneError
from prune.graph.flops import whole_flops
from prune.graph.graph import ChannelGraph, ChannelParameter, Channels, Group, Layer, Norm, Split
from prune.graph.rules import follow
from prune.graph.tracker import ChannelTracker, Vector
from prune.keywords import public
from prune.program.operators import Owners
from prune.program.raw import export, raw_copy
from prune.program.sizes import Shapes, sizes_read

_LOG = logging.getLogger(__name__)


@public()
def trace(model: nn.Module, example_input: Tensor, *, adapter: Adapter | None = None) -> ChannelGraph:
    """Find which channels of `model` live and die together.

    The model is traced on a copy, in eval mode, returning its raw outputs; `model` is untouched.

    Args:
        model: Any module that torch.export can trace.
        example_input: (N, C, H, W) tensor, or whatever one tensor the model takes. FLOPs are counted at this size.
        adapter: What `prune` has to be told about the model; default `prune.adapter_for(model)`. The graph keeps it.

    Returns:
        The graph, with every channel that may not be cut and the reason.

    Raises:
        PruneError: The model cannot be traced, or nothing in it can be cut.
    """
    adapter = adapter or adapter_for(model)
    with in_a_line(model):
        copied = raw_copy(model, adapter)
        program = export(copied, example_input, adapter)
    tracker = follow_all(copied, program, adapter)
    graph = _graph(tracker, model, program)
    if not graph.groups:
        reasons = "; ".join(sorted(set(graph.frozen.values()))) or "it has no convolution or linear layer"
        raise PruneError(f"{type(model).__name__} has no channel that can be cut: {reasons}")
    for name, reason in graph.frozen.items():
        _LOG.debug("%s keeps its channels: %s", name, reason)
    return graph


@contextmanager
def in_a_line(model: nn.Module) -> Iterator[None]:
    """Whatever `torch.export` raises becomes a `PruneError` of one line: it raises many types."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # the first line is the part that tells
        raise PruneError(f"{type(model).__name__} cannot be traced: {reason}") from error


def follow_all(copied: nn.Module, program: torch.export.ExportedProgram, adapter: Adapter) -> ChannelTracker:
    """The channels of every value of an exported raw copy."""
    signature = program.graph_signature
    inputs = [node for node in program.graph.nodes if node.name in signature.user_inputs]

    @cache
    def sizes() -> dict[Shapes, set[int]]:  # a pass forward, for models that shuffle channels alone
        return sizes_read(copied, program.example_inputs[0][0])

    tracker = ChannelTracker(Owners(copied, signature), adapter, len(inputs[0].meta["val"]), sizes)
    for node in program.graph.nodes:
        if node.op == "call_function":
            follow(tracker, node)
        elif node.op == "output":
            tracker.give_up(node, "an output of the model")
        elif node.name in signature.user_inputs:
            shape = node.meta["val"].shape
            dim = 1 if len(shape) == 4 else len(shape) - 1
            tracker.vectors[node] = Vector(dim, tracker.atoms.fresh(shape[dim], ("input",)))
            tracker.freeze(node, "the model's input")
        else:
            tracker.constant(node)
    return tracker


def _graph(tracker: ChannelTracker, model: nn.Module, program: torch.export.ExportedProgram) -> ChannelGraph:
    roots, keys, frozen = known = _keys(tracker)
    waiting = list(tracker.splits)
    while waiting:
        if tie_split_parts(tracker, waiting.pop().parts, known):
            roots, keys, frozen = known = _keys(tracker)
            waiting = list(tracker.splits)  # one split may tie what another took as free
    members: dict[Hashable, list[int]] = {}
    for root, key in keys.items():
        if root not in frozen and any(label[0] == "layer" for label in key[0]):  # no parameter that scales no channel
            members.setdefault(key, []).append(root)

    def ids(atoms: Iterable[int]) -> Channels:
        return tuple(roots[a] for a in atoms)

    shares = tracker.adapter.shares(model)
    layers = tuple(
        replace(layer, inputs=ids(layer.inputs), outputs=ids(layer.outputs), share=_share(layer.name, shares))
        for layer in tracker.layers.values()
    )
    shrinking = {root for roots in members.values() for root in roots}
    parameters = {path: ids(atoms) for path, atoms in tracker.parameters.items()}
    reasons = {layer.name: [frozen[c] for c in layer.outputs if c in frozen] for layer in layers}
    return ChannelGraph(
        model=model,
        input_shape=tuple(program.example_inputs[0][0].shape),
        layers=layers,
        norms=tuple(Norm(name, ids(atoms), affine) for name, (atoms, affine) in tracker.norms.items()),
        parameters=tuple(ChannelParameter(*each) for each in parameters.items() if shrinking.intersection(each[1])),
        groups=tuple(
            Group(i, _group_name(channels, layers), tuple(channels)) for i, channels in enumerate(members.values())
        ),
        splits=tuple(Split(split.owner, split.stored, tuple(map(ids, split.parts))) for split in tracker.splits),
        frozen={name: why[0] for name, why in reasons.items() if why} | tracker.whole,
        adapter=tracker.adapter,
        whole_flops=whole_flops(program, tracker),
    )


Keys = tuple[list[int], dict[int, tuple[frozenset, frozenset]], dict[int, str]]


def _keys(tracker: ChannelTracker) -> Keys:
    """Root of every atom; per root, what tells its group: (labels, how often each layer reads it); frozen roots."""
    roots = tracker.atoms.roots()
    labels: dict[int, set[tuple]] = {}
    for root, own in zip(roots, tracker.atoms.labels, strict=True):
        labels.setdefault(root, set()).update(own)
    reads: dict[int, Counter[str]] = {root: Counter() for root in labels}
    for name, layer in tracker.layers.items():
        for atom in layer.inputs:
            reads[roots[atom]][name] += 1
    keys: dict[int, tuple[frozenset, frozenset]] = {
        r: (frozenset(labels[r]), frozenset(reads[r].items())) for r in labels
    }
    return roots, keys, {roots[a]: reason for a, reason in tracker.atoms.reasons.items()}


def tie_split_parts(tracker: ChannelTracker, parts: tuple[Channels, ...], known: Keys) -> bool:
    """Unite the parts of a split that must lose the same channels. Parts of one group each need only lose equally many.

    Args:
        tracker: Of the trace.
        parts: Atoms of the split's parts.
        known: What `_keys` gives now.

    Returns:
        Whether that ties channels that were free of each other.
    """
    roots, keys, frozen = known
    kinds = [{keys[roots[a]] for a in part} for part in parts]
    repeats = {len(part) // len({roots[a] for a in part}) for part in parts}  # how often a part holds a channel
    free = not any(roots[a] in frozen for part in parts for a in part)
    if len(repeats) == 1 and all(len(kind) == 1 for kind in kinds) and free:
        return False
    for part in parts[1:]:
        tracker.atoms.unite(parts[0], part)
    return tracker.atoms.roots() != roots


def _share(path: str, shares: Mapping[str, float]) -> float:
    return next((share for module, share in shares.items() if f"{path}.".startswith(f"{module}.")), 1.0)


def _group_name(channels: list[int], layers: tuple[Layer, ...]) -> str:
    """The first layer that produces the channels, and where in its outputs they stand if they are not all of them."""
    layer = next(layer for layer in layers if channels[0] in layer.outputs)
    places = [i for i, channel in enumerate(layer.outputs) if channel in set(channels)]
    return layer.name if len(places) == len(layer.outputs) else f"{layer.name}[{places[0]}:{places[-1] + 1}]"
