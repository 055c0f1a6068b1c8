"""What is particular to the original YOLOv5 (v5.0 to v7.0), in one place."""

from __future__ import annotations

from distill.yolo.families.family import Checkpoints, Evaluation, Family, NativeFormat
from distill.yolo.families.views import best_of_cell
from distill.yolo.families.yolov5 import checkpoint, head
from distill.yolo.families.yolov5.average_precision import average_precision
from distill.yolo.families.yolov5.saving import save_original

ANCHOR = Family(
    title="the original YOLOv5 (v5.0 to v7.0)",
    owns=lambda layer: type(layer) is head.AnchorDetect,
    outputs=head.outputs,
    label_terms=head.label_terms,
    sensitivity=head.sensitivity,
    entry="m.{level}",
    gives=lambda head: frozenset({"objectness"}),
    alike=head.alike,
    by_cell=best_of_cell,
    reorder=head.reorder,
    area_resize=True,
    evaluation=Evaluation(nms_iou=0.6, clip_boxes=True, average_precision=average_precision),  # those of its val.py
    checkpoints=Checkpoints(
        modules=checkpoint.MODULES,
        owns=checkpoint.is_original,
        check_names=checkpoint.check_names,
        adopt=checkpoint.adopt,
        portable=head.portable,
        served=checkpoint.served,
    ),
    prepare_export=head.use_original_layout,
    native=NativeFormat(
        file="student-yolov5.pt",
        save=save_original,
        about="has the format of the original YOLOv5, for that project's own scripts:",
        commands=(
            "python detect.py --weights {file} --source path/to/images --imgsz {imgsz}",
            "python val.py --weights {file} --data {data} --imgsz {imgsz}",
            "python export.py --weights {file} --include onnx --imgsz {imgsz}",
        ),
    ),
    untrainable="is of the original YOLOv5, which trains its own",
)
