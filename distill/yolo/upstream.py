"""All that is used of ultralytics: no other module of the product imports it.

Most of it is undocumented, and a minor version may change it. A port changes this file; `tests/distill/yolo/test_upstream.py`
has a test for every item that is relied on, which names it if it has changed. There is no behaviour of ours in here:
functions and classes give what ultralytics has other names, and leave the rest to their callers and subclasses.
"""

# ruff: noqa: F401  most imports are for other modules; a test finds the unused ones

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from ultralytics import __version__
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import LetterBox
from ultralytics.data.build import InfiniteDataLoader, build_dataloader, seed_worker
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS, exif_size, img2label_paths
from ultralytics.engine.exporter import Exporter
from ultralytics.engine.exporter import export_formats as _export_formats
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.nn import tasks  # layers of a description by name
from ultralytics.nn.distill_model import DistillationModel  # its own distillation
from ultralytics.nn.modules import (  # heads, and where the layers of the original YOLOv5 are
    OBB,
    OBB26,
    Detect,
    Pose,
    Pose26,
    Segment,
    Segment26,
    block,
    conv,
    transformer,
    v10Detect,
)
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
    guess_model_task,
    torch_safe_load,
    yaml_model_load,
)
from ultralytics.utils import DATASETS_DIR, DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER, nms
from ultralytics.utils.metrics import OKS_SIGMA  # spreads of the 17 keypoints of a person
from ultralytics.utils.ops import segments2boxes
from ultralytics.utils.patches import imread  # takes paths that are not ASCII
from ultralytics.utils.plotting import Annotator, colors  # draws boxes; the colour of a class, as in all its plots
from ultralytics.utils.torch_utils import ModelEMA, init_seeds, unwrap_model


@contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Silence ultralytics below a level of logging, and undo its change of torch's thread count."""
    before, threads = LOGGER.level, torch.get_num_threads()
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
        torch.set_num_threads(threads)


def export_formats() -> tuple[str, ...]:
    """Formats that a network can be exported to."""
    return tuple(_export_formats()["Argument"][1:])  # the first is PyTorch's own


def export(model: nn.Module, options: Mapping[str, Any]) -> Path:
    """Export a copy of a network, with the exporter's arguments; the result lies beside the network's `pt_path`."""
    with quiet(logging.CRITICAL):
        return Path(Exporter(overrides=dict(options))(model=model))


def integration(name: str) -> dict[str, Callable[[Any], Any]]:
    """What an integration with a logger does at each event of a training; empty if its package cannot be used."""
    return dict(import_module(f"ultralytics.utils.callbacks.{'wb' if name == 'wandb' else name}").callbacks)


class RecordsDataset(YOLODataset):
    """A `YOLODataset` on labels in memory: it scans nothing and writes nothing.

    Args:
        records: one dict an image: im_file, shape (h, w), cls (n, 1), bboxes (n, 4), segments, keypoints, normalized,
            bbox_format.
        resize: (image (H, W, BGR), longer side) -> the image in that size; None resizes as ultralytics does.
        options: of `YOLODataset`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        resize: Callable[[np.ndarray, int], np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        self._records, self._resize = records, resize  # first: the base class asks for files and labels
        super().__init__(img_path="", **options)
        # The base class trusts decoded copies (`x.npy`) beside the images, and replaces or deletes stale ones.
        self.npy_files = [Path(file) / "none" for file in self.im_files]

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """The files of the records; `img_path` is not read."""
        return [record["im_file"] for record in self._records]

    def get_labels(self) -> list[dict[str, Any]]:
        """Copies of the records, since the base class edits them."""
        return [{**record, "cls": record["cls"].copy()} for record in self._records]

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """(image, its size in the file, its size now)."""
        if self._resize is None:
            return super().load_image(i, rect_mode, resize_short)
        image = imread(self.im_files[i], cv2.IMREAD_COLOR)
        if image is None:
            raise FileNotFoundError(self.im_files[i])
        resized = self._resize(image, cast(int, self.imgsz))
        return resized, image.shape[:2], resized.shape[:2]


def sampled_loader(
    dataset: Dataset[Any], batch: int, sampler: Sampler[int], *, workers: int, device: torch.device
) -> DataLoader:
    """A loader like that of `build_dataloader`, of images in the order of a sampler.

    Args:
        dataset: it has `collate_fn`.
        batch: images in a batch.
        sampler: of an epoch; asked again for each.
        workers: processes that load images, at most.
        device: where the batches go.
    """
    workers = min(workers, os.cpu_count() or 1) if len(sampler) > batch else 0  # type: ignore[arg-type]
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        collate_fn=dataset.collate_fn,  # type: ignore[attr-defined]
        worker_init_fn=seed_worker,
        generator=torch.Generator(),
    )


class TrainedModule(nn.Module):
    """What the training loop asks of the module that it trains.

    `module(batch)` gives the loss summed over the batch, because the loop's learning rates and gradient clipping are made
    for sums, and a dict of its terms without gradient. Inside a wrapper the loop looks for `student_model`.
    """

    student_model: DetectionModel

    @property
    def stride(self) -> Tensor:
        """The network's strides: image sizes are multiples of the largest."""
        return self.student_model.stride

    @property
    def criterion(self) -> Any:
        """The network's own loss, which the loop updates after an epoch if it can."""
        return getattr(self.student_model, "criterion", None)

    def set_head_attr(self, **attributes: Any) -> None:
        """Set attributes of the network's head."""
        self.student_model.set_head_attr(**attributes)


class StudentAverage(ModelEMA):
    """Averages the network in a `TrainedModule`, possibly wrapped for several devices, and nothing beside it.

    After step t the mean moves by 1 / (1 + share · t) towards the network: it remembers that share of the steps so far,
    however many there will be, and at first the weights that training began with. Shamir & Zhang, ICML 2013
    (arXiv:1212.1824), call it polynomial-decay averaging.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__(_student(model))
        self.decay = lambda updates: 1 - 1 / (1 + share * updates)

    def update(self, model: nn.Module) -> None:
        """Average the network's weights in, after a step."""
        super().update(_student(model))

    def update_attr(self, model: nn.Module, include: Any = (), exclude: Any = ()) -> None:
        """Copy attributes of the network, after an epoch."""
        super().update_attr(_student(model), include, exclude)


def _student(model: nn.Module) -> nn.Module:
    return cast(TrainedModule, unwrap_model(model)).student_model


class TrainingLoop(DetectionTrainer):
    """The training loop of ultralytics.

    It reads `args`, `device`, `stride`, `epoch` (from 0), `epochs`, `train_loader`, `optimizer` (`initial_lr` of each
    group), `tloss` (the epoch's mean losses by name), `metrics`, `fitness` (what `validate` gave), `stop`, `stopper`.
    It may set `model`, `world_size`, `ema` and `start_epoch`.

    Args:
        module: trained as it is. A name would have the network built anew from its description, uncut.
        data: class names `names`, their number `nc`, the files of `train` and `val`.
        settings: ultralytics' arguments.
    """

    # The base class sets them as it goes, and declares None.
    model: Any
    ema: Any
    optimizer: Any
    stopper: Any
    tloss: Any
    fitness: Any
    metrics: Any
    # What a subclass defines, in the order in which it is called.
    before_loaders: Callable[[], None]  # the module is on its device, and all of its parameters were made trainable
    make_dataset: Callable[[int], RecordsDataset]  # (images a batch) -> the training images
    before_training: Callable[[], None]  # takes up what an earlier run left, and sets `ema`
    begin_epoch: Callable[[], None]
    begin_batch: Callable[[], None]
    prepare_batch: Callable[[dict[str, Any]], dict[str, Any]]
    end_batch: Callable[[], None]  # after the step
    validate: Callable[[], tuple[dict[str, float], float | None]]  # metrics, and the one for patience
    check_losses: Callable[[], None]  # raises if the training cannot go on
    save_metrics: Callable[[dict[str, Any]], None]  # in the leading process, as is `save_model`
    save_model: Callable[[], bool]  # `stop` is decided by now
    end_epoch: Callable[[], None]

    def __init__(self, module: TrainedModule, data: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._data = dict(data)
        super().__init__(overrides=dict(settings))
        self.model = module

    def run_callbacks(self, event: str) -> None:
        """Call our hooks; loggers and usage statistics, which ultralytics calls here, are left out."""
        hooks = {
            "on_train_epoch_start": self.begin_epoch,
            "on_train_batch_start": self.begin_batch,
            "on_train_batch_end": self.end_batch,
            "on_fit_epoch_end": self.end_epoch,
        }
        if event in hooks:
            hooks[event]()

    def get_dataset(self) -> dict[str, Any]:
        """Our description of the data; nothing is read or downloaded."""
        return self._data

    def make_loader(self, batch: int) -> DataLoader | None:
        """A loader of training images for this process; None for the loop's own, of `make_dataset`."""
        return None

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        """The training images; `img_path` is not read."""
        return self.make_dataset(batch or 1)

    def get_dataloader(self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """The loop wants a loader for validation too; `validate` uses its own."""
        if mode == "val":
            return self.train_loader
        return self.make_loader(batch_size) or super().get_dataloader(dataset_path, batch_size, rank, mode)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, then call the hook."""
        return self.prepare_batch(super().preprocess_batch(batch))

    def set_model_attributes(self) -> None:
        """Give the network what its loss and its checkpoint need."""
        student: Any = _student(self.model)
        student.nc, student.names, student.args = self.data["nc"], self.data["names"], self.args
        for name in ("kpt_shape", "kpt_oks_sigmas", "kpt_names"):  # as its trainer for poses does
            if name in self.data:
                setattr(student, name, self.data[name])

    def _build_train_pipeline(self) -> None:
        self.before_loaders()
        super()._build_train_pipeline()

    def resume_training(self, ckpt: Any) -> None:
        """Call the hook: optimizer and loaders are there."""
        self.before_training()

    def resume_loss(self, epochs: int) -> None:
        """Give the network's own loss the weights that it has after so many epochs, if it moves them."""
        student: Any = _student(self.model)
        if getattr(student.model[-1], "one2one_cv2", None) is not None:
            student.criterion = student.init_criterion()
            student.criterion.updates = epochs - 1
            student.criterion.update()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        self.check_losses()
        return False  # nothing was restored: the epoch counts

    def final_eval(self) -> None:
        """Nothing: ultralytics would rewrite best.pt and measure it again."""


class UntimedValidator(DetectionValidator):
    """ultralytics' validator without the time limit of its NMS, which drops the rest of a batch on a slow machine."""

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """As in the base class, without the limit."""
        boxes: Any = nms.non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            nc=cast(int, self.nc),
            multi_label=True,
            max_det=self.args.max_det,
            max_time_img=float("inf"),
            rotated=self.args.task == "obb",
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in boxes]


_AnyValidator: Any = object  # of ultralytics, behind this one among the bases of a class


class Validator(_AnyValidator):
    """The parts of ultralytics' validators that make mAP, called one by one: their `__call__` reads the data anew, and prints.

    `make_validator` makes one, of the class that the task needs.
    """

    sure: float  # boxes of a higher score are in the confusion matrix
    known: Mapping[str, Mapping[str, Tensor]]  # image file -> its objects, in place of those of the labels

    def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        """As in the base class, which fills the confusion matrix for its plots only."""
        super().update_metrics(preds, batch)
        for index, boxes in enumerate(preds):
            self.confusion_matrix.process_batch(boxes, self._prepare_batch(index, batch), conf=self.sure)

    def _prepare_batch(self, si: int, batch: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_batch(si, batch)
        known = self.known.get(prepared["im_file"], {})
        return {**prepared, **{key: known[key].to(prepared[key].dtype) for key in known if key in prepared}}

    def results(self, average_precision: Callable[..., np.ndarray] | None = None) -> dict[str, Any]:
        """Get mAP and other figures of the batches that `update_metrics` got.

        Args:
            average_precision: (hits, confidence, predicted class, labelled class) -> (classes, thresholds), in place of
                ultralytics' own.

        Returns:
            Plain numbers; `precision_curves` (classes, steps of recall), in the order of `per_class`, at an IoU of 0.5;
            `confusion` (predicted, labelled), whose last row and column are the background; and `beside`, mAP of what a task
            has beside boxes, None if it has nothing.
        """
        stats: Any = self.metrics.stats
        matches = [np.concatenate(stats[name]) for name in ("tp", "conf", "pred_cls", "target_cls")]
        self.get_stats()  # empties `stats`
        box: Any = self.metrics.box
        if average_precision is not None:
            box.all_ap = average_precision(*matches)
        more: Any = getattr(self.metrics, "seg", None) or getattr(self.metrics, "pose", None)
        return {
            **self._means(box),
            "precision": float(box.mp),
            "recall": float(box.mr),
            "images": int(self.seen),
            "instances": int(cast(Any, self.metrics.nt_per_class).sum()),
            "precision_curves": np.asarray(box.prec_values),
            "confusion": self.confusion_matrix.matrix,
            "beside": None if more is None else self._means(more),
        }

    def _means(self, metric: Any) -> dict[str, Any]:
        by_class = {self.names[int(c)]: float(metric.class_result(i)[3]) for i, c in enumerate(metric.ap_class_index)}
        return {"map50_95": float(metric.map), "map50": float(metric.map50), "per_class": by_class}


class BoxValidator(Validator, UntimedValidator):
    """Measures boxes."""


class MaskValidator(Validator, SegmentationValidator, UntimedValidator):
    """Measures boxes and masks. A prediction is two tensors: boxes, scores and coefficients; and prototypes."""


class KeypointValidator(Validator, PoseValidator, UntimedValidator):
    """Measures boxes and keypoints."""


class OrientedValidator(Validator, OBBValidator, UntimedValidator):
    """Measures oriented boxes, whose overlap is that of the Gaussians that they stand for."""


def make_validator(
    kind: type[Validator],
    loader: DataLoader,
    network: nn.Module,
    data: Mapping[str, Any],
    *,
    device: torch.device,
    confidence: float,
    nms_iou: float,
    sure: float,
    known: Mapping[str, Mapping[str, Tensor]],
) -> Validator:
    """A validator for one data set.

    Args:
        kind: of the task.
        loader: of a `RecordsDataset`.
        network: on its device, with `names`.
        data: as for `TrainingLoop`.
        device: where the network is.
        confidence: boxes of a lower score do not count.
        nms_iou: of two boxes of a class that overlap by more than this, one counts.
        sure: boxes of a higher score are in the confusion matrix.
        known: image file -> its objects as `postprocess` gives them, in place of those of the labels.
    """
    options = {"conf": confidence, "iou": nms_iou, "plots": False, "save_json": False, "verbose": False}
    # A folder that exists: nothing is written there.
    validator: Any = kind(loader, Path(tempfile.gettempdir()), {**options, "mode": "val"})
    validator.training, validator.data, validator.device = False, data, device
    validator.sure, validator.known = sure, known
    validator.init_metrics(network)
    return validator
