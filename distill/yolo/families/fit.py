"""A teacher made to fit a student that was not cut from it: its classes in the student's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from distill.errors import DistillError
from distill.kinds.opened import Opened
from distill.machine.words import printable
from distill.yolo.families.table import family_of


def fitted(teacher: Opened, student: Opened) -> Opened:
    """A teacher with its classes in the order of the student's, matched by name.

    Args:
        teacher: as it was opened; its head is changed.
        student: the network that it is to teach.

    Raises:
        DistillError: a class that only one of them has, or other strides.
    """
    ours, theirs = ([int(each) for each in network.model.stride] for network in (student, teacher))  # type: ignore[union-attr]
    if ours != theirs:
        raise DistillError(
            f"teacher {teacher.source} has cells of {_list(theirs)} pixels and {student.source} of {_list(ours)}: their "
            "outputs have no cells in common: give a teacher of the same strides"
        )
    wanted, known = list(student.names.values()), list(teacher.names.values())
    if wanted == known:
        return teacher
    if sorted(wanted) != sorted(known) or len(set(wanted)) < len(wanted):
        raise DistillError(
            f"teacher {teacher.source} has other classes than {student.source} ({'; '.join(_differing(wanted, known))}): "
            "give a teacher of the same classes, in any order"
        )
    network = teacher.model
    family_of(network).reorder(network.model[-1], [known.index(name) for name in wanted])  # type: ignore[index]
    network.names = dict(student.names)  # type: ignore[assignment]
    return replace(teacher, names=dict(student.names))


def _differing(wanted: list[str], known: list[str]) -> Iterator[str]:
    """What is wrong with the classes, the first few of them."""
    for what, names, others in (("it lacks", wanted, known), ("it has besides", known, wanted)):
        only = [f"'{printable(name, 60)}'" for name in names if name not in others]
        if only:
            yield f"{what} {', '.join(only[:3])}{f' and {len(only) - 3} more' if len(only) > 3 else ''}"
    if set(wanted) == set(known):
        yield "a name stands for several of them"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))
