"""What the teacher and the student cost. Pruned, repaired and trained networks are one structure, so one cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.engine.stages.export import EXPORT
from distill.errors import DistillError
from distill.kinds.kind import Runtime
from distill.machine import env, measure
from distill.results.figures import Cost, Deployed, Latency
from distill.results.networks import STUDENT, TEACHER

WARMUP = 5  # passes before the clock counts


@dataclass(frozen=True)
class MeasureRecord:
    """The costs of both, measured in turns on one machine."""

    teacher: Cost
    student: Cost


def _work(session: Session) -> MeasureRecord:
    size, runs = session.recipe.size, session.recipe.latency.runs
    networks = {network.name: session.kind.deployed(session.load(network).model) for network in (TEACHER, STUDENT)}
    deployed = [_deployed(session, networks, runtime) for runtime in session.kind.runtimes(session.recipe.export)]
    latency = measure.measure_latency(networks, size, session.device, runs, WARMUP, session.console.track)
    costs = {
        name: Cost(
            params=measure.count_params(network),
            gflops=measure.count_gflops(network, size),
            size_mb=measure.file_size_mb(session.folder.path / f"{name}.pt"),
            latency_ms=Latency(*latency[name], runs),
            deployed=tuple(each[name] for each in deployed if each),
        )
        for name, network in networks.items()
    }
    return MeasureRecord(**costs)


def _deployed(session: Session, networks: Mapping[str, Any], runtime: Runtime) -> dict[str, Deployed]:
    """Latency of the exports of both in a runtime; nothing if the teacher cannot be exported."""
    exported = EXPORT.recorded(session)
    assert exported is not None  # it comes before
    folder, recipe, threads = session.folder.path, session.recipe, torch.get_num_threads()
    side = session.kind.input_side(networks[TEACHER.name], recipe.size)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:  # the student is exported already; the teacher stays beside it, for who times both on another machine
        teacher = session.kind.export(
            folder / TEACHER.file, runtime.format, folder / "exports", recipe.size, **session.opening
        )
    except DistillError as error:
        session.console.warn(f"latency in {runtime.title} is not measured, for the teacher has no export: {error}")
        return {}
    student = next(each.file for each in exported.exports if each.format == runtime.format)
    files = {TEACHER.name: teacher.file, STUDENT.name: folder / student}
    passes = {name: partial(runtime.open(file, threads), image) for name, file in files.items()}
    label = f"latency in {runtime.title}"
    times = measure.time_in_turns(passes, recipe.latency.runs, WARMUP, label, session.console.track)
    device = env.device_name("cpu")
    return {
        name: Deployed(runtime.title, device, threads, Latency(*values, recipe.latency.runs))
        for name, values in times.items()
    }


MEASURE = Stage(
    "measure",
    MeasureRecord,
    _work,
    reads=("export", "latency"),
    says=lambda r: f"{r.teacher.latency_ms.median:.3g} ms for the teacher, {r.student.latency_ms.median:.3g} ms now",
)
