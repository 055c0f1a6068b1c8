"""The size of the images that a network sees: the one that is given, or the checkpoint's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distill.engine.kinds import kind_of
from distill.kinds.kind import Kind
from distill.kinds.opened import Opened
from distill.recipe.schema import Recipe


@dataclass(frozen=True)
class ImageSize:
    """Width and height of the network's input in pixels, and where the figure comes from."""

    pixels: int
    source: str

    def __str__(self) -> str:
        return f"imgsz {self.pixels}, {self.source}"


def image_size(given: int | None, network: Opened | None, kind: Kind) -> ImageSize:
    """Choose the image size.

    Args:
        given: by the user, in pixels; None if it is `auto`.
        network: the checkpoint; None if there is none yet.
        kind: of networks.
    """
    if given is not None:
        return ImageSize(given, "as given")
    if network is None:
        return ImageSize(kind.default_size, "by default")
    name = network.source.name
    if not network.imgsz:
        return ImageSize(kind.default_size, f"by default, for {name} does not say what it was trained at")
    step = max(32, kind.stride(network.model))  # a recipe's sizes are multiples of 32
    pixels = -(-network.imgsz // step) * step
    if pixels != network.imgsz:
        return ImageSize(pixels, f"for {name} was trained at {network.imgsz} and here sizes are multiples of {step}")
    return ImageSize(pixels, f"as {name} was trained")


def with_size(recipe: Recipe, teacher: Opened | None) -> tuple[Recipe, ImageSize]:
    """The recipe with its image size in place of `auto`, and where that comes from. `teacher`: None if it is trained first."""
    size = image_size(recipe.imgsz, teacher, kind_of(recipe))
    return replace(recipe, imgsz=size.pixels), size
