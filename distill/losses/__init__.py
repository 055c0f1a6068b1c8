"""Losses by name: those shipped here, and a user's own as `file.py:name` or `package.module:name`.

A loss is a function f(ctx, **options) -> scalar tensor, or a torch Module made with its options and called with ctx
(for a loss that learns something). `ctx` is a `distill.losses.context.LossContext`. A Module whose layers depend on the
network has a method `prepare(channels)`: it is called once with the student's channels per pyramid level, before an
optimizer is made.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.errors import DistillError
from distill.losses.spec import ALWAYS, RESERVED, LossSpec, Span
from distill.machine.words import nearest

BUILTIN: Mapping[str, str] = {
    "score_bce": "distill.losses.logit:score_bce",
    "score_dist": "distill.losses.logit:score_dist",
    "objectness_bce": "distill.losses.logit:objectness_bce",
    "box_iou": "distill.losses.box:box_iou",
    "box_giou": "distill.losses.box:box_giou",
    "box_l1": "distill.losses.box:box_l1",
    "dfl_kl": "distill.losses.box:dfl_kl",
    "feature_pkd": "distill.losses.feature:feature_pkd",
    "feature_cwd": "distill.losses.feature:feature_cwd",
    "feature_at": "distill.losses.feature:feature_at",
    "feature_fgd": "distill.losses.feature:feature_fgd",
    "feature_mgd": "distill.losses.masked:FeatureMGD",
    "kl": "distill.losses.softmax:kl",
    "dkd": "distill.losses.softmax:dkd",
    "nkd": "distill.losses.softmax:nkd",
}

# What a loss reads that not every head has, and how a line of text says that one has it not.
NEEDS: Mapping[str, str] = {
    "dfl_kl": "dist",
    "objectness_bce": "objectness",
    "kl": "softmax",
    "dkd": "softmax",
    "nkd": "softmax",
}
_LACKS = {
    "dist": "predicts no distributions over box sides",
    "objectness": "has no objectness",
    "softmax": "has class scores that are independent sigmoids",
}


@dataclass(frozen=True)
class Loss:
    """A loss as a run uses it: `weight_at(progress) * call(ctx)` joins the sum under `name`."""

    name: str
    weight: float
    call: Callable[[Any], Any]
    span: Span = ALWAYS

    def weight_at(self, progress: float) -> float:
        """Its factor in the sum when a part `progress`, 0 to 1, of the training is over."""
        return self.weight * self.span.at(progress)


@dataclass(frozen=True)
class LossRow:
    """What `distill ls losses` shows of one loss: `needs` names the options that have no default."""

    name: str
    help: str
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()


def fitting(specs: Iterable[LossSpec], gives: Collection[str]) -> tuple[list[LossSpec], list[str]]:
    """The losses of a recipe that a head can have, so that one recipe serves every head.

    Args:
        specs: `Recipe.distill.losses`.
        gives: what the head has, of the values of `NEEDS`.

    Returns:
        Those that fit, and a line for each that does not.
    """
    specs = list(specs)
    fit = [spec for spec in specs if NEEDS.get(spec.name) in (None, *gives)]
    lines = [f"loss {spec.name} left out: this head {_LACKS[NEEDS[spec.name]]}" for spec in specs if spec not in fit]
    return fit, lines


def build(specs: Iterable[LossSpec]) -> list[Loss]:
    """Make the losses of a recipe.

    Args:
        specs: `Recipe.distill.losses`: names, weights, options and spans.

    Raises:
        DistillError: a name that is not there, or an option that the loss does not take or cannot be given.
    """
    losses = []
    for spec in specs:
        loss = resolve(spec.name)
        _check_options(spec.name, loss, spec.options)
        make: Callable[..., Any] = loss if inspect.isclass(loss) else partial(partial, loss)
        losses.append(Loss(spec.label, spec.weight, make(**spec.options), spec.span))
    return losses


def resolve(name: str, folder: Path | str = ".") -> Callable[..., Any]:
    """The function or Module class behind a loss's name.

    Args:
        name: one of BUILTIN, `file.py:name` or `package.module:name`.
        folder: where a relative file path starts.

    Raises:
        DistillError: one line that says what is missing, with the nearest name there is.
    """
    place, _, attribute = BUILTIN.get(name, name).rpartition(":")
    if not place or not attribute:
        raise DistillError(
            f"no loss '{name}'{nearest(name, BUILTIN)}; there are {', '.join(BUILTIN)}, "
            "and your own as file.py:name or package.module:name"
        )
    module = _load_file(name, Path(folder, place).expanduser()) if place.endswith(".py") else _import(name, place)
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DistillError(f"loss '{name}': nothing named '{attribute}' in {place}{nearest(attribute, own)}")
    loss = getattr(module, attribute)
    if not callable(loss):
        raise DistillError(
            f"loss '{name}': '{attribute}' in {place} is {type(loss).__name__}, not a function or Module"
        )
    return loss


def describe(names: Iterable[str] = BUILTIN, folder: Path | str = ".") -> list[LossRow]:
    """Name, first line of the docstring and options with their defaults, of shipped and user losses alike.

    Raises:
        DistillError: a name that is not there.
    """
    rows = []
    for name in names:
        loss = resolve(name, folder)
        summary = inspect.cleandoc(loss.__doc__ or "").partition("\n")[0]  # getdoc would quote torch's Module
        known = {key: value for key, value in _options(loss).items() if value.kind is not value.VAR_KEYWORD}
        options = {key: value.default for key, value in known.items() if value.default is not value.empty}
        rows.append(LossRow(name, summary, options, tuple(key for key in known if key not in options)))
    return rows


def _options(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword options of a loss: all of a class's parameters, all but the first (ctx) of a function's."""
    parameters = list(inspect.signature(loss).parameters.values())
    named = parameters if inspect.isclass(loss) else parameters[1:]
    return {parameter.name: parameter for parameter in named if parameter.kind is not parameter.VAR_POSITIONAL}


def _check_options(name: str, loss: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = _options(loss)
    for option in RESERVED:
        if option in known:
            raise DistillError(
                f"loss '{name}' cannot have an option '{option}': a recipe means its own by it; rename the function's"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            near = nearest(option, [*known, *RESERVED])
            raise DistillError(f"loss '{name}' has no option '{option}'{near}; {takes}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise DistillError(f"loss '{name}' needs its option '{key}'")


def _import(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise DistillError(f"loss '{name}': importing {place} failed: {_one_line(error)}") from error


def _load_file(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        near = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise DistillError(f"loss '{name}': no file {file}{nearest(file.name, near)}")
    # A name of its own for each path: two recipes may each have a losses.py. It is entered in sys.modules because
    # dataclasses and pickle look a class's module up there.
    module_name = f"{file.stem}_{hashlib.sha1(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None  # it is a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise DistillError(f"loss '{name}': running {file} failed: {_one_line(error)}") from error
    return module


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
