"""Finished runs and comparisons as small JSON files, which are kept and which the page of all results is made of."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError
from distill.results import comparison, results
from distill.results.comparison import ComparisonResults, Setting
from distill.results.records import RecordError, from_plain
from distill.results.results import Results

# Long lists that no page shows, by the key they stand under.
_DROPPED = ("history", "epoch_seconds", "groups", "layers", "blocks")
_LEFT_OUT = ("curves", "pictures")  # records that a network or a run may lack
_PATH = re.compile(r"(?<![\w.~-])/(?:[^\s/:'\",{}\[\]]+/)*(?P<parent>[^\s/:'\",{}\[\]]+/)(?P<name>[^\s/:'\",{}\[\]]+)")


@dataclass(frozen=True)
class Comparison(ComparisonResults):
    """A comparison of which at least one run is finished, with the recipe that its arms have in common."""

    about: Setting
    recipe: dict[str, Any]


def read(folder: Path) -> dict[str, Results | Comparison]:
    """Read every JSON file of a folder, by its name, in alphabetical order.

    Raises:
        DistillError: there is none, or one is neither of a run nor of a comparison.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        mend = f"add finished runs: distill report --results {folder} RUN_DIR"
        raise DistillError(f"{folder}: holds no .json file; {mend}")
    return {file.name: _read(file) for file in files}


def shrink(run_dir: Path) -> dict[str, Any]:
    """What is kept of the folder of a finished run or comparison: no long lists, and no path of the machine it ran on.

    Raises:
        DistillError: the folder holds neither file, or a damaged one.
    """
    names = (comparison.FILE, results.FILE)
    file = next((run_dir / name for name in names if (run_dir / name).is_file()), None)
    if file is None:
        raise DistillError(f"{run_dir} holds neither {' nor '.join(names)}: give the folder of a run that is finished")
    content = _load(file)
    if "recipe" not in content:  # that of a comparison lies beside it
        recipe = run_dir / "recipe.yaml"
        if not recipe.is_file():
            raise DistillError(f"{recipe}: not there, and only it says how {file} was made")
        content["recipe"] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    kept: dict[str, Any] = _small(content)
    return kept


def _read(file: Path) -> Results | Comparison:
    content = _load(file)
    try:
        return from_plain(Comparison, content) if "arms" in content else from_plain(Results, content)
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


def _small(value: Any) -> Any:
    """Without long lists, and absolute paths by their last part; of a data.yaml, which all are called so, the folder too."""
    if isinstance(value, str):
        return _PATH.sub(lambda path: path["parent"] * path["name"].endswith(("yaml", "yml")) + path["name"], value)
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if key not in _LEFT_OUT or not isinstance(inner, dict)}
        return {_small(key): [] if key in _DROPPED and inner else _small(inner) for key, inner in value.items()}
    return [_small(inner) for inner in value] if isinstance(value, list) else value
