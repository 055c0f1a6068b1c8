"""Pictures of val images with the boxes of teacher, repaired network and student: where they differ, and typical ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.engine.stages.select import SELECT
from distill.engine.stages.teachers import TEACHERS
from distill.losses.spec import ORIGINAL
from distill.results.figures import Evaluation
from distill.results.networks import STUDENT, TEACHER, network_of
from distill.results.quality import Pictures

FOLDER = "pictures"


def _work(session: Session) -> Pictures:
    selection = SELECT.recorded(session)
    assert selection is not None  # every run has it
    chosen, start, teacher = network_of(selection.chosen), session.start, session.reference
    others = TEACHERS.recorded(session)
    known = others.teachers if others else ()
    first = ORIGINAL if teacher == TEACHER and known else TEACHER.name
    panels = {first: session.boxes(teacher)}
    if start != chosen and teacher == TEACHER:  # else nothing was cut: it is where training started
        panels[start.name] = session.boxes(start)
    panels[STUDENT.name] = session.boxes(chosen)
    measured = evaluation_of(TEACHER).recorded(session)
    if teacher != TEACHER:
        measured = next(each.evaluation for each in known if each.name == teacher.name)
    figures = (_figures(measured), _figures(evaluation_of(chosen).recorded(session)))
    made: list[Pictures] = []

    def draw(folder: Path) -> None:
        def write(name: str, content: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        folder.mkdir()

        options: dict[str, Any] = {"count": session.recipe.pictures, "warn": session.console.warn}
        made.append(session.kind.pictures(session.data, panels, write, figures=figures, small=True, **options))

    session.folder.write_with(FOLDER, draw)
    count = sum(len(group.pictures) for group in made[0].groups)
    session.console.line(f"{count} of {made[0].images} val images, with the boxes of {', '.join(panels)}: {FOLDER}/")
    return made[0]


def _figures(evaluation: Evaluation | None) -> dict[str, float]:
    """By class: AP, or without labels agreement."""
    if evaluation is None:
        return {}
    figures = evaluation.agreement_per_class if evaluation.per_class is None else evaluation.per_class
    return figures or {}


PICTURES = Stage(
    "pictures",
    Pictures,
    _work,
    reads=("pictures",),
    more_files=lambda record: [f"{FOLDER}/{file}" for file in record.files],
    when=lambda recipe: recipe.pictures > 0,
    applies=lambda session: session.kind.draws,
)
