"""Networks of forks: opened with the classes of the fork's own code, and written so that the fork opens them again.

The network and its head become those that this project knows, if they give what they gave with the fork's own code.
What stands before the head keeps the fork's classes.
"""

from __future__ import annotations

import dis
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.machine.words import printable
from distill.yolo.checkpoint.allowed import module_class
from distill.yolo.checkpoint.checkout import Checkout, checkout
from distill.yolo.checkpoint.saving import remember
from distill.yolo.families.table import family_of
from distill.yolo.upstream import conv

_SIZE = 64  # pixels; a network with a larger stride gets its stride
_TOLERANCE = 1e-3  # of the largest output


@dataclass(frozen=True)
class Opened:
    """A fork's checkpoint."""

    content: Any  # with the fork's classes
    code: Checkout


def open_with(path: Path, names: Sequence[str], code: Sequence[str | Path], trust: bool) -> Opened | None:
    """Unpickle a checkpoint with the first folder of code that has the classes of it; None if it is of another project.

    Args:
        path: the checkpoint.
        names: the dotted names that it uses.
        code: folders.
        trust: whether the user trusts the checkpoint and the code.

    Raises:
        DistillError: `trust` is false; or the folders have modules of these names, but none of them all of the classes.
    """
    if code and not trust:
        raise DistillError(
            f"code={code[0]}: the Python files of that folder are run, and so is what is pickled in a checkpoint of it: add "
            "trust=true if you trust both"
        )
    roots = {name.partition(".")[0] for name in names}
    folders = [each for each in map(checkout, code) if each.roots & roots]
    if not folders:
        return None
    chosen = _first_that_has(folders, path, names)
    try:
        with chosen.imported():
            content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the code may raise anything
        text = printable(first_line(error), 200)
        raise DistillError(f"{path} cannot be unpickled with the code in {chosen.folder} ({text})") from error
    return Opened(content, chosen)


def _first_that_has(folders: Sequence[Checkout], path: Path, names: Sequence[str]) -> Checkout:
    errors = []
    for each in folders:
        try:
            each.check(names)
        except DistillError as error:
            errors.append(DistillError(f"code={each.folder} does not open {path}: {error}"))
        else:
            return each
    raise errors[0]


def adopt(path: Path, model: Any, code: Checkout) -> Tensor | None:
    """Make a fork's network, in place, one of ultralytics' with a head that is known, if it is called like one.

    Args:
        path: the checkpoint.
        model: with the fork's classes.
        code: of the fork.

    Returns:
        What it gave before; None if it was not changed.

    Raises:
        DistillError: it does not run with its own code.
    """
    kind, known = type(model), module_class(_name(type(model)))
    layers = getattr(model, "model", None)
    if kind is known or known is None or not code.owns(kind) or not isinstance(layers, nn.Sequential):
        return None
    head = layers[-1]
    model.float().eval()
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None  # saved before torch 1.11, unpickling sets it to True
    try:
        with code.imported(), torch.no_grad():
            gave = _first(model(_image(model)))
    except Exception as error:  # whatever its code leads to
        raise DistillError(
            f"{path} does not run with the code in {code.folder} ({printable(first_line(error), 200)}): give the checkout that "
            "saved it"
        ) from error
    remember(model)
    model.__class__ = known
    head.__class__ = module_class(_name(type(head))) or type(head)
    return gave


def check_same(path: Path, model: Any, gave: Tensor, code: Checkout) -> None:
    """Refuse a network that gives something else now than with its own code. `gave`: what that was."""
    expected = family_of(model).checkpoints.served(gave)
    with torch.no_grad():
        found = _first(model(_image(model)))
    if found.shape == expected.shape:
        difference = float((found - expected).abs().max() / expected.abs().max())
        if difference <= _TOLERANCE:
            return
        what = f"its outputs differ by {difference:.1g} of the largest"
    else:
        what = f"its outputs have the shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
    head = type(model.own_project["head"]).__name__
    raise DistillError(
        f"{path}: the code in {code.folder} has a changed '{head}', or a changed forward pass of the whole network ({what}): "
        "of forks, changed blocks before the head are supported"
    )


def with_known_convolutions(model: nn.Module) -> None:
    """Make every block of a fork that computes what ultralytics' Conv does one, in place: those can be fused."""
    for module in model.modules():
        if hasattr(module, "bn") and _is_convolution(type(module)):
            module.__class__ = conv.Conv


def _is_convolution(kind: type) -> bool:
    """Whether a class has the instructions of ultralytics' Conv for its forward pass, fused and not."""
    methods = ("forward", "forward_fuse")
    return not issubclass(kind, conv.Conv) and all(
        hasattr(kind, name) and _instructions(getattr(kind, name)) == _instructions(getattr(conv.Conv, name))
        for name in methods
    )


def _instructions(function: Any) -> list[tuple[str, Any]]:
    return [(each.opname, each.argval) for each in dis.get_instructions(function)]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _image(model: Any) -> Tensor:
    size = max(_SIZE, int(torch.as_tensor(model.stride).max()))
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]
    return output.clone()
