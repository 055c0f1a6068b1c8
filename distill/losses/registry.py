"""Losses by name, built-in and a user's own: looking one up, describing it, and making what a recipe asks for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.losses.spec import RESERVED, LossSpec
from distill.machine import plugins
from distill.machine.words import nearest

if TYPE_CHECKING:
    from distill.losses.base import WeightedLoss

# Name -> module. The module's table LOSSES says the rest; only the names are here, because reading a recipe needs them
# and must not import torch.
BUILTIN: Mapping[str, str] = {
    "score_bce": "distill.losses.logit",
    "score_dist": "distill.losses.logit",
    "objectness_bce": "distill.losses.logit",
    "box_iou": "distill.losses.box",
    "box_giou": "distill.losses.box",
    "box_l1": "distill.losses.box",
    "box_bckd": "distill.losses.box",
    "dfl_kl": "distill.losses.box",
    "feature_pkd": "distill.losses.feature",
    "feature_cwd": "distill.losses.feature",
    "feature_at": "distill.losses.feature",
    "feature_fgd": "distill.losses.feature",
    "feature_mgd": "distill.losses.masked",
    "mask_bce": "distill.losses.mask",
    "keypoint_oks": "distill.losses.keypoint",
    "angle_sin": "distill.losses.angle",
    "kl": "distill.losses.softmax",
    "dkd": "distill.losses.softmax",
    "nkd": "distill.losses.softmax",
    "dist": "distill.losses.softmax",
    "crosskd": "distill.yolo.training.crosskd",
    "pseudo_labels": "distill.yolo.training.pseudo_labels",
    "ultralytics": "distill.yolo.training.ultralytics_loss",
}
# Names that older recipes may hold.
RENAMED: Mapping[str, str] = {"distill.yolo.stock:Ultralytics": "ultralytics"}

# What a loss may read that not every head has -> what to say of a head without it.
NEEDS: Mapping[str, str] = {
    "dist": "predicts no distributions over box sides",
    "objectness": "has no objectness",
    "softmax": "has class scores that are independent sigmoids",
    "masks": "predicts no masks",
    "keypoints": "predicts no keypoints",
    "angles": "predicts no oriented boxes",
}

# What a head predicts beside boxes and classes -> the loss on it, which joins those on boxes and classes by itself.
JOINS: Mapping[str, str] = {"masks": "mask_bce", "keypoints": "keypoint_oks", "angles": "angle_sin"}
_ON_OUTPUTS = frozenset({"scores", "boxes", "dist"})


@dataclass(frozen=True)
class LossRow:
    """A loss as `distill ls losses` shows it.

    `required` names the options that have no default; `reads` is None if the loss does not say what it reads.
    """

    name: str
    help: str
    options: Mapping[str, Any]
    required: tuple[str, ...]
    reads: tuple[str, ...] | None


def fitting(
    specs: Iterable[LossSpec],
    gives: Collection[str],
    why: Mapping[str, str] | None = None,
    lacks: Mapping[str, str] | None = None,
) -> tuple[list[LossSpec], list[str]]:
    """The losses of a recipe that a head can have, so that one recipe serves every head.

    Args:
        specs: `Recipe.distill.losses`.
        gives: what the head has, keys of `NEEDS`.
        why: what to say of a need that is not met, in place of what `NEEDS` says of one head.
        lacks: words of `READABLE` that no network of this kind has -> what to say of a loss that reads one.

    Returns:
        Those that fit, and a line for each that does not.
    """
    from distill.losses.base import FromContext

    fit, lines = [], []
    for spec in specs:
        loss = resolve(spec.name) if spec.name in BUILTIN else None
        missing = next((word for word in getattr(loss, "reads", None) or () if word in (lacks or {})), None)
        if lacks and missing:
            lines.append(f"loss {spec.name} left out: {lacks[missing]}")
        elif isinstance(loss, FromContext) and loss.needs and loss.needs not in gives:
            reason = f"this head {NEEDS[loss.needs]}" if why is None else why[loss.needs]
            lines.append(f"loss {spec.name} left out: {reason}")
        else:
            fit.append(spec)
    return fit, lines


def joined(
    specs: Iterable[LossSpec], gives: Collection[str], unwanted: Collection[str] = ()
) -> tuple[list[LossSpec], list[str]]:
    """The losses of a recipe with those that a head needs for its task, so that one recipe serves every task.

    They join losses on boxes and classes, and no others: who teaches features alone, or labels alone, means that.

    Args:
        specs: as for `fitting`.
        gives: as for `fitting`.
        unwanted: names of losses that do not join.

    Returns:
        The losses, and a line for each that has joined.
    """
    given = list(specs)
    known = [resolve(spec.name) for spec in given if spec.name in BUILTIN]
    if not any(_ON_OUTPUTS.intersection(getattr(loss, "reads", ())) for loss in known):
        return given, []
    names = {*unwanted, *(spec.name for spec in given)}
    new = {need: name for need, name in JOINS.items() if need in gives and name not in names}
    lines = [f"loss {name} joins, for this head predicts {need}: {name}: 0 leaves it out" for need, name in new.items()]
    return [*given, *map(LossSpec, new.values())], lines


def build(specs: Iterable[LossSpec]) -> list[WeightedLoss]:
    """Make the losses of a recipe.

    Args:
        specs: `Recipe.distill.losses`: names, weights, options and ramps.

    Raises:
        DistillError: a name that does not exist, an option that the loss does not take or lacks, or a class that fails.
    """
    from distill.losses.base import WeightedLoss, reads_of

    losses = []
    for spec in specs:
        loss = resolve(spec.name)
        _check_options(spec.name, loss, spec.options)
        reads = reads_of(loss)
        if spec.features is not None and reads is not None and "features" not in reads:
            raise DistillError(f"loss '{spec.label}' reads {', '.join(reads)} and no others: take its `features` out")
        make: Callable[..., Any] = loss if inspect.isclass(loss) else partial(partial, loss)
        call = plugins.call(f"loss '{spec.label}'", make, **spec.options)
        losses.append(WeightedLoss(spec.label, spec.weight, call, spec.ramp, features=spec.features))
    return losses


def resolve(name: str) -> Callable[..., Any]:
    """The function of a context, or the Module class, behind one of BUILTIN, `file.py:name` or `package.module:name`.

    Raises:
        DistillError: one line that says what is missing, with the nearest name there is.
    """
    if name in BUILTIN:
        return importlib.import_module(BUILTIN[name]).LOSSES[name]
    if name in RENAMED:
        raise DistillError(f"loss '{name}' is called '{RENAMED[name]}' now")
    return plugins.load("loss", name, BUILTIN)


def describe(names: Iterable[str] = BUILTIN) -> list[LossRow]:
    """Name, first line of the docstring and options with their defaults, of shipped and user losses alike.

    Raises:
        DistillError: a name that does not exist.
    """
    from distill.losses.base import FromContext, reads_of

    rows = []
    for name in names:
        loss = resolve(name)
        summary = plugins.summary(loss.function if isinstance(loss, FromContext) else loss)
        parameters = {key: value for key, value in _options(loss).items() if value.kind is not value.VAR_KEYWORD}
        options = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
        required = tuple(key for key in parameters if key not in options)
        rows.append(LossRow(name, summary, options, required, reads_of(loss)))
    return rows


def _options(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a loss: a shipped function's keywords, a class's parameters, any other's all but the first (ctx)."""
    from distill.losses.base import FromContext

    if isinstance(loss, FromContext):
        parameters = list(inspect.signature(loss.function).parameters.values())
        own = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
        shared = inspect.signature(FromContext.__call__).parameters["anchors"]
        return own | {"anchors": shared} if loss.selects else own
    parameters = list(inspect.signature(loss).parameters.values())[0 if inspect.isclass(loss) else 1 :]
    return {each.name: each for each in parameters if each.kind is not each.VAR_POSITIONAL}


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
            words = [word for word in RESERVED if word != "features"]  # which 'temperature' is like
            near = nearest(option, [*parameters, *words]) or nearest(option, ("features",), likeness=0.8)
            raise DistillError(f"loss '{name}' has no option '{option}'{near}; {takes}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise DistillError(f"loss '{name}' needs its option '{key}'")
