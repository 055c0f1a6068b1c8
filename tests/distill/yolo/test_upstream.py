"""What is relied on of ultralytics beyond its documentation, item by item; `distill/yolo/upstream.py` is what uses it.

A test that fails here after an upgrade names what has changed. The port is done in that one module.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from ultralytics.utils.metrics import ConfusionMatrix

from distill.training.schedule import Schedule
from distill.yolo import upstream
from distill.yolo.data import dataset as datasets
from distill.yolo.data.images import build_dataset
from distill.yolo.training.learner import Learner
from tests.distill.yolo.test_trainer import tiny, write_images
from tests.test_layering import MODULES

HOME = Path(upstream.__file__).name


def rely(item: str, holds: object) -> None:
    """Fail with the item's name."""
    assert holds, f"ultralytics {upstream.__version__} has changed: {item}. Adapt {HOME}"


def rely_on_method(owner: type, name: str, *parameters: str) -> None:
    """A method that is overridden or called: it is there, and its parameters begin with these names."""
    method = inspect.getattr_static(owner, name, None)
    rely(f"{owner.__name__} has no {name}", method is not None)
    names = list(inspect.signature(getattr(owner, name)).parameters)[1:]
    rely(f"{owner.__name__}.{name}{tuple(parameters)} takes {names}", names[: len(parameters)] == list(parameters))


def rely_on_attributes(owner: Any, *names: str) -> None:
    for name in names:
        rely(f"{type(owner).__name__}.{name}", hasattr(owner, name))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_change_is_named():
    class Changed:
        def save_model(self, path: str) -> None: ...

    with pytest.raises(AssertionError, match=r"Changed has no save_weights.*Adapt upstream.py"):
        rely_on_method(Changed, "save_weights")
    with pytest.raises(AssertionError, match=r"Changed.save_model\('folder',\) takes \['path'\]"):
        rely_on_method(Changed, "save_model", "folder")
    with pytest.raises(AssertionError, match=r"Changed.wdir"):
        rely_on_attributes(Changed(), "wdir")


def test_what_is_imported_is_used():
    """By another module under its name, or in the module itself: an import that nobody needs is one more item to port."""
    tree = ast.parse(Path(upstream.__file__).read_text(encoding="utf-8"))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and "ultralytics" in str(node.module)]
    imported = {alias.asname or alias.name for node in froms for alias in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for file in MODULES.values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "distill.yolo.upstream":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "upstream":
                used.add(node.attr)
    assert imported <= used, imported - used


# --- the trainer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", ("cfg", "overrides")),
        ("train", ()),
        ("run_callbacks", ("event",)),
        ("get_dataset", ()),
        ("build_dataset", ("img_path", "mode", "batch")),
        ("get_dataloader", ("dataset_path", "batch_size", "rank", "mode")),
        ("preprocess_batch", ("batch",)),
        ("set_model_attributes", ()),
        ("_build_train_pipeline", ()),
        ("resume_training", ("ckpt",)),
        ("validate", ()),
        ("_handle_nan_recovery", ("epoch",)),
        ("save_metrics", ("metrics",)),
        ("save_model", ()),
        ("final_eval", ()),
    ],
)
def test_the_trainer_has(name, parameters):
    rely_on_method(upstream.DetectionTrainer, name, *parameters)


def noted(method):
    """Have a method's name in `calls` whenever it is called."""

    @functools.wraps(method)
    def wrapped(self, *args, **options):
        self.calls.append(method.__name__)
        return method(self, *args, **options)

    return wrapped


class Recording(upstream.TrainingLoop):
    """Trains, and notes what is called and what is there when it is."""

    def __init__(self, data: datasets.DataSet, folder: Path, schedule: Schedule) -> None:
        self.calls: list[str] = []
        self.events: list[str] = []
        self.images, self.schedule = data, schedule
        self.learner = Learner(tiny(), None, None, schedule)
        settings = {"model": "student", "data": str(data.path), "project": str(folder), "name": "run", "device": "cpu"}
        settings |= {"epochs": 2, "batch": 6, "nbs": 6, "imgsz": 64, "workers": 0, "warmup_epochs": 0, "amp": False}
        settings |= {"optimizer": "AdamW", "plots": False, "verbose": False}
        super().__init__(self.learner, data.config, settings)

    def run_callbacks(self, event: str) -> None:
        self.events.append(event)
        if event in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_fit_epoch_end"):
            super().run_callbacks(event)

    @noted
    def make_dataset(self, batch: int) -> upstream.RecordsDataset:
        return build_dataset(self.images, "train", imgsz=64, batch=batch, augment=True, hyp=self.args)

    @noted
    def before_loaders(self) -> None:
        self.frozen = {name for name, weight in self.learner.named_parameters() if not weight.requires_grad}
        self.early = {name for name in ("world_size", "device", "model", "args", "stride") if hasattr(self, name)}

    @noted
    def before_training(self) -> None:
        self.ema = upstream.StudentAverage(self.model, self.schedule.averaged)

    @noted
    def begin_epoch(self) -> None:
        rely_on_attributes(self, "epoch", "epochs", "train_loader")

    @noted
    def begin_batch(self) -> None:
        for group in self.optimizer.param_groups:
            rely("initial_lr of the optimizer's groups", "initial_lr" in group)
            group["lr"] = 1e-3

    @noted
    def prepare_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    @noted
    def end_batch(self) -> None:
        self.terms = dict(self.tloss)

    @noted
    def validate(self) -> tuple[dict[str, float], float]:
        return {"map50": 0.25}, 0.5

    @noted
    def check_losses(self) -> None: ...

    @noted
    def save_metrics(self, metrics: dict[str, Any]) -> None:
        self.measured = self.metrics, self.fitness

    @noted
    def save_model(self) -> bool:
        self.stopped = bool(self.stop)
        return True

    @noted
    def end_epoch(self) -> None: ...

    @noted
    def final_eval(self) -> None: ...


@pytest.fixture(scope="module")
def loop(data: datasets.DataSet, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    with upstream.quiet():
        loop = Recording(data, tmp_path_factory.mktemp("loop"), Schedule(epochs=2, batch=6, steps=4))
        loop.train()
    return loop


def test_the_trainer_calls_in_this_order(loop):
    batch = ["begin_batch", "prepare_batch", "end_batch"]
    epoch = ["begin_epoch", *batch, *batch, "validate", "check_losses", "save_metrics", "save_model", "end_epoch"]
    expected = ["before_loaders", "make_dataset", "before_training", *epoch, *epoch, "final_eval"]
    rely(f"order of the trainer's calls: {loop.calls}", loop.calls == expected)


def test_the_trainers_callbacks_are_called(loop):
    for event in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_fit_epoch_end"):
        rely(f"callback {event}", event in loop.events)


def test_the_trainers_attributes(loop):
    rely(f"attributes before the loaders are built: {loop.early}", len(loop.early) == 5)
    frozen = {name for name, _ in loop.learner.named_parameters() if ".dfl" in name}
    rely("the trainer makes all weights trainable, but the DFL's, before it builds the loaders", loop.frozen == frozen)
    rely_on_attributes(
        loop, "ema", "optimizer", "stopper", "tloss", "fitness", "metrics", "start_epoch", "stop", "wdir"
    )
    rely("args.amp", loop.args.amp is False)
    rely("args.deterministic", hasattr(loop.args, "deterministic"))
    rely("tloss: mean losses by name", set(loop.terms) == {"box_loss", "cls_loss", "dfl_loss"})
    rely("metrics and fitness are what validate() gave", loop.measured == ({"map50": 0.25}, 0.5))
    rely("stop is decided before save_model", loop.stopped)
    rely("world_size is below 2 in one process", loop.world_size <= 1)
    rely("wdir: the folder for weights", loop.wdir == Path(loop.args.project) / "run" / "weights")
    rely_on_attributes(loop.stopper, "best_fitness", "best_epoch", "possible_stop")
    rely_on_attributes(loop.train_loader, "reset", "generator", "num_workers")


def test_the_trainer_trains_a_module_as_it_is(loop):
    rely("a module assigned to `model` is trained, not rebuilt", loop.model is loop.learner)
    rely("the loop keeps no network of its own in the average", type(loop.ema.ema) is upstream.DetectionModel)
    rely("ModelEMA.update is called after each step", loop.ema.updates == 4)
    rely("ModelEMA.update_attr copies `names`", loop.ema.ema.names == loop.learner.student_model.names)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_average_remembers_a_share_of_the_steps_so_far(loop, share):
    learner = copy.deepcopy(loop.learner)
    weight = next(learner.student_model.parameters())
    average = upstream.StudentAverage(learner, share)
    mean = next(average.ema.parameters())
    age, ages = 0.0, {}
    for step in range(1, 401):
        with torch.no_grad():
            weight.fill_(float(step))  # so that the mean says which steps it remembers
        average.update(learner)
        age = step - mean.flatten()[0].item()
        ages[step] = age
    # A mean that moves by 1 / (1 + share t) is, on average, share t / (1 + share) steps behind.
    assert ages[400] == pytest.approx(share * 400 / (1 + share), rel=0.02)
    assert ages[200] == pytest.approx(ages[400] / 2, rel=0.05) and ages[10] < 10 * share


# --- the learner -------------------------------------------------------------------------------------------------------


def test_a_wrapper_holds_its_network_as_student_model():
    source = inspect.getsource(inspect.getmodule(upstream.DetectionTrainer.__mro__[1]))
    rely("the trainer looks for `student_model` in a wrapper", "student_model" in source)
    rely("the trainer asks its module for `criterion`", "unwrap_model(self.model).criterion" in source)
    rely("the trainer asks its module for `stride`", "self.model.stride" in source)
    rely_on_method(upstream.DetectionModel, "set_head_attr")


def test_the_loss_is_a_sum_over_the_batch(data):
    """`model.loss(batch, outputs)` gives means per image by name, and a tensor of them times the images of the batch."""
    model: Any = tiny()
    model.args = upstream.get_cfg()
    images = build_dataset(data, "train", imgsz=64, batch=3, rect=False)
    batch = images.collate_fn([images[0], images[1], images[2]])
    rely("a batch's keys for labels", {"img", "batch_idx", "cls", "bboxes"} <= set(batch))
    batch["img"] = batch["img"].float() / 255
    with torch.no_grad():
        terms, means = model.loss(batch, model(batch["img"])[1])
    rely("loss(batch, outputs) names its terms", list(means) == ["box_loss", "cls_loss", "dfl_loss"])
    rely("loss(batch, outputs): a sum over the batch", torch.allclose(terms, 3 * torch.stack(list(means.values()))))


def test_a_head_with_two_branches():
    for name in ("yolo26n.yaml", "yolov10n.yaml"):
        model: Any = upstream.DetectionModel(name, nc=2, verbose=False).eval()
        head = model.model[-1]
        rely_on_attributes(head, "one2many", "one2one", "one2one_cv2", "one2one_cv3", "end2end")
        rely("forward_head(features, box_head=, cls_head=)", head.one2many.keys() == {"box_head", "cls_head"})
        rely_on_method(type(head), "forward_head", "x", "box_head", "cls_head")
        raw = model(torch.zeros(1, 3, 64, 64))[1]
        rely("its raw outputs are one2many and one2one", list(raw) == ["one2many", "one2one"])
        rely("its parts begin with one2one_", {"one2one_cv2", "one2one_cv3"} < dict(head.named_children()).keys())
        rely("NMS follows, unless something else is said", not head.end2end)
        model.end2end = True
        rely("without NMS: boxes, score, class", model(torch.zeros(1, 3, 64, 64))[0].shape[-1] == 6)
        model.end2end = False
        rely("fusing drops the branch that is not chosen", model.fuse(verbose=False).model[-1].one2one_cv2 is None)


def test_the_loss_of_a_head_with_two_branches():
    model: Any = upstream.DetectionModel("yolo26n.yaml", nc=2, verbose=False)
    model.args = upstream.get_cfg(overrides={"epochs": 3})
    loss = model.init_criterion()
    rely_on_attributes(loss, "updates", "update", "o2m", "o2o")
    shares = []
    for _ in range(3):
        shares.append(round(loss.o2m, 3))
        loss.update()
    rely("update() moves its weight from one2many to one2one", shares == [0.8, 0.45, 0.1] and loss.updates == 3)


def test_the_average_of_weights():
    rely_on_method(upstream.ModelEMA, "__init__", "model", "decay", "tau", "updates")
    rely_on_method(upstream.ModelEMA, "update", "model")
    rely_on_method(upstream.ModelEMA, "update_attr", "model", "include", "exclude")
    average = upstream.ModelEMA(nn.Linear(1, 1), tau=1e-9)
    rely_on_attributes(average, "ema", "updates")


# --- the validator -----------------------------------------------------------------------------------------------------


def test_the_validators_parts():
    rely_on_method(upstream.DetectionValidator, "__init__", "dataloader", "save_dir", "args")
    rely_on_method(upstream.DetectionValidator, "init_metrics", "model")
    rely_on_method(upstream.DetectionValidator, "preprocess", "batch")
    rely_on_method(upstream.DetectionValidator, "postprocess", "preds")
    rely_on_method(upstream.DetectionValidator, "update_metrics", "preds", "batch")
    rely_on_method(upstream.DetectionValidator, "get_stats")
    rely_on_method(upstream.DetectionValidator, "_prepare_batch", "si", "batch")
    rely_on_method(ConfusionMatrix, "process_batch", "detections", "batch", "conf")
    parameters = list(inspect.signature(upstream.nms.non_max_suppression).parameters)
    rely("non_max_suppression(prediction, conf, iou)", parameters[:3] == ["prediction", "conf_thres", "iou_thres"])
    for name in ("multi_label", "max_det", "max_time_img"):
        rely(f"non_max_suppression({name}=)", name in parameters)


def test_map_is_the_mean_of_all_ap(data):
    """`metrics.stats` has what AP is made of, and writing `metrics.box.all_ap` changes every mAP."""
    network: Any = tiny()
    network.names = data.names
    images = build_dataset(data, "val", imgsz=64, batch=6)
    loader = DataLoader(images, 6, collate_fn=images.collate_fn)
    options = {"device": torch.device("cpu"), "confidence": 0.001, "nms_iou": 0.7, "sure": 0.25}
    validator: Any = upstream.make_validator(upstream.BoxValidator, loader, network, data.config, known={}, **options)
    with torch.inference_mode():
        (batch,) = (validator.preprocess(batch) for batch in loader)
        rely("a batch's keys for places", {"im_file", "ori_shape", "ratio_pad"} <= set(batch))
        boxes = validator.postprocess(network(batch["img"]))
        rely("boxes of an image", all(set(each) >= {"bboxes", "conf", "cls"} for each in boxes))
        validator.update_metrics(boxes, batch)
    for name in ("tp", "conf", "pred_cls", "target_cls"):
        rely(f"metrics.stats['{name}']", len(validator.metrics.stats[name]) == 6)
    shapes: list[tuple[int, ...]] = []

    def own(hits, confidence, predicted, labelled):
        shapes.extend(each.shape for each in (hits, confidence, predicted, labelled))
        return np.tile(np.linspace(1.0, 0.1, 10), (2, 1))

    results = validator.results(own)
    rely(
        "metrics.stats: (detections, thresholds), and a class for each label",
        shapes[0][1:] == (10,) and shapes[3] == (6,),
    )
    rely("metrics.box.all_ap decides map", results["map50_95"] == pytest.approx(0.55))
    rely("metrics.box.all_ap decides map50", results["map50"] == 1.0)
    rely("metrics.box.class_result(i)[3] is AP50-95", list(results["per_class"].values()) == [pytest.approx(0.55)] * 2)
    rely("metrics.nt_per_class counts labels", results["instances"] == 6)
    rely("metrics.box.prec_values: (classes, steps of recall)", results["precision_curves"].shape == (2, 1000))
    rely("the confusion matrix has a background", results["confusion"].shape == (len(data.names) + 1,) * 2)
    rely("every label is in a column of the confusion matrix", results["confusion"][:, :-1].sum() == 6)
    rely("validator.seen counts images", results["images"] == 6)


def test_the_plotter():
    """It draws with the font that it is given, in the line width that it has at that moment."""
    parameters = inspect.signature(upstream.Annotator.__init__).parameters
    rely("Annotator(im, font_size, font, pil)", {"im", "font_size", "font", "pil"} <= set(parameters))
    rely_on_method(upstream.Annotator, "box_label", "box", "label", "color")
    rely_on_method(upstream.Annotator, "text", "xy", "text", "txt_color")
    annotator = upstream.Annotator(np.zeros((50, 50, 3), dtype=np.uint8))
    rely_on_attributes(annotator, "lw")
    counts = []
    for annotator.lw in (1, 5):
        annotator.box_label([10, 10, 40, 40], "", upstream.colors(0, bgr=True))
        counts.append(np.count_nonzero(annotator.result()))
    rely("Annotator.lw is the width of a line", counts[1] > 2 * counts[0])
    rely("colors(number, bgr)", upstream.colors(3, bgr=True) == upstream.colors(3)[::-1])


# --- data --------------------------------------------------------------------------------------------------------------


def test_the_dataset_takes_records(data):
    rely_on_method(upstream.YOLODataset, "get_img_files", "img_path")
    rely_on_method(upstream.YOLODataset, "get_labels")
    rely_on_method(upstream.YOLODataset, "load_image", "i", "rect_mode", "resize_short")
    rely_on_method(upstream.YOLODataset, "close_mosaic", "hyp")
    images = build_dataset(data, "train", imgsz=64, batch=2, rect=False)
    rely('YOLODataset(img_path="") takes its files from get_img_files', images.im_files == data.config["train"])
    rely("YOLODataset takes its labels from get_labels", len(images.labels) == len(data.train))
    rely("YOLODataset looks for decoded copies in npy_files", len(images.npy_files) == len(data.train))
    keys = {"im_file", "shape", "cls", "bboxes", "segments", "keypoints", "normalized", "bbox_format"}
    ours = {"bytes"}  # of the file, which may be cut short later; ultralytics does not get it
    assert set(data.records["train"][0]) - ours == keys
    rely("keys of a record", set(images.get_labels()[0]) == keys)
    calls = []
    images._resize = lambda image, imgsz: calls.append(imgsz) or image
    images[0]
    rely("YOLODataset reads an image by load_image, for imgsz", calls == [64])


def test_images_are_padded_as_in_validation():
    rely("LetterBox(new_shape, scaleup=)", "scaleup" in inspect.signature(upstream.LetterBox).parameters)
    padded = upstream.LetterBox((64, 64), scaleup=False)(image=np.zeros((32, 48, 3), np.uint8))
    rely(
        "LetterBox(image=) gives an image for an image", isinstance(padded, np.ndarray) and padded.shape == (64, 64, 3)
    )
    rely(
        "LetterBox pads with 114, centred", padded[0, 0, 0] == 114 and padded[16, 8, 0] == 0 and padded[15, 8, 0] == 114
    )


def test_sizes_and_paths_of_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        rely("exif_size is (width, height) after rotation", tuple(upstream.exif_size(image)) == (20, 40))
    cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tofile(tmp_path / "圆.png")
    rely("imread of a path that is not ASCII", upstream.imread(str(tmp_path / "圆.png")).shape == (4, 6, 3))
    rely("IMG_FORMATS: suffixes without a dot", {"jpg", "jpeg", "png", "webp"} <= set(upstream.IMG_FORMATS))
    label = upstream.img2label_paths([str(Path("a", "images", "b", "x.jpg"))])
    rely("img2label_paths: images/x.jpg -> labels/x.txt", label == [str(Path("a", "labels", "b", "x.txt"))])
    polygon = np.array([[0.1, 0.2], [0.5, 0.2], [0.5, 0.4], [0.1, 0.4]])
    box = upstream.segments2boxes([polygon])
    rely("segments2boxes: (n, 4) centre, width, height", np.allclose(box, [[0.3, 0.3, 0.4, 0.2]]))
    rely("DATASETS_DIR is a path", isinstance(upstream.DATASETS_DIR, Path))


def test_the_loader_is_endless_and_seeded(data):
    images = build_dataset(data, "train", imgsz=64, batch=2, rect=False)
    for name in ("batch", "workers", "shuffle"):
        rely(f"build_dataloader({name}=)", name in inspect.signature(upstream.build_dataloader).parameters)
    loader = upstream.build_dataloader(images, 6, workers=0, shuffle=True)
    rely_on_attributes(loader, "reset", "generator", "num_workers")
    rely("a pass over the loader ends", len(list(loader)) == len(loader) == 2)


# --- settings ----------------------------------------------------------------------------------------------------------


def test_settings_and_seeds():
    args = upstream.get_cfg(overrides={"imgsz": 96, "mosaic": 0.5})
    rely("get_cfg(overrides=) gives a namespace", (args.imgsz, args.mosaic) == (96, 0.5))
    # The names, for other tests close the mosaic of DEFAULT_CFG.
    rely(
        "DEFAULT_CFG and DEFAULT_CFG_DICT agree", vars(upstream.DEFAULT_CFG).keys() == upstream.DEFAULT_CFG_DICT.keys()
    )
    for name in ("imgsz", "box", "cls", "dfl", "dis", "mosaic", "amp"):
        rely(f"setting '{name}'", name in upstream.DEFAULT_CFG_DICT)
    upstream.init_seeds(7, deterministic=False)
    first = torch.rand(1), np.random.rand()
    upstream.init_seeds(7, deterministic=False)
    rely("init_seeds(seed, deterministic=) seeds torch and NumPy", (torch.rand(1), np.random.rand()) == first)


def test_quiet_silences_and_undoes():
    level, threads = upstream.LOGGER.level, torch.get_num_threads()
    with upstream.quiet(logging.CRITICAL):
        assert not upstream.LOGGER.isEnabledFor(logging.ERROR)
        torch.set_num_threads(threads + 1)
    assert (upstream.LOGGER.level, torch.get_num_threads()) == (level, threads)


# --- checkpoints and export --------------------------------------------------------------------------------------------


def test_checkpoints_and_descriptions(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    rely("torch_safe_load(path)[0] is the content", upstream.torch_safe_load(str(tmp_path / "x.pt"))[0] == {"epoch": 3})
    description = upstream.yaml_model_load("yolov5n.yaml")
    rely("yaml_model_load notes the `scale` of a name", description["scale"] == "n")
    rely("a description's `scales`: depth, width, most channels", len(description["scales"]["n"]) == 3)
    rely("a description's layers", {"backbone", "head", "nc"} <= set(description))
    rely("a description's layers are names in `tasks`", hasattr(upstream.tasks, description["backbone"][0][2]))


def test_a_network_and_its_attributes():
    parameters = inspect.signature(upstream.DetectionModel).parameters
    rely("DetectionModel(cfg, nc=, verbose=)", next(iter(parameters)) == "cfg" and {"nc", "verbose"} <= set(parameters))
    model: Any = tiny()
    rely_on_attributes(model, "model", "yaml", "stride", "names", "save", "inplace")
    rely("model.model is a Sequential that ends in the head", isinstance(model.model, nn.Sequential))
    rely(
        "a layer's number, inputs, type and size",
        all(hasattr(model.model[-1], name) for name in ("i", "f", "type", "np")),
    )
    rely("model.is_fused() is False before fuse()", not model.is_fused())
    rely("model.fuse(verbose=) gives a fused network", model.fuse(verbose=False).is_fused())
    rely_on_method(upstream.DetectionModel, "load", "weights", "verbose")


def test_the_head(data):
    model: Any = tiny()
    head, image = model.model[-1], torch.zeros(1, 3, 64, 64)
    rely_on_attributes(head, "nc", "nl", "reg_max", "stride", "cv2", "cv3", "dfl")
    with torch.no_grad():
        head.train()
        raw = model(image)
        rely("the head in train mode gives feats, boxes, scores", set(raw) == {"feats", "boxes", "scores"})
        rely("boxes: (B, 4 * reg_max, A)", raw["boxes"].shape[1] == 4 * head.reg_max)
        rely("scores: (B, nc, A)", raw["scores"].shape[1:] == (head.nc, raw["boxes"].shape[2]))
        head.eval()
        first = model(image)
        rely("the head in eval mode gives (decoded (B, 4 + nc, A), raw)", first[0].shape[1] == 4 + head.nc)
        rely("Detect.shape is what its anchors are made for", tuple(head.shape) == tuple(raw["feats"][0].shape))
        head.shape, head.anchors = None, torch.empty(0)
        rely("Detect.shape = None has the anchors made anew", torch.equal(model(image)[0], first[0]))


def test_a_head_without_nms_is_told_by_its_second_branch():
    features = [torch.zeros(1, 16, 2, 2)]
    plain, second = upstream.Detect(nc=2, ch=(16,)), upstream.Detect(nc=2, end2end=True, ch=(16,))
    rely("one2one_cv2 is in a head without NMS only", getattr(plain, "one2one_cv2", None) is None)
    rely("one2one_cv2 is in a head without NMS", getattr(second, "one2one_cv2", None) is not None)
    rely("end2end is False in a head with NMS", plain.end2end is False)
    rely("a head without NMS gives one2many in train mode", "one2many" in second.train()(features))


@pytest.mark.parametrize("name", ["C3", "SPPF", "BottleneckCSP", "GhostBottleneck"])
def test_the_original_yolov5s_modules_are_there(name):
    rely(f"nn.modules.block.{name}", hasattr(upstream.block, name))


def test_export_lies_beside_the_checkpoint_that_a_network_names(tmp_path):
    rely_on_method(upstream.Exporter, "__init__", "cfg", "overrides")
    rely_on_method(upstream.Exporter, "__call__", "model")
    formats = upstream._export_formats()["Argument"]
    rely(
        'export_formats()["Argument"] begins with PyTorch',
        formats[0] == "-" and {"onnx", "torchscript"} <= set(formats),
    )
    model: Any = tiny()
    model.pt_path, model.names, model.task = str(tmp_path / "some.pt"), {0: "a", 1: "b"}, "detect"
    model.args = dict(upstream.DEFAULT_CFG_DICT)
    exported = upstream.export(
        model, {"format": "torchscript", "imgsz": 64, "batch": 1, "mode": "export", "device": "cpu"}
    )
    rely(
        "Exporter(overrides=)(model=) writes beside model.pt_path",
        exported == tmp_path / "some.torchscript" and exported.is_file(),
    )


# --- its distillation --------------------------------------------------------------------------------------------------


def test_its_own_distillation():
    model: Any = tiny()
    rely_on_method(upstream.DistillationModel, "__init__", "teacher_model", "student_model")
    layers = upstream.DistillationModel.get_distill_layers(model)
    rely("get_distill_layers: the head's inputs, then the head", layers == [*model.model[-1].f, model.model[-1].i])
    with pytest.raises(ValueError):  # get_distill_layers of a network without a Detect head
        upstream.DistillationModel.get_distill_layers(SimpleNamespace(model=[nn.Identity()]))
    student: Any = tiny(1)
    student.args = upstream.get_cfg(overrides={"imgsz": 64})
    pair: Any = upstream.DistillationModel(model, student)
    rely("DistillationModel.projector: one for each level", len(pair.projector) == len(layers) - 1)
    rely("DistillationModel.dis is the setting", float(pair.dis) == float(upstream.DEFAULT_CFG.dis))
    rely_on_method(upstream.DistillationModel, "loss_sl2", "student_feat", "teacher_feat", "feat_idx", "teacher_scores")
    ones, belief = torch.ones(2, 3, 4, 4), torch.full((2, 1, 16), 0.5)
    error = upstream.DistillationModel.loss_sl2(None, 3 * ones, ones, 0, (belief,))
    rely("loss_sl2: squared error, weighted by the teacher's scores", float(error) == pytest.approx(4.0))
