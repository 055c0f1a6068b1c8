"""The losses of a recipe: built-in names and the user's own functions, each with its weight, schedule and options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill.losses.registry import BUILTIN, JOINS, RENAMED
from distill.losses.spec import ALWAYS, FADES, TAKEN, LossSpec, Ramp
from distill.recipe.keys import Key
from distill.recipe.reading import Node, read_function, read_list, read_scalar
from distill.recipe.yaml import Item

_SHARE = {"minimum": 0, "maximum": 1}
# What may stand beside a loss's own options.
OPTIONS = {
    "weight": Key(float, 1.0, "Factor of the loss in the sum; 0 leaves it out.", bounds={"minimum": 0}),
    "warmup": Key(float, ALWAYS.warmup, "Share of the training in which the weight rises from 0.", bounds=_SHARE),
    "until": Key(float, ALWAYS.until, "Share of the training at which the loss ends.", bounds=_SHARE),
    "fade": Key(str, ALWAYS.fade, "How the weight falls from the end of the warm-up to `until`.", words=FADES),
    "features": Key(
        str,
        None,
        "Where it reads features, in place of `distill.features`.",
        many=True,
        none="null",
        example="[model.4]",
    ),
}


def read_losses(node: Node) -> tuple[LossSpec, ...]:
    """Read a mapping of names to weights, or to `{weight: ..., option: ...}`."""
    specs = [_read_one(name, node.child(name, item)) for name, item in node.item.value.items()]
    # One that would join by itself stays, with its weight of 0: the user does not want it.
    losses = tuple(loss for loss in specs if loss is not None and (loss.weight or loss.name in JOINS.values()))
    labels = [loss.label for loss in losses]
    for label in sorted(set(labels)):
        if labels.count(label) > 1:
            node.complain(f"{node.path}: two losses are called '{label}': rename one of the functions")
        if label in TAKEN:
            node.complain(f"{node.path}: '{label}' is the name of another term of the training: rename the function")
    return losses


def write_losses(losses: tuple[LossSpec, ...]) -> dict[str, Any]:
    """The losses as plain data, such that `read_losses` gives them back."""
    data: dict[str, Any] = {}
    for loss in losses:
        more = {name: value for name, value in vars(loss.ramp).items() if value != OPTIONS[name].default}
        more |= {} if loss.features is None else {"features": list(loss.features)}
        data[loss.name] = {"weight": loss.weight} | more | loss.options if more or loss.options else loss.weight
    return data


def assign(item: Item, path: str, new: Item) -> Item:
    """The mapping of losses with one replaced, or one option of it.

    Args:
        item: the mapping; it is left as it is.
        path: `score_bce`, `score_bce.temperature` or `my.py:kd.temperature`.
        new: a weight, a mapping, or the option's value.
    """
    losses = dict(item.value) if isinstance(item.value, dict) else {}
    # Names may have dots in them: those that are there are compared first, others end at the first dot after the colon.
    default = path[: path.rfind(":") + 1] + path[path.rfind(":") + 1 :].partition(".")[0]
    name = next((name for name in losses if f"{path}.".startswith(f"{name}.")), default)
    if option := path[len(name) + 1 :]:
        loss = losses.get(name)
        options = {} if loss is None else loss.value if isinstance(loss.value, dict) else {"weight": loss}
        new = replace(new, value=options | {option: new}, text="")
    return replace(item, value=losses | {name: new}, text="")


def _read_one(name: str, node: Node) -> LossSpec | None:
    if name in RENAMED:
        return node.complain(f"{node.path}: this loss is called '{RENAMED[name]}' now", at_key=True)
    full = read_function(BUILTIN, replace(node, item=Item(name, node.item.key, name)))
    if isinstance(node.item.value, dict):
        options = dict(node.item.value)
        ours = {option: node.child(option, options.pop(option)) for option in OPTIONS if option in options}
    else:
        options, ours = {}, {"weight": node}
    if "features" in ours and ours["features"].item.value is None:
        del ours["features"]
    values = {option: _read_option(OPTIONS[option], child) for option, child in ours.items()}
    if full is None or None in values.values():
        return None
    weight, features = values.pop("weight", 1.0), values.pop("features", None)
    ramp = Ramp(**values)
    if ramp.warmup >= ramp.until:
        text = f"until {ramp.until:g} leaves nothing after warmup {ramp.warmup:g}: weight: 0 leaves a loss out"
        return replace(ours.get("until") or ours["warmup"], path=node.path).complain(f"{node.path}: {text}")
    return LossSpec(full, weight, {option: child.plain() for option, child in options.items()}, ramp, features)


def _read_option(key: Key, node: Node) -> Any:
    value = read_list(key, node) if key.many else read_scalar(key, node)
    return None if key.many and value is not None and None in value else value
