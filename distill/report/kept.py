"""Finished runs and comparisons as small JSON files, which are kept and which the page of all results is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError
from distill.results.comparison import ArmRun, ComparisonResults, Setting
from distill.results.records import RecordError, from_plain
from distill.results.results import DataFacts

RUN, COMPARISON, RECIPE = "results.json", "compare.json", "recipe.yaml"
# Long lists that no page shows, by the key they stand under.
_DROPPED = ("history", "epoch_seconds", "groups", "layers", "blocks")
_PATH = re.compile(r"(?<![\w.~-])/(?:[^\s/:'\",{}\[\]]+/)*(?P<parent>[^\s/:'\",{}\[\]]+/)(?P<name>[^\s/:'\",{}\[\]]+)")


@dataclass(frozen=True)
class Milliseconds:
    """Latency of one forward pass at batch 1."""

    median: float


@dataclass(frozen=True)
class Measured:
    """One network: how good it is and what it costs."""

    map50_95: float | None
    params: int
    gflops: float
    map50: float | None = None
    size_mb: float | None = None
    latency_ms: Milliseconds | None = None


@dataclass(frozen=True)
class Run:
    """One run: of results.json what the page shows. `chosen` names the network that is the student."""

    recipe: dict[str, Any]
    recipe_name: str
    data: DataFacts
    device: str
    versions: dict[str, str]
    models: dict[str, Measured]
    chosen: str

    @property
    def teacher(self) -> Measured:
        """The network that was cut."""
        return self.models["teacher"]

    @property
    def student(self) -> Measured:
        """The result."""
        return self.models[self.chosen]


@dataclass(frozen=True)
class Comparison(ComparisonResults):
    """One comparison, with the recipe that its arms have in common."""

    about: Setting
    recipe: dict[str, Any]

    def rows(self, arm: str) -> list[ArmRun]:
        """The runs of an arm with the learning rate that was chosen for it, by seed."""
        if arm not in self.chosen:
            return []
        mine = (row for row in self.runs if row.arm == arm and row.lr_tried == self.chosen[arm])
        return sorted(mine, key=lambda row: row.seed)


def read(folder: Path) -> dict[str, Run | Comparison]:
    """Read every JSON file of a folder, by its name, in alphabetical order.

    Raises:
        DistillError: there is none, or one is neither of a run nor of a comparison.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DistillError(
            f"{folder}: holds no .json file; add finished runs: distill report --results {folder} RUN_DIR"
        )
    return {file.name: _read(file) for file in files}


def shrink(run_dir: Path) -> dict[str, Any]:
    """What is kept of a finished run or comparison: no long lists, and no path of the machine it ran on.

    Args:
        run_dir: its folder, with results.json or compare.json, and recipe.yaml.

    Raises:
        DistillError: the folder holds neither file, or a damaged one.
    """
    file = next((run_dir / name for name in (COMPARISON, RUN) if (run_dir / name).is_file()), None)
    if file is None:
        raise DistillError(f"{run_dir} holds neither {RUN} nor {COMPARISON}: give the folder of a run that is finished")
    content = _load(file)
    if "recipe" not in content:  # of a comparison it lies beside it
        recipe = run_dir / RECIPE
        if not recipe.is_file():
            raise DistillError(f"{recipe}: not there, so nobody can say how {file} was made")
        content["recipe"] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    kept: dict[str, Any] = _without_paths(_without_lists(content))
    return kept


def _read(file: Path) -> Run | Comparison:
    content = _load(file)
    record: type[Run | Comparison] = Comparison if "arms" in content else Run
    try:
        return from_plain(record, content)
    except RecordError as error:
        mend = f"add it from its folder: distill report --results {file.parent} RUN_DIR"
        raise DistillError(f"{file}: {error}; {mend}") from error


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DistillError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DistillError(f"{file}: is not the result of a run or of a comparison")
    return content


def _without_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: [] if key in _DROPPED and inner else _without_lists(inner) for key, inner in value.items()}
    return [_without_lists(inner) for inner in value] if isinstance(value, list) else value


def _without_paths(value: Any) -> Any:
    """Absolute paths by their last part; of a data.yaml, which all are called so, the folder too."""
    if isinstance(value, str):
        return _PATH.sub(lambda path: path["parent"] * path["name"].endswith(("yaml", "yml")) + path["name"], value)
    if isinstance(value, Mapping):
        return {_without_paths(key): _without_paths(inner) for key, inner in value.items()}
    return [_without_paths(inner) for inner in value] if isinstance(value, list) else value


def comparisons(kept: Iterable[Run | Comparison]) -> list[Comparison]:
    """Those that compare, the least cut first."""
    return sorted((one for one in kept if isinstance(one, Comparison)), key=lambda one: -share(one))


def runs(kept: Iterable[Run | Comparison]) -> list[Run]:
    """Those that are single runs, the least cut first."""
    return sorted((one for one in kept if isinstance(one, Run)), key=lambda one: -share(one))


def share(kept: Run | Comparison) -> float:
    """How much of the FLOPs is left, 0 to 1."""
    if isinstance(kept, Run):
        return kept.student.gflops / kept.teacher.gflops
    return kept.about.pruned.gflops / kept.about.teacher.gflops
