"""Boxes."""

from __future__ import annotations

from distill.yolo.data.rows import BOXES
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import BoxValidator, DetectionModel

DETECT = Task("detect", "a detector", DetectionModel, BoxValidator, BOXES)
