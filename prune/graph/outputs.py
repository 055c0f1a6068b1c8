"""Which channels the output of each module carries, and which of them a plan keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from prune.adapter import Adapter, adapter_for
from prune.errors import PruneError
from prune.graph.trace import follow_all, in_a_line
from prune.graph.tracker import ChannelTracker
from prune.keywords import public
from prune.program.raw import export, raw_copy
from prune.program.sizes import SizeWatch

if TYPE_CHECKING:
    from prune.cut.plan import PrunePlan

Source = tuple[str, int] | None  # the layer that makes a channel, and its place there; None: of no layer, it stays


@dataclass(frozen=True)
class ModuleOutput:
    """What one module of a traced network gives.

    Attributes:
        name: Path of the module, as in `model.named_modules()`.
        kind: Its class.
        shape: Of its output, for the example input; empty if it gives no single tensor.
        dim: The dimension that holds channels.
        sources: Per channel, the layer that makes it and its place among that layer's outputs.
        reason: Why the channels cannot be followed, to stand behind the name; empty if they can.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dim: int = 1
    sources: tuple[Source, ...] = field(default=(), repr=False)
    reason: str = ""

    def kept(self, plan: PrunePlan) -> tuple[int, ...]:
        """The channels of the full model's output that the cut model's output has, ascending: its channel i is `kept[i]`.

        Raises:
            PruneError: The channels cannot be followed.
        """
        if self.reason:
            raise PruneError(f"'{self.name}' {self.reason}")
        layers = {source[0] for source in self.sources if source is not None}
        kept = {layer: frozenset(plan.keep[layer]) for layer in layers if layer in plan.keep}
        return tuple(
            place
            for place, source in enumerate(self.sources)
            if source is None or source[0] not in kept or source[1] in kept[source[0]]
        )


@public()
def trace_outputs(
    model: nn.Module, example_input: Tensor, *, adapter: Adapter | None = None
) -> dict[str, ModuleOutput]:
    """Follow the channels to the output of every module, by path; `model` is untouched.

    A module that runs several times, gives no single tensor, or gives one whose channels cannot be followed is there too,
    with the reason.

        plan.keep["model.4.cv2.conv"]                                   # what a layer keeps
        prune.trace_outputs(model, images[:1])["model.4"].kept(plan)    # what a block, a concat or a pooling keeps

    Args:
        model: Any module that torch.export can trace.
        example_input: As for `prune.trace`; shapes are those at its size.
        adapter: As for `prune.trace`.

    Raises:
        PruneError: The model cannot be traced.
    """
    adapter = adapter or adapter_for(model)
    with in_a_line(model):
        copied = raw_copy(model, adapter)
        with _watched(copied) as given:
            watch = SizeWatch()
            program = export(copied, example_input, _giving_also(adapter, given), watch)
    modules = dict(model.named_modules(remove_duplicate=False))
    tracker = follow_all(copied, program, adapter, watch)
    values = _single_tensors(given)
    nodes = dict(zip(values, program.graph.output_node().args[0][: len(values)], strict=True))
    sources = _sources(tracker)
    return {
        name: _output(name, module, given.get(name, []), nodes.get(name), tracker, sources)
        for name, module in modules.items()
        if name
    }


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[Any]]]:
    """For a while, every module notes what it gives in each call."""
    given: dict[str, list[Any]] = {}
    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            note = given.setdefault(name, []).append
            handles.append(module.register_forward_hook(lambda module, inputs, output, note=note: note(output)))
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def _giving_also(adapter: Adapter, given: Mapping[str, list[Any]]) -> Adapter:
    """An adapter with which what modules have given are outputs of the model too."""
    return replace(adapter, outputs=lambda returned: (list(_single_tensors(given).values()), adapter.outputs(returned)))


def _single_tensors(given: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """Of the modules that ran once, and gave one tensor."""
    return {name: calls[0] for name, calls in given.items() if len(calls) == 1 and isinstance(calls[0], Tensor)}


def _sources(tracker: ChannelTracker) -> dict[int, Source]:
    """Of every atom, the layer that made it."""
    sources: dict[int, Source] = {}
    for name, layer in tracker.layers.items():
        for place, atom in enumerate(layer.outputs):
            sources.setdefault(atom, (name, place))  # a depthwise layer hands through what another has made
    return sources


def _output(
    name: str,
    module: nn.Module,
    calls: list[Any],
    node: Any,
    tracker: ChannelTracker,
    sources: Mapping[int, Source],
) -> ModuleOutput:
    kind = type(module).__name__
    if not calls:
        return ModuleOutput(name, kind, reason="does not run")
    if len(calls) > 1:
        return ModuleOutput(name, kind, reason=f"runs {len(calls)} times in one pass")
    if node is None:
        return ModuleOutput(name, kind, reason=f"gives a {type(calls[0]).__name__}, not one tensor")
    vector, shape = tracker.vector(node), tuple(calls[0].shape)
    if vector is None:
        return ModuleOutput(name, kind, shape, reason=f"has channels that cannot be followed: {tracker.why_lost(node)}")
    return ModuleOutput(name, kind, shape, vector.dim, tuple(map(sources.get, vector.atoms)))
