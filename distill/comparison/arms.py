"""The arms of a comparison: ways of recovering the same pruned network, each a few keys of one recipe."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.errors import DistillError
from distill.machine.words import nearest
from distill.recipe.load import changed
from distill.recipe.schema import Accept, Distill, Latency, Recipe, Unlabelled
from distill.results.comparison import Arm, ComparisonResults

DEFAULT = ("finetune", "ultralytics", "ours", "ours-unlabelled")
SEEDS = 3
OURS = "ours"  # what the others are compared with

_LABELS = {"distill.losses": {}, "distill.labels": 1}
_STOCK = {"distill.losses": {"ultralytics": 1}, "distill.labels": 1, "distill.balance": False}
_PRUNED = {"repair": None}
_COMMON = {"prune.importance": "bn_scale", "repair": None}


BUILTIN = (
    Arm(OURS, "The recipe as it stands."),
    Arm("ours-unlabelled", "The recipe's losses against the teacher, without labels.", {"distill.labels": 0}),
    Arm("no-repair", "The recipe, from the pruned network.", _PRUNED),
    Arm("finetune", "Labels alone, from the repaired network.", _LABELS),
    Arm("finetune-pruned", "Labels alone, from the pruned network.", _LABELS | _PRUNED),
    Arm("finetune-bn", "The common road: cut by BatchNorm scales, then labels alone.", _LABELS | _COMMON),
    Arm("ultralytics", "ultralytics' own distillation, from the repaired network.", _STOCK),
    Arm("ultralytics-pruned", "ultralytics' own distillation, from the pruned network.", _STOCK | _PRUNED),
    Arm("ultralytics-bn", "ultralytics' own distillation, of a cut by BatchNorm scales.", _STOCK | _COMMON),
)
WITHOUT = ("no-<loss>", "The recipe without one of its losses, named here.")


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    recipe: Recipe  # what the arms have in common
    arms: tuple[Arm, ...]  # in the order of the table
    seeds: tuple[int, ...]  # each arm is trained once with each, and with each of `lrs` with the first
    lrs: tuple[float, ...]  # learning rates to choose from; empty if the recipe or its schedule says it
    named: bool  # by the user; of other arms, those that the network's head cannot have are left out

    def variant(self, arm: Arm, seed: int, lr: float | None) -> Recipe:
        """The recipe of one run. What its cut costs and how it exports is the same for every arm, so neither is done."""
        own = {"name": arm.name, "seed": seed, "export": [], "latency.runs": 1, "pictures": 0}
        if lr is not None:
            own["distill.lr"] = lr
        try:
            return changed(changed(self.recipe, arm.overrides), own)
        except DistillError as error:
            raise DistillError("\n".join(f"arm {arm.name}: {line}" for line in str(error).splitlines())) from None


def start_of(variant: Recipe, common: Recipe) -> Recipe:
    """An arm's recipe up to where training starts. Two runs with the same one have the same network there.

    In a sparsify stage the losses of `common` teach, which all arms have in common, whatever those of the arm are. Other
    teachers than the original make no difference before, but to say what a network with random weights is built for.
    """
    distill = Distill(epochs=0)
    if variant.sparsify and variant.sparsify.distill:
        distill = replace(distill, losses=common.distill.losses, labels=common.distill.labels)
    elif not variant.fresh:
        variant = replace(variant, teacher=replace(variant.teacher, checkpoint=None), teachers=())
    unlabelled = variant.unlabelled and Unlabelled(images=variant.unlabelled.images, frames=variant.unlabelled.frames)
    return replace(
        variant,
        name="base",
        unlabelled=unlabelled,
        distill=distill,
        accept=Accept(),
        export=(),
        latency=Latency(runs=1),
        pictures=0,
    )


def plan(
    recipe: Recipe,
    names: str | None = None,
    own: Sequence[str | Arm] = (),
    seeds: int | None = None,
    lrs: str | None = None,
    before: ComparisonResults | None = None,
) -> Comparison:
    """Make a comparison of the words of the command line.

    Args:
        recipe: what the arms have in common.
        names: `a,b,c`, the arms; DEFAULT and `own` if None.
        own: arms of the user's, each as `name=key=value key=value` if it is text.
        seeds: how many, from the recipe's on; SEEDS if None.
        lrs: `1e-4,3e-4`, learning rates to choose from; no search if None.
        before: the comparison that is resumed, which says what is not given here.

    Raises:
        DistillError: what cannot be compared, in one line.
    """
    if recipe.prune is None and not recipe.foreign:
        raise DistillError("prune is null, so there is nothing to recover: give prune.flops=0.5")
    if not recipe.distill.epochs:
        raise DistillError("distill.epochs is 0, so no arm would be trained: give distill.epochs=10")
    arms = _choose(recipe, names, [each if isinstance(each, Arm) else _read(each) for each in own], before)
    count = (len(before.seeds) if before else SEEDS) if seeds is None else seeds
    if count < 1:
        raise DistillError(f"--seeds {count}: give at least 1; two or more tell how much of a difference is noise")
    rates = (before.lrs if before else ()) if lrs is None else _rates(lrs)
    named = names is not None or bool(before and before.arms)
    comparison = Comparison(recipe, arms, tuple(range(recipe.seed, recipe.seed + count)), rates, named)
    for arm in arms:
        if not comparison.variant(arm, recipe.seed, None).distill.epochs:
            raise DistillError(f"arm {arm.name}: distill.epochs is 0, so it would not be trained")
    return comparison


def _choose(recipe: Recipe, names: str | None, own: list[Arm], before: ComparisonResults | None) -> tuple[Arm, ...]:
    without = [
        Arm(f"no-{loss.label}", f"The recipe without {loss.label}.", {f"distill.losses.{loss.name}": 0})
        for loss in recipe.distill.losses
    ]
    arms = {arm.name: arm for arm in (*without, *BUILTIN)}
    for arm in own:
        if arm.name in arms:
            raise DistillError(f"--arm {arm.name}: there is an arm of that name already: choose another")
        arms[arm.name] = arm
    earlier = {arm.name: arm for arm in before.arms} if before else {}
    arms |= {name: arm for name, arm in earlier.items() if name not in arms}
    chosen = list(earlier or DEFAULT) if names is None else [name.strip() for name in names.split(",")]
    chosen += [arm.name for arm in own if arm.name not in chosen]
    for name in chosen:
        if chosen.count(name) > 1:
            raise DistillError(f"--arms: {name} is given twice")
        if name not in arms:
            hint = nearest(name, arms) or f": there are {', '.join(arms)}"
            raise DistillError(f"--arms: no arm '{name}'{hint}")
    return tuple(arms[name] for name in chosen)


def _read(text: str) -> Arm:
    """The arm in `name=key=value key=value`."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"\w[\w.-]*", name) or name == "plots" or name.startswith("base-"):
        raise DistillError(
            f"--arm '{text}': expected name=key=value ..., with a name of letters, digits, '-', '_' and '.' that is not "
            "'plots' or 'base-...'"
        )
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise DistillError(f"--arm {name}: {error}") from None
    return Arm(name, rest, words)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise DistillError(f"--lrs: expected different learning rates above 0, as in 1e-4,3e-4, got '{text}'")
    return rates
