"""Videos: frames evenly spread over one, decoded by OpenCV and written as images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill.errors import DistillError
from distill.machine.files import has_content, write_atomically
from distill.machine.progress import ProgressCallback
from distill.machine.words import brief

_LOG = logging.getLogger(__name__)
_QUALITY = 95  # of the JPEG files
_NAME = 40  # characters of a video's name that the names of its frames have


def probe(video: Path) -> None:
    """Decode the first frame of a video. Raises `DistillError` if that cannot be done."""
    if not video.is_file():  # reading a pipe would never end
        raise _undecodable(video)
    with _opened(video) as capture:
        if _next(capture) is None:
            raise _undecodable(video)


def frames_of(video: Path, folder: Path, most: int, progress: ProgressCallback | None) -> list[Path]:
    """Frames of a video as image files, evenly spread; a folder that has them already is not written again.

    Args:
        video: the file.
        folder: gets a folder for each video.
        most: number of frames.
        progress: shows a bar over the frames.

    Raises:
        DistillError: no frame can be decoded.
        RunError: the disk is full.
    """
    # Two videos of one name in different folders are two, and other frames of one are others.
    key = hashlib.sha256(f"{video.absolute()} {video.stat().st_size} {most}".encode(errors="replace")).hexdigest()[:8]
    place = folder / f"{video.stem[:_NAME]}-{key}"
    if not has_content(place):
        write_atomically(place, partial(_write, video, _spread(_length(video), most), progress))
    return sorted(place.iterdir())


def _spread(length: int, most: int) -> list[int]:
    """The numbers of the frames that are taken, each from the middle of its part of the video."""
    parts = min(length, most)
    return [(2 * part + 1) * length // (2 * parts) for part in range(parts)]


def _write(video: Path, wanted: Sequence[int], progress: ProgressCallback | None, folder: Path) -> None:
    folder.mkdir()
    written = 0
    with _opened(video) as capture:
        bar = wanted if progress is None else progress(wanted, f"frames of {video.name}", len(wanted), "frames")
        position = 0
        for number in bar:
            while position < number and capture.grab():  # in order: not every format can be searched exactly
                position += 1
            frame = _next(capture) if position == number else None
            if frame is None:
                break
            position += 1
            coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            (folder / f"{video.stem[:_NAME]}-{number:07}.jpg").write_bytes(coded.tobytes())
            written += 1
    if not written:
        raise _undecodable(video)
    if written < len(wanted):
        _LOG.warning("%s: only %d of %d frames can be decoded: it may be cut short", video, written, len(wanted))


def _length(video: Path) -> int:
    """The number of frames. A stream does not say it, and is decoded once to count them."""
    with _opened(video) as capture:
        said = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return said if said > 0 else next(number for number in count() if not capture.grab())


@contextmanager
def _opened(video: Path) -> Iterator[Any]:
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened():
            raise _undecodable(video)
        yield capture
    except cv2.error as error:
        raise _undecodable(video) from error
    finally:
        capture.release()


def _next(capture: Any) -> np.ndarray | None:
    """The next frame, (H, W, BGR)."""
    read, frame = capture.read()
    return frame if read and frame is not None and frame.size else None


def _undecodable(video: Path) -> DistillError:
    mend = "convert it to MP4 (H.264), or give its frames as images"
    return DistillError(f"{brief(video, 200)}: this video cannot be decoded: {mend}")
