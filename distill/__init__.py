"""Make a trained YOLO smaller: prune it, repair it in closed form, distill it from the original.

network = distill.load("best.pt")                           # the torch module
results = distill.run("recipe.yaml", {"model": "best.pt"})  # what results.json holds
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, RunError

if TYPE_CHECKING:
    from torch import nn

    from distill.results.results import Results

__all__ = ["DistillError", "RunError", "load", "run"]


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The network in a YOLO checkpoint: float32, eval mode, on the CPU. Nothing pickled in the file is executed.

    Args:
        path: a .pt file that ultralytics saved.
        trust: unpickle the file as Python would, and run the code in it. Only for files whose source you trust.

    Raises:
        DistillError: it cannot be opened, or is no detector that can be pruned.
    """
    from distill.yolo.checkpoint import detector as checkpoint

    return checkpoint.load(path, trust=trust).model


def run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Results:
    """Run a recipe, as `distill run` does.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        out: the run folder; `runs/<recipe>-<n>` by default.
        quiet: show warnings and the result only.

    Returns:
        The content of results.json: `results.student.map50_95`, `print(results)`, `results.rows()` for pandas.

    Raises:
        DistillError: bad input, in one clear line each.
    """
    from contextlib import closing

    from distill.engine import pipeline
    from distill.engine.folder import LOG, RunFolder, next_path
    from distill.machine import parallel
    from distill.machine.console import Console
    from distill.recipe import load as recipes

    parallel.require_single("distill.run")
    resolved = recipes.load(recipe, overrides or {})
    path = Path(out) if out else next_path(resolved.name)
    console = Console(quiet=quiet)
    with closing(RunFolder.create(path, recipes.to_yaml(resolved))) as folder, closing(console):
        console.log_to(folder.path / LOG)
        results = pipeline.run(resolved, folder, console)
    assert results is not None  # there is one process, and it leads
    return results
