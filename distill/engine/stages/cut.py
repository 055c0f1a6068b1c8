"""Decide what to cut, cut it, and prove that the cut is exact."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import prune
from distill.engine.folder import PLAN
from distill.engine.planning import make_plan
from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.errors import DistillError
from distill.results import networks

EXACT = 1e-6  # a difference between masked and pruned outputs, in float64, that is rounding


@dataclass(frozen=True)
class CutRecord:
    """`verify`: the largest difference between the masked original's outputs and the pruned network's, in float64."""

    verify: float


def _work(session: Session) -> CutRecord:
    original = session.load(session.base)
    plan = make_plan(session.recipe, original, session.data, session.device, session.console)
    student = prune.apply(original.model, plan, adapter=session.kind.adapter)
    images = session.images(original, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        difference = prune.verify(original.model, student, plan, images, adapter=session.kind.adapter)
    for warning in dict.fromkeys(str(warning.message) for warning in caught):
        session.console.warn(warning)
    if not difference < EXACT:  # written so that NaN fails
        raise DistillError(
            f"the cut is not exact, outputs differ by {difference:.2g} from the masked original: report it"
        )
    session.console.line(f"exact: {difference:.1e} from the masked original, in float64")
    session.folder.write_text(PLAN, plan.to_json())
    session.save(replace(original, model=student), networks.PRUNED, plan)
    return CutRecord(difference)


CUT = Stage(
    "cut",
    CutRecord,
    _work,
    reads=("prune", "seed"),
    makes=networks.PRUNED,
    files=(PLAN,),
    says=lambda record: f"exact to {record.verify:.1e}",
    passes=lambda session: 5 * options.images if (options := session.recipe.prune) else 0,
)
