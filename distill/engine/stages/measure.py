"""What the teacher and the student cost. Pruned, repaired and trained networks are one structure, so one cost."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.machine import measure
from distill.results.networks import STUDENT, TEACHER
from distill.results.results import Cost, Latency
from distill.yolo.checkpoint import detector as checkpoint


@dataclass(frozen=True)
class MeasureRecord:
    """The costs of both, measured in turns on one machine."""

    teacher: Cost
    student: Cost


def _work(session: Session) -> MeasureRecord:
    size, runs = session.recipe.size, session.recipe.latency.runs
    networks = {network.name: checkpoint.fused(session.load(network).model) for network in (TEACHER, STUDENT)}
    latency = measure.measure_latency(networks, size, session.device, runs, progress=session.console.track)
    costs = {
        name: Cost(
            params=measure.count_params(network),
            gflops=measure.count_gflops(network, size),
            size_mb=measure.file_size_mb(session.folder.path / f"{name}.pt"),
            latency_ms=Latency(*latency[name], runs),
        )
        for name, network in networks.items()
    }
    return MeasureRecord(**costs)


MEASURE = Stage("measure", MeasureRecord, _work, reads=("latency",))
