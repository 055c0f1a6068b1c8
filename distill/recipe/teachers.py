"""The teachers of a recipe: the original and other checkpoints, each with its weight and, if it has them, its own losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.losses.spec import ORIGINAL, TeacherSpec
from distill.machine.words import nearest
from distill.recipe.keys import LIBRARIES, Key
from distill.recipe.losses import assign as assign_loss
from distill.recipe.losses import read_losses, write_losses
from distill.recipe.reading import Node, missing_file, read_scalar
from distill.recipe.yaml import Item

# What may stand beside the name of a teacher.
OPTIONS = ("weight", "losses")
WEIGHT = Key(float, 1.0, "Factor of the losses against this teacher.", bounds={"exclusiveMinimum": 0})
_NETWORK = Key(str, words=(ORIGINAL,), path=True)


def read_teachers(node: Node) -> tuple[TeacherSpec, ...]:
    """Read a mapping of `original` or paths of checkpoints to weights, or to `{weight: ..., losses: {...}}`."""
    specs = [_read_one(name, node.child(name, item)) for name, item in node.item.value.items()]
    teachers = tuple(spec for spec in specs if spec is not None)
    for index, spec in enumerate(teachers):
        if any(same_file(spec.network, other.network) for other in teachers[:index]):
            node.complain(f"{node.path}: two teachers are {spec.network}: leave one out")
    return teachers


def write_teachers(teachers: Sequence[TeacherSpec]) -> dict[str, Any]:
    """The teachers as plain data, such that `read_teachers` gives them back."""
    return {
        spec.network: spec.weight
        if spec.losses is None
        else {"weight": spec.weight, "losses": write_losses(spec.losses)}
        for spec in teachers
    }


def assign(item: Item, path: str, new: Item) -> Item:
    """The mapping of teachers with one replaced, or one option of it.

    Args:
        item: the mapping; it is left as it is.
        path: `original`, `big.pt`, `big.pt.weight` or `big.pt.losses.score_bce`.
        new: a weight, a mapping, or the option's value.
    """
    teachers = dict(item.value) if isinstance(item.value, dict) else {}
    name, option, rest = _split(path, teachers)
    if option:
        before = teachers.get(name)
        options = {} if before is None else before.value if isinstance(before.value, dict) else {"weight": before}
        if rest:
            new = assign_loss(options.get("losses", replace(new, value={})), rest, new)
        new = replace(new, value=options | {option: new}, text="")
    return replace(item, value=teachers | {name: new}, text="")


def names_of(teachers: Sequence[TeacherSpec], taken: Sequence[str]) -> tuple[str, ...]:
    """What files and columns call each teacher: `original`, else the stem of its file; no two alike, and none of `taken`."""
    names: list[str] = []
    for spec in teachers:
        stem = name = ORIGINAL if spec.network == ORIGINAL else Path(spec.network).stem
        number = 1
        while spec.network != ORIGINAL and name in (*names, *taken, ORIGINAL):
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return tuple(names)


def same_file(first: str, second: str) -> bool:
    """Whether two paths lead to one file."""
    try:
        return first == second or Path(first).expanduser().samefile(Path(second).expanduser())
    except (OSError, RuntimeError):  # one is not there, which is said elsewhere
        return False


def _split(path: str, teachers: Mapping[str, Item]) -> tuple[str, str, str]:
    """The name, the option and what follows, of a dotted path in which the name may have dots of its own."""
    for name in sorted(teachers, key=len, reverse=True):  # those that are there are compared first
        if f"{path}.".startswith(f"{name}."):
            option, _, rest = path[len(name) + 1 :].partition(".")
            return name, option, rest
    words = path.split(".")
    index = next((i for i, word in enumerate(words) if i and word in OPTIONS), len(words))
    return ".".join(words[:index]), ".".join(words[index : index + 1]), ".".join(words[index + 1 :])


def _read_one(name: str, node: Node) -> TeacherSpec | None:
    if node.files and name != ORIGINAL and not name.startswith(LIBRARIES) and (missing := missing_file(name)):
        hint = nearest(name, (ORIGINAL,)) if "did you mean" not in missing else ""
        return node.complain(f"{node.path}: {missing}{hint}", at_key=True)
    network = read_scalar(_NETWORK, replace(node, item=Item(name, node.item.key, name)))
    options = node.item.value if isinstance(node.item.value, dict) else {"weight": node.item}
    for option in options.keys() - set(OPTIONS):
        return node.child(option, options[option]).complain(
            f"{node.path}: unknown key '{option}': a teacher has {' and '.join(OPTIONS)}", at_key=True
        )
    weight = read_scalar(WEIGHT, node.child("weight", options["weight"])) if "weight" in options else 1.0
    losses = options.get("losses")
    if losses is not None and not isinstance(losses.value, dict):
        return node.child("losses", losses).refuse("a mapping of loss names to weights")
    own = None if losses is None else read_losses(node.child("losses", losses))
    return None if network is None or weight is None else TeacherSpec(network, weight, own)
