"""Recipe files: looked up, read strictly into the dataclasses of `schema`, and written again."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distill.errors import DistillError
from distill.losses.spec import ORIGINAL
from distill.machine.words import brief, nearest
from distill.recipe.keys import LIBRARIES, Key, keys_of
from distill.recipe.schema import Recipe
from distill.recipe.section import Overrides, bind, is_set, walk, write
from distill.recipe.teachers import same_file
from distill.recipe.yaml import Item, dump, read, wrap

RENAMED = {"yolov5-half": "half", "yolov5-original": "half"}  # what shipped recipes were called in earlier versions
_LOG = logging.getLogger("distill")


def load(recipe: str | Path, overrides: Overrides = (), *, files: bool = False) -> Recipe:
    """Read a recipe file.

    Args:
        recipe: a path, or the bare name of a shipped recipe.
        overrides: `key=value` words as on the command line; or a mapping of dotted keys to text, read the same way, or
            to plain Python values.
        files: complain about a checkpoint or data that is not there too.

    Raises:
        DistillError: with everything that is wrong, one line each.
    """
    file = find(recipe)
    problems: list[str] = []
    try:
        item = read(file.read_text(encoding="utf-8-sig"), _short(file), problems)
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{_short(file)}: not readable as a recipe: {error}") from None
    if item is None:
        raise DistillError("\n".join(problems))
    if isinstance(item.value, dict) and "name" not in item.value:
        name = wrap(re.sub(r"[^\w.-]+", "-", file.stem), item.where)
        item = replace(item, value={"name": name, **item.value})
    folders = (file.absolute().parent, Path.cwd())
    return bind(Recipe, item, overrides, problems, folders=folders, files=files, check=_check)


def changed(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with some keys replaced, in the ways and with the complaints of `load`."""
    item = wrap(write(Key(Recipe), recipe), recipe.name)
    return bind(Recipe, item, overrides, folders=(Path.cwd(),), check=_check)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every key. `load` gives an equal recipe back."""
    return dump(write(Key(Recipe), recipe))


def keys() -> list[tuple[str, str, str, str]]:
    """Rows of `distill ls keys`: dotted key, type, default as in a recipe file, help."""
    return [_row(path, key) for path, key in walk(Recipe)]


def key_groups() -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """The same by section: its title, and the rows of the keys in it that are no sections themselves."""
    return list(_groups(Recipe, "", "The run"))


def _groups(cls: type, prefix: str, title: str) -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    keys = keys_of(cls)
    rows = [_row(prefix + name, key) for name, key in keys.items() if not key.section]
    if rows:
        yield title, rows
    for name, key in keys.items():
        if key.section:
            unset = "; null by default" if key.default is None else "; null leaves it out" if key.none else ""
            unset = f"; {prefix}{name}=... sets {key.short}{unset}" if key.short else unset
            about = f"{key.help.rstrip('.')}{'; required' if key.required else unset}"
            yield from _groups(key.type, f"{prefix}{name}.", f"{prefix}{name}: {about}")


def _row(path: str, key: Key) -> tuple[str, str, str, str]:
    default = "(required)" if key.required else "(as below)"
    if not key.required and (key.default is None or not key.section):
        default = dump(write(key, key.default)).strip()
    return path, str(key).removeprefix("a "), default, key.help


def shipped() -> dict[str, Path]:
    """The recipes that come with the program, by bare name."""
    return {file.stem: file for file in sorted(_recipes().glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe that is named by its path or, for a shipped one, by its bare name."""
    path, files = Path(os.path.expanduser(recipe)), shipped()
    if os.path.isfile(path):
        return path
    if os.path.isfile(path / "recipe.yaml"):
        raise DistillError(f"{recipe} is the folder of a run; to resume it: distill run --resume {recipe}")
    name = RENAMED.get(str(recipe), str(recipe))
    if name != str(recipe):
        _LOG.warning("the recipe '%s' is called '%s' now, for every family of detectors", recipe, name)
    if name in files:
        return files[name]
    choices = f": give the path of a file or one of {', '.join(files)}; or, with --resume, the folder of a run"
    raise DistillError(f"no recipe '{brief(recipe, 200)}'{nearest(str(recipe), files) or choices}")


def _recipes() -> Path:
    """In an installed package the recipes are inside it (see setup.cfg); in a checkout they are beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _short(file: Path) -> str:
    """A file as messages name it."""
    if file.is_absolute() and file.is_relative_to(Path.cwd()):
        return str(file.relative_to(Path.cwd()))
    return file.name if file.parent == _recipes() else str(file)


def _check(recipe: Recipe | None, item: Item) -> list[str]:
    """What no key can see alone. `recipe`: None if a key is wrong."""
    if not isinstance(item.value, dict):
        return []
    problems = {}
    model, trained = is_set(item.value.get("model")), is_set(_within(item, "teacher", "train"))
    if not model and not trained:
        what = "The checkpoint to make smaller; teacher.train={} trains one first."
        problems["model"] = f"model is not set: give model=... ({what})"
    if model and trained:
        mend = "leave one out (model=null or teacher.train=null)"
        problems["model"] = f"model and teacher.train are both set, and the teacher is one of them: {mend}"
    named = item.value.get("teachers")
    if named is not None and named.value:
        for key in ("checkpoint", "train"):
            if is_set(_within(item, "teacher", key)):
                problems["teachers"] = f"teachers and teacher.{key} are both set: leave one out"
    if recipe is not None:
        problems |= _check_read(recipe)
    return [f"{item.value[key].key if key in item.value else item.where}: {text}" for key, text in problems.items()]


def _within(item: Item, section: str, key: str) -> Item | None:
    """The value of a key in a section, if it is there; one in place of the section is that of its short form."""
    value = item.value.get(section)
    if value is not None and isinstance(value.value, dict):
        return value.value.get(key)
    return value if keys_of(Recipe)[section].short == key else None


def _check_teachers(recipe: Recipe) -> dict[str, str]:
    """What is wrong with the teachers of a recipe: key -> line."""
    problems = {}
    key = "teachers" if recipe.teachers else "teacher"
    if recipe.teacher.checkpoint and recipe.teacher.train:
        problems[key] = "teacher.checkpoint and teacher.train are both set: leave one out"
    for network in recipe.foreign:
        if recipe.model and same_file(network, recipe.model):
            mend = "leave it out" if recipe.teachers else "give another"
            mend = f"call it {ORIGINAL}" if recipe.teachers and len(recipe.foreign) == len(recipe.teachers) else mend
            problems[key] = f"{key}: {network} is the network of model: {mend}"
    if recipe.fresh:
        name = Path(str(recipe.model)).name
        if any(spec.network == ORIGINAL and recipe.losses_of(spec) for spec in recipe.taught_by):
            mend = f"leave {ORIGINAL} out of teachers" if recipe.teachers else "give teacher=big.pt, or a checkpoint"
            problems["model"] = f"model: {name} starts from random weights, which teach nothing: {mend}"
        elif recipe.prune is not None:
            problems["model"] = (
                f"model: {name} starts from random weights, and there is nothing to cut: give prune=null"
            )
        elif recipe.repair is not None:
            problems["repair"] = f"repair mends what was cut, and {name} starts from random weights: give repair=null"
    return problems


def _check_read(recipe: Recipe) -> dict[str, str]:
    """The same of a recipe whose keys are right: key -> what is wrong."""
    distill, problems = recipe.distill, _check_teachers(recipe)
    if distill.epochs and not distill.labels and not any(loss.ramp.lasts for loss in recipe.losses):
        problems["distill"] = (
            "distill has labels: 0 and every loss ends before the training does: leave out until of one"
        )
        if not recipe.losses:
            problems["distill"] = "distill has no losses and labels: 0, so nothing to train on: epochs=0 says so"
    if recipe.weights and not (recipe.model or "").startswith(LIBRARIES):
        problems["weights"] = (
            "weights are those of model=timm/NAME or model=torchvision/NAME: leave them out, or give that"
        )
    if not re.fullmatch(r"\w[\w.-]*", recipe.name):
        problems["name"] = f"name: expected letters, digits, '-', '_' and '.', got {recipe.name!r}"
    return problems
