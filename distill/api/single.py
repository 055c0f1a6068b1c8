"""The public functions for one step each: `distill.load`, `check`, `plan`, `curve`, `features`, `evaluate` and `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.api.arguments import Progress, console_of, options_of, overrides_of, public
from distill.errors import DistillError

if TYPE_CHECKING:
    from torch import nn

    import prune
    from distill.engine.features import Features
    from distill.engine.preflight import Preflight
    from distill.engine.standalone import Evaluated, Exports
    from distill.results.curve import CurveResults

Folders = str | Path | Sequence[str | Path]


@public
def load(path: str | Path, *, trust: bool = False, code: Folders = ()) -> nn.Module:
    """The network in a YOLO checkpoint: float32, eval mode, on the CPU. Nothing pickled in the file is executed.

    Args:
        path: a .pt file that ultralytics saved.
        trust: unpickle the file as Python would, and run the code in it. Only for files whose source you trust.
        code: the folder of a fork's own code (or several), for checkpoints with blocks of its own. Needs `trust`.

    Raises:
        DistillError: it cannot be opened, or is no detector that can be pruned.
    """
    from distill.engine.kinds import kind_at

    folders = [code] if isinstance(code, (str, Path)) else code
    return kind_at(path).open(path, trust=trust, code=folders).model


@public
def check(
    recipe: str | Path, overrides: Mapping[str, Any] | None = None, *, progress: Progress = False, **keys: Any
) -> Preflight:
    """Open everything that a run needs, as `distill check` does. Nothing is written.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        progress: as of `run`.
        **keys: keys of the recipe, as of `run`.

    Returns:
        The opened inputs; printed, what they are. `warnings` has what a run would warn of.

    Raises:
        DistillError, PruneError: bad input, in one clear line each.
    """
    from distill.engine import standalone
    from distill.recipe.load import load as read

    with closing(console_of(progress, False)) as console:
        return standalone.check(read(recipe, overrides_of(overrides, keys), files=True), console)


@public
def plan(
    recipe: str | Path, overrides: Mapping[str, Any] | None = None, *, progress: Progress = False, **keys: Any
) -> prune.PrunePlan:
    """What a run would cut, as `distill plan` shows it. Nothing is written.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        progress: as of `run`.
        **keys: keys of the recipe, as of `run`.

    Returns:
        The plan; printed, the channels of every group before and after. `prune.apply(model, plan)` makes the cut.

    Raises:
        DistillError, PruneError: bad input, or a budget that cannot be met.
    """
    from distill.engine import standalone
    from distill.recipe.load import load as read

    with closing(console_of(progress, False)) as console:
        return standalone.plan(read(recipe, overrides_of(overrides, keys), files=True), console)


@public
def curve(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    budgets: Sequence[float] = (),
    full_repair: bool = False,
    out: str | Path | None = None,
    progress: Progress = False,
    **keys: Any,
) -> CurveResults:
    """How far one can go: accuracy after the cut and after repair, as `distill plan --curve` measures it.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: dotted key -> value, as `key=value` on the command line.
        budgets: shares between 0 and 1; a range, and some around the limit, by default.
        full_repair: repair block by block too, as a run does.
        out: a folder for curve.json and a page; points that it has already are not measured again.
        progress: as of `run`.
        **keys: keys of the recipe, as of `run`.

    Returns:
        The content of curve.json; printed, a row for each budget. `kept` is the budget that keeps what `accept` asks.

    Raises:
        DistillError, PruneError: bad input, in one clear line each.
    """
    from distill.engine import standalone
    from distill.engine.curve import CurveOptions
    from distill.recipe.load import load as read

    options = CurveOptions(tuple(budgets), full_repair)
    with closing(console_of(progress, False)) as console:
        given = read(recipe, overrides_of(overrides, keys), files=True)
        return standalone.curve(given, options, Path(out) if out else None, console)


@public
def features(
    model: str | Path,
    *,
    plan: str | Path | None = None,
    imgsz: int | None = None,
    trust: bool = False,
    code: Folders = (),
) -> Features:
    """Where losses can compare features of a checkpoint and of its pruned student, as `distill ls features` lists it.

    Args:
        model: a .pt file.
        plan: the folder of a run, or its plan.json: how many channels the cut keeps.
        imgsz: input size in pixels; the checkpoint's own by default.
        trust: execute what is pickled in the checkpoint. Only for files you made.
        code: as of `load`.

    Returns:
        Of each feature its point, module, channels, grid and stride; printed, a row for each.

    Raises:
        DistillError: bad input, in one clear line.
    """
    from distill.engine.features import features as listed
    from distill.recipe.schema import FeatureOptions

    return listed(options_of(FeatureOptions, model=model, plan=plan, imgsz=imgsz, trust=trust, code=code))


@public
def evaluate(
    checkpoint: str | Path,
    *,
    data: str | Path,
    teacher: str | Path | None = None,
    pictures: str | Path | None = None,
    imgsz: int | None = None,
    batch: int = 16,
    device: str = "",
    trust: bool = False,
    code: Folders = (),
    progress: Progress = False,
) -> Evaluated:
    """Measure a checkpoint's mAP on the val images, as `distill eval` does.

    Args:
        checkpoint: a .pt file.
        data: a data.yaml.
        teacher: the original checkpoint: also measure how its boxes and scores changed.
        pictures: a folder for pictures of the images on which both differ; none are drawn by default.
        imgsz: input size in pixels; the checkpoint's own by default.
        batch: images in a batch.
        device: `cpu`, `0`, `cuda:1`; a GPU if there is one by default.
        trust: execute what is pickled in the checkpoint. Only for files you made.
        code: as of `load`.
        progress: as of `run`.

    Returns:
        `map50_95`, `map50`, `precision`, `recall`, `per_class`, all 0 to 1; printed, a table.

    Raises:
        DistillError: bad input, in one clear line.
    """
    from distill.engine import standalone
    from distill.recipe.schema import EvalOptions

    given = {"data": data, "teacher": teacher, "pictures": pictures, "imgsz": imgsz, "batch": batch, "device": device}
    options = options_of(EvalOptions, **given, trust=trust, code=code)
    with closing(console_of(progress, False)) as console:
        return standalone.evaluate(checkpoint, options, console)


@public
def export(
    checkpoint: str | Path, *formats: str, imgsz: int | None = None, trust: bool = False, code: Folders = ()
) -> Exports:
    """Convert a checkpoint and check the outputs, as `distill export` does. The results lie beside it.

    Args:
        checkpoint: a .pt file.
        *formats: `onnx`, `torchscript`, `openvino`, ...
        imgsz: input size in pixels; the checkpoint's own by default.
        trust: execute what is pickled in the checkpoint. Only for files you made.
        code: as of `load`.

    Returns:
        Of each format the file, its size, and how far its outputs are from the checkpoint's; printed, a line.

    Raises:
        DistillError: an unknown format, a missing package, or outputs that differ.
    """
    from distill.engine import standalone
    from distill.recipe.schema import ExportOptions

    if not formats:
        raise DistillError("distill.export: no format to export to: distill.export('best.pt', 'onnx')")
    options = options_of(ExportOptions, imgsz=imgsz, trust=trust, code=code)
    with closing(console_of(False, False)) as console:
        return standalone.Exports(standalone.export(checkpoint, formats, options, console))
