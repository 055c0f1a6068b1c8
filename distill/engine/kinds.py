"""The kinds of networks that are supported, and which one a recipe or a file is of."""

from __future__ import annotations

from pathlib import Path

from distill.classifiers.files import is_classifier
from distill.kinds.kind import Kind
from distill.recipe.schema import Recipe


def kind_of(recipe: Recipe) -> Kind:
    """The kind of a recipe's network."""
    return kind_at(recipe.model or (recipe.teacher.train.model if recipe.teacher.train else ""))


def kind_at(model: str | Path) -> Kind:
    """The kind of what `model` names: a checkpoint, or an architecture. What is unknown is refused by the one that opens it."""
    if is_classifier(model):
        from distill.classifiers.kind import CLASSIFIERS  # timm takes seconds to import

        return CLASSIFIERS
    from distill.yolo.kind import YOLO

    return YOLO
