"""The places of a network at which losses can compare features, and what a cut keeps there: `distill ls features`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import prune
from distill.engine.folder import PLAN
from distill.engine.kinds import kind_at
from distill.engine.size import image_size
from distill.errors import DistillError
from distill.kinds.kind import Kind
from distill.losses.context import NECK
from distill.machine.words import html_table, printable, text_table
from distill.recipe.schema import FeatureOptions
from distill.training.points import check_alike, image_of, is_feature
from prune.cut.surgery import check


@dataclass(frozen=True)
class Feature:
    """One feature (B, C, H, W) at a point.

    Attributes:
        point: what `distill.features` calls it: "neck", which has one for each level, or the path of a module.
        module: class of the module; of the neck, the level.
        channels: C.
        height, width: H and W, for an image of the size that is asked for.
        stride: pixels to a cell.
        kept: how many of the channels a plan keeps; None without a plan.
    """

    point: str
    module: str
    channels: int
    height: int
    width: int
    stride: int
    kept: int | None = None


class Features(tuple[Feature, ...]):
    """What `distill ls features` lists; printed, a row for each."""

    def rows(self) -> list[tuple[str, ...]]:
        """A title row, and the cells of each feature."""
        cut = any(feature.kept is not None for feature in self)
        title = ("feature", "module", "channels", *(("kept",) if cut else ()), "grid", "stride")
        return [title, *(self._cells(feature, cut) for feature in self)]

    @staticmethod
    def _cells(feature: Feature, cut: bool) -> tuple[str, ...]:
        kept = (str(feature.kept),) if cut else ()
        grid = f"{feature.height}x{feature.width}"
        return (feature.point, feature.module, str(feature.channels), *kept, grid, str(feature.stride))

    def __str__(self) -> str:
        return "\n".join(text_table(self.rows()))

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def features(options: FeatureOptions) -> Features:
    """The points of a checkpoint at which student and teacher compare, in the order in which they run.

    Raises:
        DistillError: the checkpoint or the plan cannot be read, or the plan is of another network.
    """
    kind = kind_at(options.model)
    network = kind.open(options.model, trust=options.trust, code=options.code)
    plan = None if options.plan is None else _plan(Path(options.plan), network.model)
    return Features(_features(kind, network.model, image_size(options.imgsz, network, kind).pixels, plan))


def _features(kind: Kind, model: nn.Module, size: int, plan: prune.PrunePlan | None) -> Iterator[Feature]:
    kept: Sequence[Sequence[int] | None] | None = None if plan is None else kind.neck_keep(model, plan)
    neck = kind.neck(model, size)
    for level, (shape, channels) in enumerate(zip(neck, kept or [None] * len(neck), strict=True)):
        count = None if channels is None else len(channels)
        yield _feature(NECK, f"level {level}", shape, size, count)
    outputs = prune.trace_outputs(model, image_of(model, size), adapter=kind.adapter)
    for point in _alike(kind, model, (path for path, output in outputs.items() if is_feature(output))):
        output = outputs[point]
        yield _feature(point, output.kind, output.shape, size, None if plan is None else len(output.kept(plan)))


def _feature(point: str, module: str, shape: tuple[int, ...], size: int, kept: int | None) -> Feature:
    _, channels, height, width = shape
    return Feature(point, module, channels, height, width, size // height, kept)


def _alike(kind: Kind, model: nn.Module, points: Iterable[str]) -> Iterator[str]:
    """The points that mean the same in a student and in its teacher, whose BatchNorm is folded in."""
    teacher = kind.fused(model)
    for point in points:
        try:
            check_alike(model, teacher, [point])
        except DistillError:
            continue
        yield point


def _plan(path: Path, model: nn.Module) -> prune.PrunePlan:
    """The plan of a run folder, or of a plan.json, for this network."""
    file = path / PLAN if path.is_dir() else path
    try:
        plan = prune.PrunePlan.from_json(file.read_text(encoding="utf-8"))
        check(model, plan)
    except FileNotFoundError:
        raise DistillError(
            f"there is no {printable(file)}: give the folder of a run that has cut its network"
        ) from None
    except (OSError, ValueError, prune.PruneError) as error:
        raise DistillError(f"{printable(file)}: {error}") from None
    return plan
