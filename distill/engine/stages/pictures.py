"""Pictures of val images with the boxes of teacher, repaired network and student: where they differ, and typical ones."""

from __future__ import annotations

from pathlib import Path

from distill.engine.session import Session
from distill.engine.stage import Stage, evaluation_of
from distill.engine.stages.select import SELECT
from distill.results.networks import STUDENT, TEACHER, network_of
from distill.results.quality import Pictures
from distill.results.results import Evaluation
from distill.yolo.evaluation.pictures import make_pictures

FOLDER = "pictures"


def _work(session: Session) -> Pictures:
    selection = SELECT.recorded(session)
    assert selection is not None  # every run has it
    chosen, start = network_of(selection.chosen), session.start
    panels = {TEACHER.name: session.boxes(TEACHER)}
    if start != chosen:
        panels[start.name] = session.boxes(start)
    panels[STUDENT.name] = session.boxes(chosen)
    worst = worst_class(evaluation_of(TEACHER).recorded(session), evaluation_of(chosen).recorded(session))
    made: list[Pictures] = []

    def draw(folder: Path) -> None:
        def write(name: str, content: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        folder.mkdir()

        count, warn = session.recipe.pictures, session.console.warn
        made.append(make_pictures(session.data, panels, write, count=count, worst=worst, warn=warn))

    session.folder.write_with(FOLDER, draw)
    count = sum(len(group.pictures) for group in made[0].groups)
    session.console.line(f"{count} of {made[0].images} val images, with the boxes of {', '.join(panels)}: {FOLDER}/")
    return made[0]


def worst_class(before: Evaluation | None, after: Evaluation | None) -> str | None:
    """The name of the class that lost most: AP, or without labels agreement. None if there is one class, or none lost."""
    if before is None or after is None:
        return None
    first, last = before.per_class, after.per_class
    if first is None or last is None:
        first, last = before.agreement_per_class or {}, after.agreement_per_class or {}
    losses = {name: first[name] - last.get(name, 0.0) for name in first}
    if len(losses) < 2:
        return None
    worst = max(losses, key=losses.__getitem__)
    return worst if losses[worst] > 0 else None


PICTURES = Stage(
    "pictures", Pictures, _work, reads=("pictures",), files=(FOLDER,), when=lambda recipe: recipe.pictures > 0
)
