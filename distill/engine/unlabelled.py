"""The section `unlabelled` of a recipe: its images and videos opened beside the data, and said in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill.engine.kinds import kind_of
from distill.errors import DistillError
from distill.kinds.opened import Images
from distill.machine import parallel
from distill.machine.private import private_folder
from distill.machine.progress import ProgressCallback
from distill.machine.words import abridge
from distill.recipe.schema import Recipe


def with_unlabelled(recipe: Recipe, data: Images | None, progress: ProgressCallback | None) -> Images | None:
    """The data with the images that `unlabelled` names, if it does; of videos, no frame is written yet.

    Args:
        recipe: what is to be done.
        data: the data set; None if it is still to be generated.
        progress: shows bars.

    Raises:
        DistillError: what cannot be used, in one line.
    """
    if recipe.unlabelled is None:
        return data
    name, batch = ("batch", recipe.batch) if recipe.distill.batch is None else ("distill.batch", recipe.distill.batch)
    least = 2 * parallel.world()
    if recipe.distill.epochs and batch < least:
        what = "images with labels and without share each batch"
        raise DistillError(f"{name} is {batch}, and {what}: give {name}={least} or more")
    found: Images | None = kind_of(recipe).find_unlabelled(recipe.unlabelled, data, progress)
    return found


def with_frames(
    recipe: Recipe, data: Images, folder: Callable[[], Path] | None, progress: ProgressCallback | None
) -> Images:
    """The data with frames of their videos; of several processes the leader writes them, and the others read them.

    Args:
        recipe: its `unlabelled` says how many.
        data: from `with_unlabelled`.
        folder: gives the folder that they are written into; None leaves them for later.
        progress: shows bars.
    """
    if recipe.unlabelled is None or folder is None or not data.videos:
        return data
    place, most, kind = folder(), recipe.unlabelled.frames, kind_of(recipe)
    whole: Images | None = kind.decode_videos(data, place, most, progress) if parallel.is_leader() else None
    parallel.broadcast()
    return whole or kind.decode_videos(data, place, most, progress)


def scratch_frames() -> Path:
    """A folder for frames that goes with the process."""
    return private_folder() / "frames"


def in_words(recipe: Recipe, data: Images) -> str:
    """Images without labels beside labelled ones, for the facts of a run; empty if there are none."""
    options = recipe.unlabelled
    parts = [f"{len(data.unlabelled)} images"] if data.unlabelled else []
    if options is not None and data.videos:
        videos = "a video" if len(data.videos) == 1 else f"each of {len(data.videos)} videos"
        parts.append(f"up to {options.frames} {'frame' if options.frames == 1 else 'frames'} of {videos}")
    return f"{' and '.join(parts)}: {abridge(list(options.images), ', ')}" if options is not None and parts else ""


def unread(recipe: Recipe, data: Images, taught: bool) -> tuple[str, ...]:
    """A line if training has no use for the images. `taught`: whether a loss needs no labels."""
    if taught or not data.unlabelled or not recipe.distill.epochs:
        return ()
    return ("no loss of distill.losses reads the images of 'unlabelled': repair alone uses them",)
