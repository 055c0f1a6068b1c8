"""Records of what a network sees: precision over recall, what it takes for what, and pictures of its boxes."""

from __future__ import annotations

from dataclasses import dataclass

from distill.results.records import Brief


@dataclass(frozen=True, repr=False)
class Curves(Brief):
    """Precision over recall and the confusion matrix, both at one IoU and small enough for a file.

    All lists may be empty: a kept copy of results has none.
    """

    precision: tuple[float, ...]  # mean over the classes that occur, at equal steps of recall from 0 to 1; IoU 0.5
    precision_of: dict[str, tuple[float, ...]]  # the same of each class by name; empty if there are many
    # (predicted class, labelled class, boxes) of each pair that occurs; None is the background.
    confusion: tuple[tuple[str | None, str | None, int], ...]


@dataclass(frozen=True, repr=False)
class Beside(Brief):
    """How good what a task has beside boxes is: average precision of masks or poses; without labels, agreement."""

    name: str  # `mask` or `pose`
    map50_95: float  # by the overlap of masks, or the similarity of poses (OKS), at 0.50 to 0.95
    map50: float
    per_class: dict[str, float]  # AP50-95 by class name


def score_of(boxes: float, beside: Beside | None) -> float:
    """By what a network is judged: AP50-95 of its boxes, or the mean of that and of what its task has beside them."""
    return boxes if beside is None else (boxes + beside.map50_95) / 2


@dataclass(frozen=True)
class Picture:
    """One image as each network sees it."""

    image: str  # its file name in the data set
    file: str  # all panels side by side, in the folder of the pictures
    small: dict[str, str]  # file of each panel for the page, by the panel's name; in the same folder
    boxes: dict[str, int]  # how many are drawn in each panel
    alone: dict[str, int]  # how many of those of teacher and student only one of the two has
    difference: float  # between teacher and student, as `distill.yolo.evaluation.difference` measures it


@dataclass(frozen=True, repr=False)
class PictureGroup(Brief):
    """Images that were chosen for one reason: `differ`, `typical`, or `class` and its name."""

    kind: str
    of: str | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures of val images with the boxes of labels, teacher, repaired network and student."""

    confidence: float  # boxes from this score on are drawn
    images: int  # how many there were to choose from
    colours: dict[str, str]  # of each class that is drawn, by name
    groups: tuple[PictureGroup, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, in the folder of the pictures."""
        return tuple(
            file for group in self.groups for each in group.pictures for file in (each.file, *each.small.values())
        )
