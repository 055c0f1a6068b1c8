"""curve.json: accuracy after the cut and after repair over a range of budgets, as typed records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.files import read_json
from distill.machine.words import html_table, text_table
from distill.results.records import from_plain, of_format

FORMAT = 1
FILE = "curve.json"


@dataclass(frozen=True)
class CurvePoint:
    """One budget: what the network costs that is cut to it, and how good it is."""

    budget: float  # the value of the recipe's key
    gflops: float
    params: int
    pruned: float | None  # after the cut, by the curve's yardstick; None if the teacher sees nothing to agree with
    repaired: float | None  # after repair in closed form; None without repair
    seconds: float  # that it took to measure

    @property
    def score(self) -> float | None:
        """How good the network is that training would start from."""
        return self.pruned if self.repaired is None else self.repaired


@dataclass(frozen=True)
class CurveSetting:
    """What all points of a curve have in common. Points of two settings do not belong on one curve."""

    recipe: dict[str, Any]  # every key that moves a point, and its value
    checkpoint: str  # the first digits of the SHA-256 of the teacher's file
    steps: int  # optimizer steps for each block after the closed form; 0 leaves them out


@dataclass(frozen=True)
class CurveResults:
    """What curve.json says. Nothing on it was trained, so a run usually ends above it."""

    format: int
    recipe_name: str
    key: str  # what is budgeted: flops, params or ratio
    setting: CurveSetting
    model: str
    data: str
    imgsz: int
    device: str  # where it was measured
    labelled: bool
    judged_by: str  # mAP50-95, or agreement with the teacher
    images: int  # how many val images judged
    teacher: float | None  # how good the teacher is
    teacher_gflops: float
    teacher_params: int
    map_drop: float | None  # accept.map_drop; None without labels, for it is a limit on mAP
    points: tuple[CurvePoint, ...]  # the least cut first
    unreachable: tuple[float, ...]  # budgets that cannot be met within protect, max_ratio and round_to
    seconds: float  # for the statistics and the teacher, without the points

    def accepts(self, point: CurvePoint) -> bool | None:
        """Whether a point keeps what `accept` asks; None if there is nothing to judge it by."""
        if self.map_drop is None or self.teacher is None or point.score is None:
            return None
        return point.score >= self.teacher - self.map_drop

    @cached_property
    def kept(self) -> CurvePoint | None:
        """The smallest budget that keeps what `accept` asks, as all larger ones do; None if there is none."""
        kept = None
        for point in self.points:
            if not self.accepts(point):
                break
            kept = point
        return kept

    @cached_property
    def lost(self) -> CurvePoint | None:
        """The largest budget that does not keep what `accept` asks; None if all do."""
        return next((point for point in self.points if self.accepts(point) is False), None)

    def share(self, point: CurvePoint) -> float:
        """The FLOPs of a point as a share of the teacher's."""
        return point.gflops / self.teacher_gflops

    @classmethod
    def read(cls, folder: Path) -> CurveResults | None:
        """What the curve.json in a folder says; None if there is none. Raises `DistillError`: damaged, or another layout."""
        file = folder / FILE
        try:
            return from_plain(cls, of_format(read_json(file), FORMAT))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            message = f"{file} was not written by this version or is damaged ({error}): remove it, and measure again"
            raise DistillError(message) from None

    @property
    def table(self) -> list[tuple[str, ...]]:
        """A row for each budget, under a title row; the teacher's first."""

        def text(score: float | None) -> str:
            return "" if score is None else f"{score:.3f}"

        rows: list[tuple[str, ...]] = [(self.key, "GFLOPs", f"{self.judged_by} after the cut", "after repair")]
        rows.append(("teacher", f"{self.teacher_gflops:.2f}", text(self.teacher), ""))
        for each in self.points:
            rows.append((f"{each.budget:g}", f"{each.gflops:.2f}", text(each.pruned), text(each.repaired)))
        return rows

    def __str__(self) -> str:
        """The table, and the budget that keeps what `accept` asks."""
        kept = [f"{self.key}={self.kept.budget:g} keeps what accept asks"] if self.kept else []
        return "\n".join([*text_table(self.table, numbers=True), *kept])

    def __repr__(self) -> str:
        return f"CurveResults({self.recipe_name}: {len(self.points)} budgets of {self.key})"

    def _repr_html_(self) -> str:
        return html_table(self.table)

    def to_dict(self) -> dict[str, Any]:
        """What curve.json holds."""
        return asdict(self)


def in_order(points: Iterable[CurvePoint], key: str) -> tuple[CurvePoint, ...]:
    """Points from the least cut one to the most cut one. A ratio says how much is cut, the other keys what is kept."""
    return tuple(sorted(points, key=lambda point: point.budget, reverse=key != "ratio"))
