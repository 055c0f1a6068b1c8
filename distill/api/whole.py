"""The public functions for whole runs: `distill.run`, `resume`, `compare` and `sweep`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.api.arguments import Progress, as_typed, console_of, overrides_of, public
from distill.errors import DistillError

if TYPE_CHECKING:
    from distill.machine.progress import EpochCallback
    from distill.results.comparison import ComparisonResults
    from distill.results.results import Results
    from distill.results.sweep import SweepResults


@public
def run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress = False,
    quiet: bool = False,
    on_epoch: EpochCallback | None = None,
    **keys: Any,
) -> Results:
    """Run a recipe, as `distill run` does.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line: `{"distill.epochs": 5}`.
        out: the run folder; `runs/<recipe>-<n>` by default.
        progress: True shows what the command line shows; a function is called as progress(iterable, label, total, unit) for
            each loop, and what it returns is iterated over, as with tqdm.
        quiet: with `progress=True`, show warnings and the result only.
        on_epoch: called after each epoch of a training with its row: `stage`, `epoch`, `lr`, the losses by name, `map50_95`.
        **keys: keys of the recipe: `model="best.pt"`, `imgsz=320`, `prune={"flops": 0.3}`.

    Returns:
        The content of results.json: `results.student.map50_95`, `print(results)`, `results.rows()` for pandas.

    Raises:
        DistillError, PruneError: bad input, in one clear line each.
        RunError: a fault of the machine, such as a full disk; the message says how to go on.
    """
    from distill.api import runs
    from distill.machine import parallel

    parallel.require_single("distill.run")
    read, path = runs.recipe_and_folder(recipe, overrides_of(overrides, keys), out=out)
    with closing(console_of(progress, quiet)) as console:
        results = runs.run(read, path, console, on_epoch=on_epoch)
    assert results is not None  # there is one process, and it leads
    return results


@public
def resume(
    folder: str | Path, *, progress: Progress = False, quiet: bool = False, on_epoch: EpochCallback | None = None
) -> Results | ComparisonResults | SweepResults:
    """Go on with a run, a comparison or a sweep that was ended before its time, as `distill run --resume` does.

    Args:
        folder: of the run, the comparison or the sweep.
        progress: as of `run`.
        quiet: as of `run`.
        on_epoch: as of `run`; of a run only.

    Returns:
        What the run, the comparison or the sweep would have returned.

    Raises:
        DistillError: there is no run in the folder, or one that is going on.
    """
    from distill.api import runs
    from distill.machine import parallel

    parallel.require_single("distill.resume")
    with closing(console_of(progress, quiet)) as console:
        return runs.resume(Path(folder), console, quiet=quiet, on_epoch=on_epoch)


@public
def compare(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    arms: Sequence[str] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int | None = None,
    lrs: Iterable[float] | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    progress: Progress = False,
    quiet: bool = False,
    **keys: Any,
) -> ComparisonResults:
    """Train the same pruned network in several ways, over seeds, as `distill compare` does.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        arms: names of ways of training (`distill ls arms`); the usual ones by default.
        own: arms of your own: name -> dotted key -> value.
        seeds: runs of each arm, from the recipe's seed on; 3 by default.
        lrs: learning rates to choose from, for each arm, with the first seed; no search by default.
        jobs: runs side by side, each in a process of its own.
        out: the folder; `runs/compare-<recipe>-<n>` by default.
        progress: as of `run`.
        quiet: as of `run`.
        **keys: keys of the recipe, as of `run`.

    Returns:
        The content of compare.json; printed, a row for each arm.

    Raises:
        DistillError, PruneError: bad input, in one clear line each.
    """
    from distill.api import runs
    from distill.machine import parallel

    parallel.require_single("distill.compare")
    read, path = runs.recipe_and_folder(recipe, overrides_of(overrides, keys), out=out, prefix="compare-")
    with closing(console_of(progress, quiet)) as console:
        return runs.compare(runs.arms_of(read, arms, own, seeds, lrs), read, path, console, quiet=quiet, jobs=jobs)


@public
def sweep(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    vary: Mapping[str, Sequence[Any]],
    seeds: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    progress: Progress = False,
    quiet: bool = False,
    **keys: Any,
) -> SweepResults:
    """Do a run for each choice of values, with the stages that they share done once, as `distill sweep` does.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        vary: dotted key -> its values: `{"prune.flops": [0.7, 0.5, 0.3]}`. Of several keys, every combination is run.
        seeds: runs of each choice, from the recipe's seed on; 1 by default.
        jobs: runs side by side, each in a process of its own.
        out: the folder; `runs/sweep-<recipe>-<n>` by default.
        progress: as of `run`.
        quiet: as of `run`.
        **keys: keys of the recipe, as of `run`.

    Returns:
        The content of sweep.json; printed, a row for each run.

    Raises:
        DistillError, PruneError: bad input, in one clear line each.
    """
    from distill.api import runs
    from distill.comparison import sweep as sweeps
    from distill.machine import parallel

    parallel.require_single("distill.sweep")
    several = {key: tuple(map(as_typed, values)) for key, values in vary.items()}
    if empty := [key for key, values in several.items() if not values]:
        raise DistillError(f"distill.sweep: vary has no value of {empty[0]}: give a list, as in [0.7, 0.5]")
    given = {**overrides_of(overrides, keys), **{key: values[0] for key, values in several.items()}}
    read, path = runs.recipe_and_folder(recipe, given, out=out, prefix="sweep-")
    with closing(console_of(progress, quiet)) as console:
        plan = partial(sweeps.plan, several=several, seeds=seeds)
        return runs.sweep(plan, read, path, console, quiet=quiet, jobs=jobs)
