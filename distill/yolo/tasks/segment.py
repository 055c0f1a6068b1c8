"""Boxes, and in each the mask of its object."""

from __future__ import annotations

from distill.yolo.data.rows import POLYGONS
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import MaskValidator, SegmentationModel

SEGMENT = Task("segment", "a segmentation model", SegmentationModel, MaskValidator, POLYGONS, beside="mask")
