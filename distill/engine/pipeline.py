"""The flow of a run, top to bottom: teacher, cut, repair, training, the best of them; exported, measured, reported.

Every stage declares itself in a file of `distill.engine.stages`. It ends in a record in stages.json, and in the file of the
network that it makes; the next one starts from these, so a run that was killed goes on after its last finished stage.
"""

from __future__ import annotations

from typing import Any

from distill import report
from distill.engine.folder import RunFolder
from distill.engine.results import assemble
from distill.engine.session import Session
from distill.engine.stage import Stage, forget_incomplete, run_stage, with_evaluations
from distill.engine.stages.average import AVERAGE
from distill.engine.stages.cut import CUT
from distill.engine.stages.export import EXPORT
from distill.engine.stages.measure import MEASURE
from distill.engine.stages.pictures import PICTURES
from distill.engine.stages.repair import REPAIR
from distill.engine.stages.select import SELECT
from distill.engine.stages.sparsify import SPARSIFY
from distill.engine.stages.teacher import TEACHER, check_data
from distill.engine.stages.teachers import TEACHERS, check_networks
from distill.engine.stages.train import TRAIN
from distill.engine.stages.tune import TUNE
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.progress import EpochCallback
from distill.recipe.schema import Recipe
from distill.results.results import FILE, Results

STAGES: tuple[Stage[Any], ...] = (
    TEACHER,
    TEACHERS,
    SPARSIFY,
    CUT,
    REPAIR,
    TUNE,
    TRAIN,
    AVERAGE,
    SELECT,
    EXPORT,
    MEASURE,
    PICTURES,
)


def run(
    recipe: Recipe, folder: RunFolder, console: Console, *, on_epoch: EpochCallback | None = None
) -> Results | None:
    """Run a recipe, from its checkpoint and images to a smaller checkpoint and a report.

    Args:
        recipe: what to do.
        folder: where everything goes; a resumed one goes on after its last finished stage or epoch.
        console: what the user watches.
        on_epoch: called after each epoch of a training.

    Returns:
        The content of results.json; None in a process that does not lead.

    Raises:
        DistillError, PruneError: bad input, before anything is written; or a step that cannot be done.
    """
    session = Session(recipe, folder, console, on_epoch)
    recipe = session.recipe  # with the image size in place of `auto`
    check_data(session)
    check_networks(session)
    stages = list(with_evaluations(stage for stage in STAGES if stage.when(recipe)))
    forget_incomplete(stages, session)
    passes = [stage.passes(session) for stage in stages]
    for number, stage in enumerate(stages, 1):
        if stage.applies(session):
            run_stage(stage, session, number, len(stages), after=sum(passes[number:]))
        elif stage.makes is not None:
            console.line(f"\nstage {number} of {len(stages)}, {stage.name}: left out, nothing is to be gained", "dim")
    if not parallel.is_leader():
        return None
    results = assemble(session)
    folder.write_json(FILE, results.to_dict())
    report.write(folder.path)
    console.result("\n" + report.summary_table(results, folder.path))
    return results
