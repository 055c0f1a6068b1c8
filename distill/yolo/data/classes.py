"""Class names: those of a data.yaml, and whether they are the model's."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.words import abridge, brief

MAX_CLASSES = 100_000  # the largest data sets have 20,000


def class_names(path: Path, content: Mapping[str, Any]) -> tuple[dict[int, str], list[str]]:
    """The class names of a data.yaml by id, and lines about them. Raises `DistillError`."""
    names, count = content.get("names"), _count(path, content.get("nc"))
    if names is None:
        if count is None:
            raise DistillError(f"{path}: has no 'names': list the class names, in the order of their ids")
        return {i: f"class_{i}" for i in range(count)}, []
    by_id = _by_id(path, names)
    if sorted(by_id) != list(range(len(by_id))) or not by_id:
        raise DistillError(f"{path}: the ids in 'names' must be 0, 1, 2, ... without a gap")
    if count not in (None, len(by_id)):
        listed = abridge([brief(str(name)) for name in by_id.values()], ", ")
        raise DistillError(f"{path}: 'nc: {count}', but 'names' has {len(by_id)}: {listed}")
    read = {i: str(by_id[i]) for i in sorted(by_id)}
    # `no` and 1.10 have become False and 1.1 by now. ultralytics reads them so, and a model that it trained has them so.
    odd = [f"class {i} '{read[i]}'" for i in read if not isinstance(by_id[i], (str, int)) or isinstance(by_id[i], bool)]
    notes = [f"{path}: {abridge(odd, ', ')}: read so by YAML; in quotes a name stays as it is written"] if odd else []
    twice = [f"'{brief(name)}'" for name, times in Counter(read.values()).items() if times > 1]
    if twice:
        notes.append(f"{path}: more than one class is called {abridge(twice, ', ')}: figures by class show one of them")
    return read, notes


def compare(path: Path, data: Mapping[int, str], model: Mapping[int, str] | None) -> list[str]:
    """A warning if the classes may be others than the model's; an error if they must be."""
    if model is None or list(data.values()) == list(model.values()):
        return []
    if len(data) != len(model):
        ours, theirs = (abridge([brief(name) for name in names.values()], ", ") for names in (data, model))
        single = " A model that was trained with single_cls takes data of one class." if len(model) == 1 else ""
        raise DistillError(
            f"{path} has {len(data)} classes ({ours}), the model {len(model)} ({theirs}): give the data that the model "
            f"was trained on, or train it on these first.{single}".removesuffix(".")
        )
    if sorted(data.values()) == sorted(model.values()):
        order = abridge([brief(name) for name in model.values()], ", ")
        raise DistillError(f"{path} has the model's classes in another order: the model's is {order}")
    moved = [*_moved(data, model), *((i, j) for j, i in _moved(model, data))]
    if moved:
        i, j = moved[0]
        what = f"class {i} is '{brief(data[i])}' there, and '{brief(model[j])}' is class {j} in the model"
        raise DistillError(
            f"{path} has the model's classes in another order: {what}: names and labels must fit the model's"
        )
    differing = [
        f"class {i} is '{brief(data[i])}' there and '{brief(model[i])}' in the model"
        for i in data
        if data[i] != model.get(i)
    ]
    return [f"{path}: {abridge(differing, '; ')}: taken to be the same"]


def _count(path: Path, count: Any) -> int | None:
    if count is None:
        return None
    if isinstance(count, str) and re.fullmatch(r"[0-9]{1,9}", count.strip()):
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DistillError(f"{path}: 'nc: {brief(count)}' must be the number of classes")
    if count > MAX_CLASSES:
        raise DistillError(f"{path}: 'nc: {brief(count)}' is more than {MAX_CLASSES:,} classes")
    return count


def _by_id(path: Path, names: Any) -> dict[int, Any]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    kinds = "a list of class names, or a mapping from id to name"
    if not isinstance(names, dict):
        raise DistillError(f"{path}: 'names' must be {kinds}")
    by_id = {}
    for key, name in names.items():
        if not re.fullmatch(r"[0-9]{1,9}", str(key)) or isinstance(name, (list, dict, set, tuple, bytes)):
            raise DistillError(f"{path}: 'names' must be {kinds}: '{brief(key)}: {brief(name)}' does not fit")
        by_id[int(key)] = name
    return by_id


def _moved(names: Mapping[int, str], others: Mapping[int, str]) -> Iterator[tuple[int, int]]:
    """Each id of which the name stands under another id in `others`, with that id; not if it also stands under the same.

    What counts are the names that are most like it: those equal to it; if there is none, but for case and blanks; else but
    for a plural.
    """
    indexes: list[dict[str, set[int]]] = []
    for forms in _FORMS:
        index: dict[str, set[int]] = defaultdict(set)
        indexes.append(index)
        for j, name in others.items():
            for form in forms(name):
                index[form].add(j)
    for i, name in names.items():
        found = (
            set().union(*(index.get(form, ()) for form in forms(name)))
            for forms, index in zip(_FORMS, indexes, strict=True)
        )
        same = next(filter(None, found), set())
        if same and i not in same:
            yield i, min(same)


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _plurals(name: str) -> set[str]:
    word = _folded(name)
    return {word, f"{word}s", f"{word}es", re.sub("y$", "ies", word)} - {""}


_FORMS: tuple[Callable[[str], set[str]], ...] = (lambda name: {name}, lambda name: {_folded(name)} - {""}, _plurals)
