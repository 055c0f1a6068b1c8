"""Losses by name, built-in and a user's own: looking one up, describing it, and making what a recipe asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.losses.spec import RESERVED, LossSpec
from distill.machine import plugins
from distill.machine.words import nearest

if TYPE_CHECKING:
    from distill.losses.base import WeightedLoss

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
    "ultralytics": "distill.yolo.training.ultralytics_loss:Ultralytics",
}
# Names that older recipes may hold.
RENAMED: Mapping[str, str] = {"distill.yolo.stock:Ultralytics": "ultralytics"}

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


def build(specs: Iterable[LossSpec]) -> list[WeightedLoss]:
    """Make the losses of a recipe.

    Args:
        specs: `Recipe.distill.losses`: names, weights, options and ramps.

    Raises:
        DistillError: a name that is not there, an option that the loss does not take or needs and is not given, or a
            class that fails.
    """
    from distill.losses.base import WeightedLoss

    losses = []
    for spec in specs:
        loss = resolve(spec.name)
        _check_options(spec.name, loss, spec.options)
        make: Callable[..., Any] = loss if inspect.isclass(loss) else partial(partial, loss)
        call = plugins.call(f"loss '{spec.label}'", make, **spec.options)
        losses.append(WeightedLoss(spec.label, spec.weight, call, spec.ramp))
    return losses


def resolve(name: str, folder: Path | str = ".") -> Callable[..., Any]:
    """The function or Module class behind a loss's name.

    Args:
        name: one of BUILTIN, `file.py:name` or `package.module:name`.
        folder: where a relative file path starts.

    Raises:
        DistillError: one line that says what is missing, with the nearest name there is.
    """
    if name in RENAMED:
        raise DistillError(f"loss '{name}' is called '{RENAMED[name]}' now")
    return plugins.load("loss", BUILTIN.get(name, name), BUILTIN, folder)


def describe(names: Iterable[str] = BUILTIN, folder: Path | str = ".") -> list[LossRow]:
    """Name, first line of the docstring and options with their defaults, of shipped and user losses alike.

    Raises:
        DistillError: a name that is not there.
    """
    rows = []
    for name in names:
        loss = resolve(name, folder)
        summary = inspect.cleandoc(loss.__doc__ or "").partition("\n")[0]  # getdoc would quote torch's Module
        parameters = {key: value for key, value in _options(loss).items() if value.kind is not value.VAR_KEYWORD}
        options = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
        rows.append(LossRow(name, summary, options, tuple(key for key in parameters if key not in options)))
    return rows


def _options(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword options of a loss: all of a class's parameters, all but the first (ctx) of a function's."""
    parameters = list(inspect.signature(loss).parameters.values())
    named = parameters if inspect.isclass(loss) else parameters[1:]
    return {parameter.name: parameter for parameter in named if parameter.kind is not parameter.VAR_POSITIONAL}


def _check_options(name: str, loss: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = _options(loss)
    for option in RESERVED:
        if option in parameters:
            raise DistillError(
                f"loss '{name}' cannot have an option '{option}': a recipe means its own by it; rename the function's"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
            near = nearest(option, [*parameters, *RESERVED])
            raise DistillError(f"loss '{name}' has no option '{option}'{near}; {takes}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise DistillError(f"loss '{name}' needs its option '{key}'")
