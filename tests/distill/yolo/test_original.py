"""Checkpoints of the original YOLOv5: each of its versions opens and computes the same, all else is refused by name."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.export import export_checkpoint
from distill.yolo.families.yolov5 import checkpoint as original
from distill.yolo.families.yolov5.head import AnchorDetect
from distill.yolo.families.yolov5.saving import save_original
from tests.distill.yolo.originals import ARCHITECTURES, HYP, IMAGE, NAMES, Original, edited, network, output


@pytest.fixture(scope="module")
def model() -> Any:
    return network()


def halved(model: Any) -> Any:
    """What is left of a network in a file of half precision."""
    return copy.deepcopy(model).half().float()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DistillError) as caught:
        checkpoint.load(path, **options)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


# --- what opens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "yolov5."])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_computes_the_same(tmp_path: Path, architecture: str, root: str) -> None:
    given, writer = network(architecture), Original(root, "v5.0" if architecture == "v5.0" else "v7.0")
    path = writer.save(writer.model(given), tmp_path / "best.pt")
    assert any(f"{root}models.yolo.Detect" == name for name in checkpoint.Archive(path).names)
    found: Any = checkpoint.load(path)
    assert torch.equal(output(found.model), output(halved(given)))
    assert type(found.model.model[-1]) is AnchorDetect and not found.model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in found.model.parameters())
    assert not {"models", "yolov5"} & sys.modules.keys()
    save_original(found.model, tmp_path / "again.pt", names=found.names, imgsz=64)
    assert torch.equal(output(checkpoint.load(tmp_path / "again.pt").model), output(found.model))


def test_the_architectures_hold_all_that_is_read(tmp_path: Path) -> None:
    names: set[str] = set()
    for architecture in ARCHITECTURES:
        writer = Original()
        names |= {*checkpoint.Archive(writer.save(writer.model(network(architecture)), tmp_path / "best.pt")).names}
    left = {name for name in original.MODULES if name not in names and not name.startswith("yolov5.")}
    assert {name for name in left if name.startswith("models.common.")} == {"models.common.C3SPP"}


@pytest.mark.parametrize(
    ("version", "rename"),
    [
        ("v5.0", {"models.yolo.DetectionModel": "models.yolo.Model"}),  # anchor_grid is a buffer
        ("used", {}),  # grids were made, as expanded tensors, and saved
        ("v7.0", {"models.common.C3": "models.experimental.C3"}),
        ("v7.0", {"models.common.C3": "models.common.C3SPP"}),
    ],
)
def test_every_version_computes_the_same(model: Any, tmp_path: Path, version: str, rename: dict[str, str]) -> None:
    writer = Original("", version, rename)
    found = checkpoint.load(writer.save(writer.model(model), tmp_path / "best.pt"))
    assert torch.equal(output(found.model), output(halved(model)))
    assert [name for name, _ in found.model.named_buffers() if "anchor" in name] == ["model.14.anchors"]


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish])
def test_the_originals_own_activations_have_no_switch(tmp_path: Path, activation: Any) -> None:
    given, name = network(), activation.__name__
    for module in given.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = activation()
            del module.act.inplace
    writer = Original()
    path = writer.save(writer.model(given), tmp_path / "torch.pt")
    was, becomes = f"ctorch.nn.modules.activation\n{name}\n".encode(), f"cutils.activations\n{name}\n".encode()
    found = checkpoint.load(edited(path, lambda data: data.replace(was, becomes), tmp_path / "best.pt"))
    assert f"utils.activations.{name}" in checkpoint.Archive(tmp_path / "best.pt").names
    for module in given.modules():
        if isinstance(module, activation):
            module.inplace = False
    assert torch.equal(output(found.model), output(halved(given)))


def test_an_unstripped_one_gives_its_average_in_full_precision(model: Any, tmp_path: Path) -> None:
    writer, average = Original(), network(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    both = {"ema": writer.model(average, half=False), "updates": 7, "optimizer": optimizer.state_dict()}
    found = checkpoint.load(writer.save(writer.model(model, half=False), tmp_path / "last.pt", **both))
    assert torch.equal(output(found.model), output(average))
    assert not torch.equal(output(average), output(halved(average)))


@pytest.mark.parametrize("names", [list(NAMES.values()), NAMES])
def test_names_are_a_list_or_a_dict(model: Any, tmp_path: Path, names: Any) -> None:
    writer = Original()
    made = writer.model(model)
    made.names = names
    assert checkpoint.load(writer.save(made, tmp_path / "best.pt")).names == NAMES


@pytest.mark.parametrize(
    ("options", "imgsz"),
    [
        ({"imgsz": 416}, 416),
        ({"img_size": [320, 416]}, 416),  # v5.0: for training, for testing
        ({"imgsz": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_image_size_is_in_the_options(model: Any, tmp_path: Path, options: Any, imgsz: Any) -> None:
    writer = Original()
    assert checkpoint.load(writer.save(writer.model(model), tmp_path / "best.pt", opt=options)).imgsz == imgsz


def hyp_of(path: Path) -> dict[str, float]:
    found: Any = checkpoint.load(path).model
    return found.hyp


def test_gains_are_those_of_the_file(model: Any, tmp_path: Path) -> None:
    writer = Original()
    made = writer.model(model)
    made.hyp = {**HYP, "cls": 1, "copy_paste": 0.0, "note": "words"}
    found = hyp_of(writer.save(made, tmp_path / "best.pt", opt={"imgsz": 320, "hyp": {"box": 9.0}}))
    assert {**found, **HYP, "cls": 1.0} == found
    assert (found["warmup_epochs"], found["copy_paste"], "note" in found) == (3.0, 0.0, False)


def test_gains_that_are_not_in_the_file_are_scaled_as_training_does(tmp_path: Path) -> None:
    writer = Original()
    made = writer.model(network("P6", nc=20))
    del made.hyp
    found = hyp_of(writer.save(made, tmp_path / "best.pt", opt={"imgsz": 320}))
    assert [found[key] for key in ("box", "cls", "obj")] == pytest.approx([0.0375, 0.09375, 0.1875])
    found = hyp_of(writer.save(made, tmp_path / "best.pt", opt={"img_size": [1280, 64], "hyp": {"obj": 0.5}}))
    assert [found[key] for key in ("box", "cls", "obj")] == pytest.approx([0.0375, 0.09375, 1.5])
    found = hyp_of(writer.save(made, tmp_path / "best.pt"))
    assert [found[key] for key in ("box", "cls", "obj", "anchor_t")] == pytest.approx([0.0375, 0.09375, 0.75, 4.0])


@pytest.mark.parametrize("architecture", ["v7.0", "v5.0"])
def test_an_export_has_the_originals_layout(tmp_path: Path, architecture: str) -> None:
    writer = Original(version=architecture)
    path = writer.save(writer.model(network(architecture)), tmp_path / "best.pt")
    made = export_checkpoint(path, "torchscript", tmp_path / "exports", 64)
    assert made.max_abs_diff is not None and made.max_abs_diff < 1e-4
    model: Any = checkpoint.load(path).model
    model.model[-1].layout = "original"
    image = IMAGE[..., :64]
    with torch.no_grad():
        found, expected = torch.jit.load(made.file)(image), model(image)
    assert expected.shape == (1, 3 * (8 * 8 + 4 * 4), 5 + 3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "yolov5."])
@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (
            {
                "models.yolo.DetectionModel": "models.yolo.SegmentationModel",
                "models.yolo.Detect": "models.yolo.Segment",
            },
            " is a segmentation model, not a detector",
        ),
        ({"models.yolo.Detect": "models.yolo.Segment"}, " is a segmentation model, not a detector"),
        ({"models.yolo.DetectionModel": "models.yolo.ClassificationModel"}, " is a classification model, not a"),
        (
            {"models.common.Conv": "models.common.StemBlock"},
            " holds '{}models.common.StemBlock', which the models of the original",
        ),
        (
            {"models.common.Conv": "utils.torch_utils.Conv"},
            " holds '{}utils.torch_utils.Conv', which the models of the original",
        ),
    ],
)
def test_other_tasks_and_forks_are_named(
    model: Any, tmp_path: Path, root: str, rename: dict[str, str], says: str
) -> None:
    writer = Original(root, rename=rename)
    assert refusal(writer.save(writer.model(model), tmp_path / "best.pt")).startswith(says.format(root))


@pytest.mark.parametrize(
    "name", ["common.AutoShape", "common.autoShape", "common.DetectMultiBackend", "experimental.Ensemble"]
)
def test_a_network_wrapped_for_inference_is_refused(model: Any, tmp_path: Path, name: str) -> None:
    writer = Original()
    wrapped: Any = writer.kind(f"models.{name}")()
    wrapped.model = writer.model(model)
    assert f"wrapped for inference (models.{name})" in refusal(writer.save(wrapped, tmp_path / "best.pt"))


def test_a_fused_network_is_refused(tmp_path: Path) -> None:
    """Up to v6.0 fusing puts a bound method in place of forward(); without its BatchNorms a network is told anyway."""
    for swap in (True, False):
        writer, given = Original(), network()
        for module in given.modules():
            if hasattr(module, "conv") and hasattr(module, "bn"):
                del module.bn
        made = writer.model(given)
        if swap:
            made.model[0].forward = types.MethodType(lambda self, x: x, made.model[0])
            made.model[0].forward.__func__.__name__ = "half"  # a method that it has
        assert "holds a fused network" in refusal(writer.save(made, tmp_path / "best.pt"))
        assert ("builtins.getattr" in checkpoint.Archive(tmp_path / "best.pt").names) is swap


@pytest.mark.parametrize("key", ["model", "ema"])
def test_weights_alone_are_refused(model: Any, tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, "model": None, key: model.state_dict(), "opt": {"imgsz": 64}}, tmp_path / "best.pt")
    assert "weights but no network (a state dict)" in refusal(tmp_path / "best.pt")


@pytest.mark.parametrize(("architecture", "channels"), [("v7.0", 8), ("v7.0", 1), ("v5.0", 8)])
def test_images_of_other_channels_are_refused(tmp_path: Path, architecture: str, channels: int) -> None:
    writer = Original()
    made = writer.model(network(architecture, channels=channels))
    assert f"takes images of {channels} channels" in refusal(writer.save(made, tmp_path / "best.pt"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("anchors", torch.ones(2, 2, 2), "its anchors do not fit its head"),
        ("anchors", torch.ones(3, 3, 2), "its anchors do not fit its head"),
        ("anchors", torch.ones(2, 3), "its anchors do not fit its head"),
        ("stride", torch.ones(1), "its anchors do not fit its head"),
        ("anchors", None, "is damaged"),
        ("nc", 4, "its anchors do not fit its head"),
        ("nc", "three", "is damaged"),
        ("m", nn.ModuleList([nn.Identity(), nn.Identity()]), "is damaged"),
    ],
)
def test_a_head_that_does_not_hold_together_is_refused(
    model: Any, tmp_path: Path, name: str, value: Any, says: str
) -> None:
    writer = Original()
    made = writer.model(model)
    setattr(made.model[-1], name, value)
    assert says in refusal(writer.save(made, tmp_path / "best.pt"))


@pytest.mark.parametrize("options", [[416], "imgsz=416", {"imgsz": "large"}, {"imgsz": [[1]]}, {"img_size": []}])
def test_options_of_an_odd_kind_open_or_are_refused(model: Any, tmp_path: Path, options: Any) -> None:
    """Whatever they are, it is no traceback."""
    writer = Original()
    path = writer.save(writer.model(model), tmp_path / "best.pt", opt=options)
    try:
        assert checkpoint.load(path).imgsz is None
    except DistillError as error:
        assert "damaged" in str(error)


# --- what is hostile -------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("place", ["opt", "hyp", "head", "fused"])
def test_what_hides_among_the_originals_names_is_not_run(model: Any, tmp_path: Path, place: str, trust: bool) -> None:
    marker, writer = tmp_path / "marker", Original()
    call, made, content = Call(os.system, f"touch '{marker}'"), writer.model(model), {}
    if place == "opt":
        content["opt"] = {"imgsz": 64, "hyp": call}
    elif place == "hyp":
        made.hyp = {**HYP, "box": call}
    elif place == "head":
        made.model[-1].grid = [call]
    else:
        made.model[0].forward = Call(getattr, call, "real")
    path = writer.save(made, tmp_path / "best.pt", **content)
    with writer.imported():
        torch.load(path, weights_only=False)
    assert marker.exists()  # it is meant
    marker.unlink()
    message = refusal(path, trust=trust)
    assert not marker.exists()
    if place != "fused":
        assert f"holds '{os.system.__module__}.system', which is not part of a YOLOv5: nothing of it was run" in message
    assert "trust" not in message  # it would not help


def test_trusted_or_not_an_original_is_never_run(model: Any, tmp_path: Path) -> None:
    """Its own classes could be imported, and would then be called by unpickling: they are not looked for."""
    writer = Original()
    path = writer.save(writer.model(model), tmp_path / "best.pt")

    def fail(*_: Any) -> None:
        raise AssertionError("the original's class was used")

    with writer.imported():
        for kind in [writer.kind("models.yolo.DetectionModel"), writer.kind("models.common.Conv")]:
            kind.__setstate__ = fail
        with pytest.raises(AssertionError):
            torch.load(path, weights_only=False)
        found = checkpoint.load(path, trust=True)
    assert torch.equal(output(found.model), output(halved(model)))


@pytest.mark.parametrize(("count", "size"), [(1, 2**40), (1, 2**21 + 2**20), (100, 2**20)])
def test_expanded_tensors_do_not_fill_the_memory(model: Any, tmp_path: Path, count: int, size: int) -> None:
    """A grid may be expanded, from one value to many; but not to any number, and not any number of them."""
    writer = Original()
    made = writer.model(model)
    made.model[-1].anchor_grid = [torch.zeros(1).expand(size) for _ in range(count)]
    path = writer.save(made, tmp_path / "best.pt")
    assert path.stat().st_size < 200_000
    assert "damaged" in refusal(path)


def test_a_deep_pickle_is_refused_and_does_not_overflow_the_stack(tmp_path: Path) -> None:
    """A tuple in a tuple, a million times, as a key: C takes its hash without looking how deep it goes."""
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as file:
        file.writestr("best/data.pkl", b"\x80\x02}()" + b"\x85" * 1_000_000 + b"K\x01u.")
    code = """
import sys
from pathlib import Path
from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
try:
    checkpoint.load(Path("best.pt"))
except DistillError:
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True)
    assert done.returncode == 3  # -11 is a segmentation fault


def test_modules_nested_without_end_are_refused(model: Any, tmp_path: Path) -> None:
    depth = 5000
    start = b"ctorch.nn.modules.container\nSequential\n)\x81}("
    parts = b"".join(b"X" + len(key).to_bytes(4, "little") + key + b"}" for key in (b"_parameters", b"_buffers"))
    inner = b"X\x08\x00\x00\x00_modules}X\x01\x00\x00\x000"
    leaf = start + parts + b"X\x08\x00\x00\x00_modules}ub"
    nest = (start + parts + inner) * depth + leaf + b"sub" * depth
    writer = Original()
    made = writer.model(model)
    made._modules["nested"] = "REPLACED"
    path = writer.save(made, tmp_path / "fine.pt")
    old = b"X\x08\x00\x00\x00REPLACED"

    def change(data: bytes) -> bytes:
        place = data.index(old)
        end = place + len(old) + (2 if data[place + len(old) : place + len(old) + 1] == b"q" else 5)  # its memo
        return data[:place] + nest + data[end:]

    assert "damaged" in refusal(edited(path, change, tmp_path / "best.pt"))
