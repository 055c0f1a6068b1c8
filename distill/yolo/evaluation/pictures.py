"""Pictures of boxes: the same image as the labels say and as several networks see it, side by side, by ultralytics' plotter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from distill.results.quality import Picture, PictureGroup, Pictures
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.difference import choose, compare
from distill.yolo.evaluation.evaluate import SURE, Boxes
from distill.yolo.upstream import Annotator, colors, imread

LABELS = "labels"  # the panel of what is in the label files
LARGE = (640, 1280)  # longer side of a panel of the large picture in pixels: at least, at most
SMALL = 400  # the same of a panel for the page
QUALITY = {"large": 90, "small": 72}  # of the JPEG files
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # named, so that none is downloaded
BAND, GAP = 34, 8  # pixels for the title of a panel, and between panels

Write = Callable[[str, bytes], Any]  # (file in the folder, content)


def make_pictures(
    data: DataSet,
    panels: Mapping[str, Boxes],
    write: Write,
    *,
    count: int,
    worst: str | None = None,
    small: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> Pictures:
    """Choose val images on which the last panel's network differs from the first one's, draw and write them.

    Args:
        data: whose val images they are; its labels are a panel of their own if it has any.
        panels: title of a panel -> the boxes in it, on all val images; the last is compared with the first.
        write: called with the name of each file and its bytes.
        count: images for each reason to choose one.
        worst: name of the class that lost most.
        small: whether to write small panels for a page too.
        warn: told if an image cannot be read any more; it is left out.
    """
    names, pair = dict(data.config["names"]), (next(iter(panels)), list(panels)[-1])
    teacher, student = (panels[title] for title in pair)
    numbers = {name: number for number, name in names.items()}
    records = {record["im_file"]: record for record in data.records["val"]}
    groups, shown = [], set()
    for choice in choose(teacher, student, count, numbers.get(worst) if worst is not None else None):
        pictures: list[Picture] = []
        for file in choice.files:
            image = imread(file, cv2.IMREAD_COLOR)
            if image is None:
                warn(f"{file}: cannot be read any more, so the report has no picture of it")
                continue
            boxes = {title: each[file][each[file][:, 4] >= SURE] for title, each in panels.items()}
            if data.labelled:
                boxes = {LABELS: _labels(records[file]), **boxes}
            alone = _alone(boxes, *pair)
            stem = f"{choice.kind}-{len(pictures) + 1}"
            write(f"{stem}.jpg", _jpeg(_side_by_side(image, boxes, alone, names), "large"))
            files = {}
            for title in boxes if small else ():
                files[title] = f"small/{stem}-{title}.jpg"
                write(files[title], _jpeg(_panel(_scaled(image, SMALL, SMALL), boxes[title], alone[title]), "small"))
            shown |= {int(kind) for each in boxes.values() for kind in each[:, 5]}
            drawn = {title: len(each) for title, each in boxes.items()}
            lone = {title: int(alone[title].sum()) for title in pair}
            difference = round(compare(teacher[file], student[file]).total, 4)
            pictures.append(Picture(Path(file).name, f"{stem}.jpg", files, drawn, lone, difference))
        if pictures:
            groups.append(PictureGroup(choice.kind, worst if choice.kind == "class" else None, tuple(pictures)))
    hexes = {names[number]: "#{:02x}{:02x}{:02x}".format(*colors(number)) for number in sorted(shown)}
    return Pictures(SURE, len(records), hexes, tuple(groups))


def _labels(record: Mapping[str, Any]) -> NDArray:
    """(n, 6) as in `Boxes`, with a score of NaN, of the labels of an image."""
    boxes, classes = record["bboxes"].reshape(-1, 4), record["cls"].reshape(-1, 1)
    return np.concatenate([boxes, np.full_like(classes, np.nan), classes], 1)


def _alone(boxes: Mapping[str, NDArray], first: str, last: str) -> dict[str, NDArray[np.bool_]]:
    """For each panel, which of its boxes only one of the first and the last has; none in the other panels."""
    difference = compare(boxes[first], boxes[last])
    nobody = {title: np.zeros(len(each), dtype=bool) for title, each in boxes.items()}
    return {**nobody, first: difference.first_alone, last: difference.second_alone}


def _side_by_side(
    image: NDArray, boxes: Mapping[str, NDArray], alone: Mapping[str, NDArray], names: Mapping[int, str]
) -> NDArray:
    """All panels in a row, each below its title, with names and scores at the boxes."""
    image = _scaled(image, *LARGE)
    height, width = image.shape[:2]
    sheet = np.full((BAND + height, len(boxes) * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for place, (title, each) in enumerate(boxes.items()):
        left = place * (width + GAP)
        sheet[BAND:, left : left + width] = _panel(image, each, alone[title], names)
    annotator = Annotator(sheet, pil=True, font=str(FONT), font_size=18)
    for place, (title, each) in enumerate(boxes.items()):
        annotator.text([place * (width + GAP) + 2, 5], f"{title}: {len(each)}", txt_color=(30, 30, 30))
    return np.asarray(annotator.result())


def _panel(image: NDArray, boxes: NDArray, alone: NDArray, names: Mapping[int, str] | None = None) -> NDArray:
    """A copy of an image with boxes on it, thick ones if they stand `alone`; with `names` also class and score of each."""
    height, width = image.shape[:2]
    size = max(12, round(max(height, width) / 55))
    annotator = Annotator(image.copy(), pil=names is not None, font=str(FONT), font_size=size)
    thin = max(1, round(max(height, width) / 320))
    for (x, y, w, h, score, kind), single in zip(boxes.tolist(), alone, strict=True):
        annotator.lw = round(2.6 * thin) if single else thin
        corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        label = "" if names is None else _text(int(kind), names, score)
        annotator.box_label(_inside(corners, width, height), label, colors(kind, bgr=True))
    return np.asarray(annotator.result())


def _inside(corners: Sequence[float], width: int, height: int) -> list[float]:
    """Corners on the image: a box may reach beyond it, and its line must be seen."""
    left, top, right, bottom = corners
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return [left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))]


def _text(kind: int, names: Mapping[int, str], score: float) -> str:
    """What stands at a box. A name that the font cannot write is its number."""
    name = names[kind] if all(ord(letter) in _GLYPHS for letter in names[kind]) else f"class {kind}"
    return name[:24] if np.isnan(score) else f"{name[:24]} {score:.2f}"


def _scaled(image: NDArray, least: int, most: int) -> NDArray:
    """An image (H, W, BGR) with a longer side between the two."""
    height, width = image.shape[:2]
    side = max(height, width)
    ratio = min(max(side, least), most) / side
    if ratio == 1:
        return image
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)


def _jpeg(image: NDArray, kind: str) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY[kind]])[1].tobytes()


_GLYPHS = FT2Font(str(FONT)).get_charmap()
