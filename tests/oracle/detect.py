"""Runs the original YOLOv5 on a checkpoint in its format, and says in JSON what its own code makes of it.

    CONTRIBUTING.md says how to make its environment, in which this project is not.

From the root of the repository:

    python -m tests.oracle.detect outputs CKPT IMAGES.pt OUT.pt     # IMAGES.pt: (B, 3, H, W) in [0, 1], torch.saved
    python -m tests.oracle.detect nms RAW.pt OUT.pt                 # RAW.pt: a decoded (B, N, 5 + nc) of whoever made it
    python -m tests.oracle.detect val CKPT DATA.yaml IMGSZ          # on a copy: the original writes beside the labels
    python -m tests.oracle.detect detect CKPT IMAGE IMGSZ
    python -m tests.oracle.detect export CKPT IMGSZ FOLDER          # to FOLDER/<name of CKPT>.onnx
    python -m tests.oracle.detect hub CKPT IMAGE IMGSZ

`outputs` writes a dict: "raw" (B, N, 5 + nc) and "fused", the same of the network with its BatchNorms folded in, and
"found": for each confidence threshold, the (n, 6) of each image after the original's NMS at an IoU of 0.6.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from torch import Tensor

CONFIDENCES = (0.001, 0.25)


def prepare(folder: Path) -> None:
    """Import the original so that it downloads and installs nothing, and is one project rather than two."""
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    shutil.copyfile(font, folder / "Arial.ttf")  # or it downloads one
    os.environ |= {"YOLOV5_CONFIG_DIR": str(folder), "YOLOv5_AUTOINSTALL": "false"}
    importlib.import_module("yolov5.models.yolo")
    # Checkpoints name models.yolo, as the project itself does. Its package on PyPI would import those files a second
    # time under that name, and export.py then meets a Detect that is not the class it looks for.
    for name, module in list(sys.modules.items()):
        if name.startswith(("yolov5.models", "yolov5.utils")):
            sys.modules[name.removeprefix("yolov5.")] = module


def suppress(raw: Tensor) -> dict[float, list[Tensor]]:
    """The original's NMS, image by image: in a batch, what comes after its time limit is left out."""
    from yolov5.utils.general import non_max_suppression

    return {
        conf: [non_max_suppression(one[None], conf, 0.6, multi_label=conf < 0.01)[0] for one in raw]
        for conf in CONFIDENCES
    }


def run_outputs(args: argparse.Namespace) -> dict[str, Any]:
    from yolov5.models.common import DetectMultiBackend
    from yolov5.models.experimental import attempt_load

    images = torch.load(args.images, weights_only=True)
    model = attempt_load(args.checkpoint, fuse=False)
    with torch.no_grad():
        raw, fused = model(images)[0], DetectMultiBackend(args.checkpoint, torch.device("cpu"))(images)[0]
    found = suppress(raw)
    torch.save({"raw": raw, "fused": fused, "found": found}, args.out)
    return {
        "shape": list(raw.shape),
        "names": model.names,
        "stride": model.stride.tolist(),
        "found": {conf: sum(map(len, boxes)) for conf, boxes in found.items()},
        "fused differs by": float((raw - fused).abs().max()),
    }


def run_nms(args: argparse.Namespace) -> dict[str, Any]:
    found = suppress(torch.load(args.raw, weights_only=True))
    torch.save({"found": found}, args.out)
    return {"found": {conf: sum(map(len, boxes)) for conf, boxes in found.items()}}


def run_val(args: argparse.Namespace) -> dict[str, Any]:
    from yolov5 import val

    data = args.folder / args.data.parent.name
    if not data.exists():
        shutil.copytree(args.data.parent, data, copy_function=shutil.copyfile)
    for folder in (data, *(found for found in data.rglob("*") if found.is_dir())):
        folder.chmod(0o755)
    config = {**yaml.safe_load(args.data.read_text(encoding="utf-8")), "path": str(data)}
    (data / args.data.name).write_text(yaml.safe_dump(config), encoding="utf-8")
    (precision, recall, map50, map50_95, *_), maps, *_ = val.run(
        data=str(data / args.data.name),
        weights=args.checkpoint,
        imgsz=args.imgsz,
        batch_size=32,
        workers=0,
        device="cpu",
        half=False,
        plots=False,
        project=str(args.folder / "val"),
    )
    found = {"map50_95": map50_95, "map50": map50, "precision": precision, "recall": recall}
    return {**{key: float(value) for key, value in found.items()}, "maps": [float(value) for value in maps]}


def run_detect(args: argparse.Namespace) -> dict[str, Any]:
    from yolov5 import detect

    detect.run(
        weights=args.checkpoint,
        source=args.image,
        imgsz=args.imgsz,
        device="cpu",
        save_txt=True,
        save_conf=True,
        project=str(args.folder / "detect"),
        name="run",
        exist_ok=True,
    )
    label = args.folder / "detect" / "run" / "labels" / f"{Path(args.image).stem}.txt"  # class x y w h confidence
    lines = label.read_text(encoding="utf-8").splitlines() if label.is_file() else []
    return {"boxes": [[float(number) for number in line.split()] for line in lines]}


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    import onnx
    from yolov5 import export

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = shutil.copyfile(args.checkpoint, args.out / Path(args.checkpoint).name)
    files = export.run(weights=str(checkpoint), imgsz=(args.imgsz, args.imgsz), include=("onnx",))
    if not files:  # it logs why, and goes on
        raise SystemExit("the original did not export the network")
    model = onnx.load(files[0])
    return {
        "inputs": [describe(value) for value in model.graph.input],
        "outputs": [describe(value) for value in model.graph.output],
        "metadata": {prop.key: prop.value for prop in model.metadata_props},
        "opset": [[entry.domain, entry.version] for entry in model.opset_import],
        "ir": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}",
    }


def describe(value: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return {"name": value.name, "type": kind.elem_type, "shape": shape}  # type 1 is float32


def run_hub(args: argparse.Namespace) -> dict[str, Any]:
    from yolov5 import hubconf

    model = hubconf.custom(args.checkpoint, device="cpu", _verbose=False)
    return {"kind": type(model).__name__, "names": model.names, "boxes": model(args.image, args.imgsz).xyxy[0].tolist()}


def absolute(path: str) -> str:
    return str(Path(path).resolve())  # a bare name is looked for on a hub first


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.detect", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    arguments = {
        "outputs": {"checkpoint": absolute, "images": Path, "out": Path},
        "nms": {"raw": Path, "out": Path},
        "val": {"checkpoint": absolute, "data": Path, "imgsz": int},
        "detect": {"checkpoint": absolute, "image": absolute, "imgsz": int},
        "export": {"checkpoint": absolute, "imgsz": int, "out": Path},
        "hub": {"checkpoint": absolute, "image": absolute, "imgsz": int},
    }
    for command, kinds in arguments.items():
        own = commands.add_parser(command)
        own.set_defaults(function=globals()[f"run_{command}"])
        own.add_argument("--folder", type=Path, help="where copies and results go (a temporary folder)")
        for argument, kind in kinds.items():
            own.add_argument(argument, type=kind)
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.folder = (args.folder or Path(tempfile.mkdtemp(prefix="oracle-"))).resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # the original prints here and there
        prepare(args.folder)
        found = args.function(args)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
