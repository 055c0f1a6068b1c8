"""Images without labels beside a data set: folders, lists and videos, checked as the data set's own images are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.machine.progress import ProgressCallback
from distill.machine.words import brief
from distill.yolo.data import labels, videos
from distill.yolo.data.datafile import read_list
from distill.yolo.data.dataset import UNLABELLED, DataSet
from distill.yolo.data.files import FORMATS, find_images, is_image, is_video, once, shared
from distill.yolo.data.labels import Records


@dataclass(frozen=True)
class Found:
    """What the user has named, opened and checked."""

    records: Records
    videos: tuple[Path, ...]
    warnings: tuple[str, ...]


def find(places: Sequence[str], root: Path | None = None, progress: ProgressCallback | None = None) -> Found:
    """Open folders, lists and videos. Of a video, the first frame is decoded.

    Args:
        places: paths of folders, whose subfolders count, of .txt lists, of single images and of videos.
        root: what a line of a list may be relative to, beside the list's own folder.
        progress: shows a bar over the images of each place.

    Raises:
        DistillError: nothing there, no images, or a video that cannot be decoded. One in a folder is left out and named in
            `warnings`, if there is something else in it.
    """
    records: dict[Path, dict[str, Any]] = {}
    clips: list[Path] = []
    warnings: list[str] = []
    for place in map(Path, places):
        images, found = _look_into(place, root)
        if images:
            split = labels.read(place, UNLABELLED, images, None, progress)
            records |= {Path(record["im_file"]): record for record in split.records}
            warnings += split.warnings
        usable, damaged = _probe(found)
        if damaged and not (images or usable):
            raise damaged[0]
        warnings += [f"{error}: left out" for error in damaged]
        clips += usable
    files = sorted(once(list(records)))
    return Found(tuple(records[file] for file in files), tuple(once(clips)), tuple(warnings))


def beside(data: DataSet, found: Found) -> DataSet:
    """The data set with what was found beside it. If it has no labels, the images join those that it learns from.

    Images of `train` are left out. Images of `val` are an error, since results are measured on them; of a folder, whose
    `val` was chosen here, they are left out too.

    Raises:
        DistillError: images of `val`, or no image that is not in the data set already.
    """
    files = [Path(record["im_file"]) for record in found.records]
    measured = shared(files, data.val)
    if measured and data.labelled:
        first = next(file for file in files if file in measured)
        raise DistillError(
            f"'{UNLABELLED}': {len(measured)} of the {len(files)} images are images of 'val' in {data.path}, first "
            f"{first}: results would be measured on what was learned from: leave them out"
        )
    known = shared(files, data.train) | measured
    new = tuple(record for record, file in zip(found.records, files, strict=True) if file not in known)
    if not new and not found.videos:
        raise DistillError(f"'{UNLABELLED}': each of the {len(files)} images is in {data.path} already: give others")
    notes = list(data.notes)
    if known:
        notes.append(
            f"{len(known)} of the {len(files)} images of '{UNLABELLED}' are in {data.path} too: left out there"
        )
    if not data.labelled:
        notes.append(
            f"{data.path} has no labels, so the images of '{UNLABELLED}' join it, whatever their ratio and weight"
        )
    warnings = (*data.warnings, *found.warnings)
    return replace(_join(data, new), notes=tuple(notes), warnings=warnings, videos=found.videos)


def decoded(data: DataSet, folder: Path, most: int, progress: ProgressCallback | None = None) -> DataSet:
    """The data set with frames of its videos, which are written as images.

    Args:
        data: from `beside`.
        folder: gets a folder for each video; what is there already is not written again.
        most: frames of each video.
        progress: shows bars.
    """
    files = [file for video in data.videos for file in videos.frames_of(video, folder, most, progress)]
    split = labels.read(folder, UNLABELLED, files, None, progress)
    return replace(_join(data, split.records), videos=(), warnings=(*data.warnings, *split.warnings))


def _join(data: DataSet, records: Records) -> DataSet:
    if data.labelled:
        return replace(data, records=data.records | {UNLABELLED: (*data.records.get(UNLABELLED, ()), *records)})
    records = (*data.records["train"], *records)
    files = [record["im_file"] for record in records]
    return replace(
        data,
        train=tuple(map(Path, files)),
        config=data.config | {"train": files},
        records=data.records | {"train": records},
    )


def _probe(clips: Sequence[Path]) -> tuple[list[Path], list[DistillError]]:
    """The videos that can be decoded, and what is wrong with the others."""
    usable: list[Path] = []
    damaged: list[DistillError] = []
    for clip in clips:
        try:
            videos.probe(clip)
            usable.append(clip)
        except DistillError as error:
            damaged.append(error)
    return usable, damaged


def _look_into(place: Path, root: Path | None) -> tuple[list[Path], list[Path]]:
    """The images and the videos at a place."""
    shown, full = f"'{UNLABELLED}': {brief(place, 200)}", place.absolute()
    if place.is_dir():
        images, clips = find_images(full), find_images(full, is_video)
        if not images and not clips:
            raise DistillError(f"{shown}: no images and no videos in this folder (looked for {FORMATS}, mp4, avi, ...)")
        return images, clips
    if not place.is_file():  # reading a pipe would never end
        what = "is no file" if os.path.lexists(place) else "is not there"
        raise DistillError(f"{shown} {what}: give a folder of images, a .txt list of them, or a video")
    if place.suffix.lower() == ".txt":
        images = read_list(place, full, root or full.parent)
        if not images:
            raise DistillError(f"{shown} lists no images: write the path of one on each line")
        return images, []
    if is_image(place.name) or is_video(place.name):
        return ([full], []) if is_image(place.name) else ([], [full])
    raise DistillError(f"{shown} is neither a folder of images, nor a .txt list of them, nor a video")
