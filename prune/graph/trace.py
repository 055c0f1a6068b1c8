"""torch.export -> ChannelGraph."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from prune.adapter import Adapter, adapter_for
from prune.errors import PruneError
from prune.graph.flops import flops_beside_layers
from prune.graph.graph import (
    ChannelGraph,
    ChannelParameter,
    Channels,
    Group,
    Layer,
    Norm,
    Product,
    Split,
    StoredNumber,
)
from prune.graph.rules import follow
from prune.graph.ties import settle
from prune.graph.tracker import ChannelTracker, Vector
from prune.keywords import public
from prune.program.operators import Owners
from prune.program.raw import export, raw_copy
from prune.program.sizes import SizeWatch, reads_of

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
        watch = SizeWatch()
        program = export(copied, example_input, adapter, watch)
    tracker = follow_all(copied, program, adapter, watch)
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


def follow_all(
    copied: nn.Module, program: torch.export.ExportedProgram, adapter: Adapter, watch: SizeWatch
) -> ChannelTracker:
    """The channels of every value of an exported raw copy, with what has watched its sizes."""
    signature = program.graph_signature
    names = set(signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.name in names]

    tracker = ChannelTracker(
        Owners(copied, signature), adapter, len(inputs[0].meta["val"]), reads_of(program.graph), watch.elsewhere
    )
    for node in program.graph.nodes:
        if node.op == "call_function":
            follow(tracker, node)
        elif node.op == "output":
            tracker.give_up(node, "an output of the model")
        elif node.name in names:
            shape = node.meta["val"].shape
            dim = 1 if len(shape) == 4 else len(shape) - 1
            tracker.vectors[node] = Vector(dim, tracker.atoms.fresh(shape[dim], ("input",)))
            tracker.freeze(node, "the model's input")
        else:
            tracker.constant(node)
    return tracker


def _graph(tracker: ChannelTracker, model: nn.Module, program: torch.export.ExportedProgram) -> ChannelGraph:
    now = settle(tracker)
    roots, keys, frozen = now.roots, now.keys, now.frozen
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
    whole_flops, products = flops_beside_layers(program, tracker)
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
        whole_flops=whole_flops,
        products=tuple(Product(ids(atoms), flops) for atoms, flops in products),
        numbers=tuple(
            StoredNumber(each.path, each.name, each.value, ids(vectors[0]))
            for each, vectors in tracker.attributes.items()
            if shrinking.intersection(ids(vectors[0]))
        ),
    )


def _share(path: str, shares: Mapping[str, float]) -> float:
    return next((share for module, share in shares.items() if f"{path}.".startswith(f"{module}.")), 1.0)


def _group_name(channels: list[int], layers: tuple[Layer, ...]) -> str:
    """The first layer that produces the channels, and where in its outputs they stand if they are not all of them."""
    members = set(channels)
    layer = next(layer for layer in layers if not members.isdisjoint(layer.outputs))
    places = [i for i, channel in enumerate(layer.outputs) if channel in members]
    return layer.name if len(places) == len(layer.outputs) else f"{layer.name}[{places[0]}:{places[-1] + 1}]"
