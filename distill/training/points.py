"""Points of features: modules of a network whose outputs losses compare, checked and captured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import prune
from distill.errors import DistillError
from distill.losses.context import NECK
from distill.machine.words import nearest

LISTED = "distill ls features model=... lists those there are"


def image_of(model: nn.Module, size: int) -> Tensor:
    """An image of `size` x `size` pixels on the device of a network, (1, 3, size, size)."""
    return torch.zeros(1, 3, size, size, device=next(model.parameters()).device)


def is_feature(output: prune.ModuleOutput) -> bool:
    """Whether losses can compare what a module gives: (B, C, H, W), whose channels can be followed."""
    return not output.reason and len(output.shape) == 4 and output.dim == 1


def feature_at(outputs: Mapping[str, prune.ModuleOutput], point: str) -> prune.ModuleOutput:
    """The output at a point. Raises `DistillError` if there is none that losses can compare."""
    if point not in outputs:
        raise DistillError(f"features: there is no module '{point}'{_near(point, outputs)}; {LISTED}")
    output = outputs[point]
    if not is_feature(output):
        reason = output.reason or f"gives {output.shape}, and losses compare features (B, C, H, W)"
        raise DistillError(f"features: '{point}' {reason}: name another module; {LISTED}")
    return output


def keep_at(
    plan: prune.PrunePlan,
    points: Iterable[str],
    neck: Callable[[], list[tuple[int, ...]]],
    outputs: Callable[[], Mapping[str, prune.ModuleOutput]],
) -> dict[str, list[tuple[int, ...]]]:
    """The teacher's channels that its pruned student still has, by point; a module is left out if every channel stays.

    Args:
        plan: the cut.
        points: "neck", or paths of modules.
        neck: what the plan keeps at each level of the neck; called if that is a point.
        outputs: what the modules of the teacher give, by path, as it was cut; called if one is a point.

    Raises:
        DistillError: a path that names no module, or one whose output losses cannot compare.
    """
    points = list(points)
    keep = {NECK: neck()} if NECK in points else {}
    given = outputs() if set(points) - {NECK} else {}
    for point in points:
        if point != NECK:
            output = feature_at(given, point)
            kept = output.kept(plan)
            keep |= {point: [kept]} if len(kept) < output.shape[1] else {}
    return keep


def check_alike(student: nn.Module, teacher: nn.Module, points: Iterable[str]) -> None:
    """Raise for a point that one of two networks lacks, or that means something else in the other.

    A teacher runs with its BatchNorms folded into the convolutions before them, so a convolution in it gives what the
    BatchNorm gives in the student. Blocks as a whole give the same.
    """
    for point in points:
        if point == NECK:
            continue
        parts = point.split(".")
        for depth in range(1, len(parts)):
            block = ".".join(parts[:depth])
            pair = [_module(network, block) for network in (student, teacher)]
            if None not in pair and type(pair[0]) is type(pair[1]) and _norms(pair[0]) != _norms(pair[1]):
                raise DistillError(
                    f"features: '{point}' is inside '{block}', whose BatchNorm is folded into its convolution in the "
                    f"teacher: name '{block}'"
                )
        for network, title in ((student, "the student"), (teacher, "the teacher")):
            if _module(network, point) is None:
                hint = _near(point, dict(network.named_modules()))
                raise DistillError(f"features: {title} has no module '{point}'{hint}; {LISTED}")


@contextmanager
def capturing(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules give while it lasts, by path. No hook stays.

    Raises:
        DistillError: a path that names no module, or one that did not run exactly once, gave no (B, C, H, W), or gave a
            tensor that the network has overwritten since.
    """
    given: dict[str, list[tuple[Any, int]]] = {path: [] for path in paths}
    captured: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path in paths:
            module = _module(model, path)
            if module is None:
                raise DistillError(
                    f"features: there is no module '{path}'{_near(path, dict(model.named_modules()))}; {LISTED}"
                )
            hooks.callback(module.register_forward_hook(partial(_note, given[path])).remove)
        yield captured
    for path, calls in given.items():
        captured[path] = _single(path, calls)


def _note(calls: list[tuple[Any, int]], module: nn.Module, inputs: Any, output: Any) -> None:
    calls.append((output, _version(output)))


def _single(path: str, calls: Sequence[tuple[Any, int]]) -> Tensor:
    """The one tensor that a module gave."""
    if len(calls) != 1:
        reason = f"runs {len(calls)} times in one pass" if calls else "does not run"
    elif not isinstance(calls[0][0], Tensor) or calls[0][0].dim() != 4:
        reason = "does not give one tensor (B, C, H, W)"
    elif _version(calls[0][0]) != calls[0][1]:
        reason = "gives a tensor that the next module overwrites"
    else:
        return calls[0][0]
    raise DistillError(f"features: '{path}' {reason}: name another module; {LISTED}")


def _version(value: Any) -> int:
    """How often a tensor was written to. Inference tensors do not count that."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _norms(block: nn.Module | None) -> set[str]:
    """The BatchNorms directly in a block."""
    children = block.named_children() if block is not None else ()
    return {name for name, child in children if isinstance(child, nn.modules.batchnorm._BatchNorm)}


def _near(point: str, names: Mapping[str, Any]) -> str:
    return nearest(point, [NECK, *filter(None, names)])
