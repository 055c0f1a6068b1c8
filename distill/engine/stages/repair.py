"""Repair the pruned network from unlabelled images: layer by layer in closed form, then block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

import prune
from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.kinds.kind import Kind
from distill.machine.console import Console
from distill.results import networks
from distill.results.steps import Repair, Repaired


def _work(session: Session) -> Repair:
    options, student = session.recipe.repair, session.load(networks.PRUNED)
    assert options is not None
    network, original = student.model.to(session.device), session.load(session.base).model.to(session.device)
    images = session.images(student, options.images)
    place = (options.steps, session.recipe.seed, session.console)
    layers, blocks = mend(session.kind, network, original, session.plan, images, *place)
    prune.recentre(network, images, adapter=session.kind.adapter)
    session.save(student, networks.REPAIRED, session.plan)
    return Repair(len(images), _errors(layers), _errors(blocks))


def mend(
    kind: Kind,
    network: nn.Module,
    original: nn.Module,
    plan: prune.PrunePlan,
    images: Tensor,
    steps: int,
    seed: int,
    console: Console,
    weights: prune.Weights | None = None,
) -> tuple[list[prune.LayerRepair], list[prune.BlockRepair]]:
    """Repair a pruned network in place.

    Args:
        kind: of the networks.
        network: the pruned network.
        original: what it was cut from, on the same device.
        plan: how.
        images: (N, C, H, W), without labels.
        steps: of the optimizer for each block after the closed form; 0 leaves them out.
        seed: of all that is random.
        console: shows progress and warnings.
        weights: from `prune.repair_weights`, if several networks are repaired.

    Returns:
        A record for each layer, and for each block.
    """
    shared: dict[str, Any] = {"sensitivity": kind.sensitivity(original), "seed": seed}
    shared |= {"progress": console.track, "adapter": kind.adapter}
    blocks: list[prune.BlockRepair] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layers = prune.repair(network, original, plan, images, weights=weights, **shared)
        if steps:
            blocks = prune.reconstruct(network, original, plan, images, steps=steps, **shared)
    for warning in dict.fromkeys(str(warning.message) for warning in caught):
        console.warn(warning)
    return layers, blocks


def _errors(parts: Iterable[prune.LayerRepair | prune.BlockRepair]) -> tuple[Repaired, ...]:
    return tuple(Repaired(part.name, part.error_before, part.error_after, part.changed) for part in parts)


REPAIR = Stage(
    "repair",
    Repair,
    _work,
    reads=("repair", "seed"),
    makes=networks.REPAIRED,
    says=lambda record: f"{len(record.layers)} layers and {len(record.blocks)} blocks on {record.images} images",
    when=lambda recipe: recipe.repair is not None,
    passes=lambda session: options.images * 6 + options.steps * 48 if (options := session.recipe.repair) else 0,
)
