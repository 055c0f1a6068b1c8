"""The tasks that are supported, and the look-up of a description's own."""

from __future__ import annotations

from typing import Any

from distill.yolo.tasks.detect import DETECT
from distill.yolo.tasks.obb import ORIENTED
from distill.yolo.tasks.pose import POSE
from distill.yolo.tasks.segment import SEGMENT
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import guess_model_task

TASKS: tuple[Task, ...] = (DETECT, SEGMENT, POSE, ORIENTED)


def task_of(description: Any) -> Task:
    """The task of the network that a description of ultralytics' makes, by its last layer; of another, that of detectors."""
    name = guess_model_task(description)
    return next((task for task in TASKS if task.name == name), DETECT)
