"""The confusion matrices of teacher and student: what was labelled, and what each network takes it for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distill.report import canvas, facts
from distill.report.canvas import COLOURS, HALF, hover, new_axes
from distill.results.networks import network_of
from distill.results.results import Results

MOST = 10  # rows of a matrix; of more classes, those with most errors have their own
OTHERS, BACKGROUND = "other classes", "background"


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of one network, as it is drawn."""

    network: str
    title: str  # in a sentence
    against: str  # what the columns are of: "labels", or the teacher's boxes
    names: tuple[str, ...]  # of rows and columns; the last is the background
    boxes: Mapping[tuple[int, int], int]  # (row: predicted, column: labelled) -> how many, if any
    found: int  # objects of every class, shown or not, that are taken for what they are

    def count(self, row: int, column: int) -> int:
        """How many objects of the class in a column are taken for that in a row."""
        return self.boxes.get((row, column), 0)

    @property
    def background(self) -> int:
        """The row of objects that are missed, and the column of boxes where nothing is."""
        return len(self.names) - 1


def confusion_plots(results: Results) -> dict[str, Callable[[], canvas.Drawing | None]]:
    """What draws each plot, by its file name."""
    return {f"confusion-{name}": lambda matrix=matrix: _draw(matrix) for name, matrix in matrices(results).items()}  # type: ignore[misc]


def matrices(results: Results) -> dict[str, Matrix]:
    """Of teacher and student, with the same rows. Of many classes those with most errors have a row, the others share one."""
    if results.chosen == "teacher":
        return {}
    agreement = facts.by_agreement(results)
    shown = {"student": (results.chosen, results.student.curves)}
    if not agreement:  # the teacher agrees with itself
        shown = {"teacher": ("teacher", results.teacher.curves), **shown}
    confusion = {role: curves.confusion for role, (_, curves) in shown.items() if curves and curves.confusion}
    if len(confusion) < len(shown):
        return {}
    pairs = [pair for each in confusion.values() for pair in each]
    errors: Counter[str] = Counter()
    for predicted, labelled, boxes in pairs:
        for name in (predicted, labelled):
            if name is not None:
                errors[name] += boxes if predicted != labelled else 0
    classes = [name for name in results.data.classes or errors if name in errors]
    own = classes if len(classes) <= MOST else [name for name, _ in errors.most_common(MOST - 1)]
    names = (*own, *([OTHERS] if len(own) < len(classes) else []), BACKGROUND)
    place: dict[str | None, int] = {name: row for row, name in enumerate(own)} | {None: len(names) - 1}
    result = {}
    for role, each in confusion.items():
        boxes_at: Counter[tuple[int, int]] = Counter()
        for predicted, labelled, boxes in each:
            boxes_at[place.get(predicted, len(own)), place.get(labelled, len(own))] += boxes
        found = sum(boxes for predicted, labelled, boxes in each if predicted == labelled)
        against = "the teacher's boxes" if agreement else "the labels"
        name = shown[role][0]
        title = network_of(name).title if results.titles[name] == name else f"the {results.titles[name]}"
        result[role] = Matrix(name, title, against, names, boxes_at, found)
    return result


def _draw(matrix: Matrix) -> canvas.Drawing:
    """Numbers of boxes; the colour says what share of the objects in the column they are."""
    size, who = len(matrix.names), matrix.title
    figure, axes = new_axes((HALF[0], 1.2 + 0.34 * max(size, 4)), f"in {matrix.against}", f"by {who}")
    axes.grid(visible=False)
    for column in range(size):
        objects = sum(matrix.count(row, column) for row in range(size))
        for row in range(size):
            boxes = matrix.count(row, column)
            share = boxes / objects if objects else 0.0
            colour = COLOURS[matrix.network if row == column else "pruned"]
            cell = axes.bar(column, 0.92, width=0.94, bottom=row - 0.46, color=colour, alpha=0.06 + 0.6 * share)[0]
            hover(
                cell, f"{matrix.names[column]} in {matrix.against}, {matrix.names[row]} by {who}: {boxes} of {objects}"
            )
            if boxes:
                axes.text(column, row, str(boxes), ha="center", va="center", fontsize=9)
    labels = [canvas.shortened(name, 14) for name in matrix.names]
    turned = size > 5 or max(map(len, labels)) > 11
    axes.set_xticks(range(size), labels, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(size), labels)
    axes.set(xlim=(-0.55, size - 0.45), ylim=(size - 0.45, -0.55))
    missed = sum(matrix.count(matrix.background, column) for column in range(size))
    false = sum(matrix.count(row, matrix.background) for row in range(size))
    return figure, (
        f"Confusion matrix of {who} against {matrix.against}: {matrix.found} objects found, {missed} missed, {false} boxes "
        "where there is no object"
    )
