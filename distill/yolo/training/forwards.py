"""Chooses what a teacher's forward pass runs in: PyTorch, or a runtime that gives the same outputs sooner.

Or, if the recipe says so, PyTorch in bfloat16: that is near, and not the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.context import Outputs
from distill.machine.measure import time_in_turns
from distill.machine.runtimes.runtime import Runtime
from distill.machine.runtimes.table import RUNTIMES
from distill.results.steps import TeacherForward
from distill.training.task import DistillationTask
from distill.training.teacher import Runner, Teacher
from distill.yolo.training.in_memory import InRuntime, difference, missing_packages

_LOG = logging.getLogger(__name__)

AUTO, TORCH, BFLOAT16 = "auto", "torch", "bfloat16"  # words of a recipe beside the packages of runtimes
WORTH_MS = 30e3  # a training whose teacher runs for less than this stays in PyTorch: there is nothing to gain
# How many times as fast as PyTorch a runtime must be. Of two that are nearer to each other than this, the first of the table
# is taken: otherwise the next run would choose another, and end at another student.
GAIN = 1.1
# Largest difference of an output from PyTorch's, in its standard deviations. Between PyTorch's own two memory formats it is
# 2e-5, and between float32 and bfloat16 0.2.
EQUAL = 1e-3
PASSES, WARMUP = 4, 1  # of each candidate

Passes = Mapping[str, Callable[[], object]]
Timer = Callable[[Passes], Mapping[str, float]]  # milliseconds of a pass, by name


def in_turns(passes: Passes) -> dict[str, float]:
    """The median of a few passes."""
    return {name: times[0] for name, times in time_in_turns(passes, PASSES, WARMUP, "teacher").items()}


def check_runtime(wanted: str, device: torch.device) -> None:
    """Refuse a runtime that cannot be used here, before hours of work.

    Raises:
        DistillError: a package is missing, or the run is on a GPU.
    """
    if wanted in (AUTO, TORCH, BFLOAT16):
        return
    runtime = _runtime(wanted)
    if device.type != "cpu":
        where = f"{runtime.title} runs it on the CPU, and this run is on {device}"
        raise DistillError(f"distill.teacher_runtime: {where}: give auto or torch, or device=cpu")
    if missing := missing_packages(runtime):
        needs = f"{runtime.title} needs {' and '.join(missing)}, not installed here"
        raise DistillError(f"distill.teacher_runtime: {needs}: pip install {' '.join(missing)}, or give auto")


def choose_forwards(
    task: DistillationTask, images: Tensor, wanted: str, steps: int, timer: Timer = in_turns
) -> dict[str, TeacherForward]:
    """Choose what each teacher of a task runs in, and have the task run it so.

    A runtime is taken if its outputs on these images are PyTorch's and it takes clearly less time. Nothing is measured
    on a GPU, or if the training is too short to gain by it.

    Args:
        task: changed in place.
        images: (B, 3, H, W) in [0, 1], a batch of the training to come.
        wanted: auto, torch, bfloat16, or the one runtime to take.
        steps: of the training to come.
        timer: measures the candidates.

    Raises:
        DistillError: the runtime that is wanted cannot run a teacher, or gives other outputs.
    """
    runners: dict[str, Runner] = {}
    chosen: dict[str, TeacherForward] = {}
    for teacher in task.teachers:
        chosen[teacher.name], runners[teacher.name] = _choose(task, teacher, images, wanted, steps, timer)
    task.run_teachers(runners)
    return chosen


def use_forwards(task: DistillationTask, chosen: Mapping[str, TeacherForward], imgsz: int) -> None:
    """Have a task run its teachers in what was chosen for them before, for images of a size.

    Raises:
        DistillError: a runtime is not installed any more, or fails.
    """
    runners: dict[str, Runner] = {}
    for teacher in task.teachers:
        name = chosen[teacher.name].runtime if teacher.name in chosen else TORCH
        if name == TORCH:
            continue
        if name != BFLOAT16 and (missing := missing_packages(_runtime(name))):
            gone = f"this run's teacher runs in {_runtime(name).title}, and {' and '.join(missing)} is not installed"
            raise DistillError(f"{gone}: pip install {' '.join(missing)}, or start a new run")
        runners[teacher.name] = _runner(name, teacher, task.points_of(teacher), torch.zeros(1, 3, imgsz, imgsz))
    task.run_teachers(runners)


def fastest(times: Mapping[str, float]) -> str:
    """What to run a teacher in, given the time that it takes in each: the first that is near the best, or PyTorch."""
    near = [name for name, ms in times.items() if name != TORCH and ms <= GAIN * min(times.values())]
    return next((name for name in near if times[name] * GAIN <= times[TORCH]), TORCH)


def _choose(
    task: DistillationTask, teacher: Teacher, images: Tensor, wanted: str, steps: int, timer: Timer
) -> tuple[TeacherForward, Runner]:
    stays = TeacherForward(), teacher.run
    points = task.points_of(teacher)
    if wanted == TORCH or images.device.type != "cpu" or not teacher.losses:
        return stays
    teacher.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in training
    reference = partial(_outputs, teacher.run, teacher, points)
    passes: dict[str, Callable[[], object]] = {TORCH: partial(reference, images)}
    if wanted == AUTO and timer(passes)[TORCH] * steps < WORTH_MS:
        return stays
    runners: dict[str, Runner] = {}
    differences: dict[str, float] = {}
    installed = [runtime.package for runtime in RUNTIMES if not missing_packages(runtime)]
    for name in [wanted] if wanted != AUTO else installed:
        try:
            runner = _runner(name, teacher, points, images)
            own = partial(_outputs, runner, teacher, points)
            # The last batch of an epoch is shorter.
            differences[name] = max(difference(own(each), reference(each)) for each in (images, images[:1]))
            if name != BFLOAT16 and not differences[name] <= EQUAL:  # written so that NaN fails
                off = f"its outputs differ by {differences[name]:.1g} of their spread"
                raise DistillError(f"the teacher does not run in {_runtime(name).title}: {off}")
        except DistillError as error:
            if wanted != AUTO:
                raise DistillError(f"distill.teacher_runtime: {error}: give auto or torch") from error
            _LOG.debug("%s", error)
            continue
        runners[name], passes[name] = runner, partial(own, images)
    times = timer(passes)
    _LOG.debug("milliseconds of a pass of %s: %s; differences %s", teacher.name, dict(times), differences)
    name = fastest(times) if wanted == AUTO else wanted
    if name == TORCH:
        return stays
    title = "PyTorch in bfloat16" if name == BFLOAT16 else _runtime(name).title
    return TeacherForward(name, title, times[TORCH] / times[name], differences[name]), runners[name]


def _outputs(run: Runner, teacher: Teacher, points: tuple[str, ...], images: Tensor) -> Outputs:
    with torch.no_grad():
        return run(teacher.network, images, points)


def _runner(name: str, teacher: Teacher, points: tuple[str, ...], images: Tensor) -> Runner:
    """Runs a teacher, on images of this size, in what a recipe calls so."""
    if name == BFLOAT16:
        return partial(_in_bfloat16, teacher.run)
    return InRuntime(_runtime(name), teacher.network, images, points)


def _in_bfloat16(run: Runner, network: nn.Module, images: Tensor, points: Sequence[str]) -> Outputs:
    with torch.autocast(images.device.type, torch.bfloat16):
        return run(network, images, points)


def _runtime(package: str) -> Runtime:
    return next(runtime for runtime in RUNTIMES if runtime.package == package)
