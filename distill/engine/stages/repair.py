"""Repair the pruned network from unlabelled images: layer by layer in closed form, then block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import prune
from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.results import networks
from distill.results.results import Repair, Repaired
from distill.yolo.families.adapter import YOLO_ADAPTER
from distill.yolo.families.outputs import sensitivity_of


def _work(session: Session) -> Repair:
    options, student = session.recipe.repair, session.load(networks.PRUNED)
    assert options is not None
    network, original = student.model.to(session.device), session.load(session.base).model.to(session.device)
    images = session.images(student, options.images)
    shared: dict[str, Any] = {"sensitivity": sensitivity_of(original), "seed": session.recipe.seed}
    shared |= {"progress": session.console.track, "adapter": YOLO_ADAPTER}
    blocks: list[prune.BlockRepair] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layers = prune.repair(network, original, session.plan, images, **shared)
        if options.steps:
            blocks = prune.reconstruct(network, original, session.plan, images, steps=options.steps, **shared)
    prune.recentre(network, images, adapter=YOLO_ADAPTER)
    for warning in dict.fromkeys(str(warning.message) for warning in caught):
        session.console.warn(warning)
    session.save(student, networks.REPAIRED, session.plan)
    return Repair(len(images), _errors(layers), _errors(blocks))


def _errors(parts: Iterable[prune.LayerRepair | prune.BlockRepair]) -> tuple[Repaired, ...]:
    return tuple(Repaired(part.name, part.error_before, part.error_after, part.changed) for part in parts)


REPAIR = Stage(
    "repair",
    Repair,
    _work,
    reads=("repair", "seed"),
    makes=networks.REPAIRED,
    when=lambda recipe: recipe.repair is not None,
    passes=lambda session: options.images * 6 + options.steps * 48 if (options := session.recipe.repair) else 0,
)
