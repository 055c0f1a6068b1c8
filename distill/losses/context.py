"""What a loss receives: the outputs of both networks for one batch, decoded only when a loss asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.selection import ALL, KEPT, kept
from distill.machine.words import nearest

NECK = "neck"  # the point where features enter the head
BY_ANCHOR = ("mask_coefficients", "keypoints", "angles")  # what a head of a task predicts beside boxes and classes
NEGLIGIBLE = 1e-5  # share of the anchors' weights that a loss may leave out: see `LossContext.focused`


@dataclass(frozen=True, eq=False)
class Decode:
    """Makes boxes of what a head predicts: of all anchors when it is called, or of some.

    Args:
        predicted: (B, A, ...), from which boxes are made.
        make: (`predicted` of some anchors (..., N, ...), their indices) -> boxes (..., N, 4).
    """

    predicted: Tensor
    make: Callable[[Tensor, Any], Tensor]

    def __call__(self) -> Tensor:
        """All boxes, (B, A, 4)."""
        return self.make(self.predicted, slice(None))

    def pick(self, image: Tensor, anchor: Tensor, known: Tensor | None = None) -> Decode:
        """The same for N anchors as those of one image, given the index of their image and their own.

        `known` is what `predicted` holds of them, (1, N, ...), if it was taken out already.
        """
        predicted = self.predicted[image, anchor][None] if known is None else known
        return Decode(predicted, lambda some, index: self.make(some, anchor[index]))


@dataclass(frozen=True, eq=False)
class Outputs:
    """One network's raw outputs for a batch of B images with A anchors, nc classes and R bins to a box side.

    The fields are what the network gave, in its own precision; the properties are what losses read, in float32.

    Args:
        neck: the features that enter the head, one (B, C, H, W) per pyramid level.
        class_logits: (B, A, nc).
        side_logits: (B, A, 4, R) for a head that predicts a distribution over distances to each box side.
        decode: gives the boxes, (B, A, 4) as x1 y1 x2 y2 in input pixels; a `Decode` also gives some alone.
        strides: (A,) input pixels to a cell of each anchor's level.
        raw: the outputs as the network's own loss takes them.
        objectness_logits: (B, A) for a head that predicts beside the classes whether an anchor holds an object.
        mask_coefficients: (B, A, M) for a head that predicts masks: by how much each prototype is in the mask.
        prototypes: (B, M, h, w), logits of the parts that masks are made of, on a grid over the image.
        keypoints: (B, A, K, 2 or 3) for a head that predicts keypoints: x and y in input pixels, then a logit of being seen.
        spreads: (K,) how far each keypoint may lie from where a person puts it, in object sizes: the sigmas of OKS.
        angles: (B, A) for a head that predicts oriented boxes: radians, clockwise. The boxes are those before they are turned
            about their centre.
        at: outputs of modules by path ("model.4"), (B, C, H, W) each, as far as losses read them.
        beside: what further branches of the head make of the same features, at the same anchors. Only a task looks at
            them: it hands a loss one branch after the other.
    """

    neck: tuple[Tensor, ...]
    class_logits: Tensor
    side_logits: Tensor | None = None
    decode: Callable[[], Tensor] | None = None
    strides: Tensor | None = None
    raw: Any = None
    objectness_logits: Tensor | None = None
    mask_coefficients: Tensor | None = None
    prototypes: Tensor | None = None
    keypoints: Tensor | None = None
    spreads: Tensor | None = None
    angles: Tensor | None = None
    at: Mapping[str, Tensor] = field(default_factory=dict)
    beside: tuple[Outputs, ...] = ()

    def __repr__(self) -> str:
        batch, anchors, classes = self.class_logits.shape
        return f"Outputs({batch} images, {anchors} anchors, {classes} classes, {len(self.neck)} levels)"

    @property
    def branches(self) -> tuple[Outputs, ...]:
        """The outputs of each branch of the head by itself, all with the same features."""
        return (replace(self, beside=()), *(replace(each, at=self.at) for each in self.beside))

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """Features that enter the head, one (B, C, H, W) per level."""
        return tuple(feature.float() for feature in self.neck)

    @cached_property
    def scores(self) -> Tensor:
        """Class logits, (B, A, nc)."""
        return self.class_logits.float()

    @cached_property
    def dist(self) -> Tensor | None:
        """Logits of the distances to the left, top, right and bottom side, (B, A, 4, R), or None without DFL."""
        return None if self.side_logits is None else self.side_logits.float()

    @cached_property
    def objectness(self) -> Tensor | None:
        """Logits of an anchor holding an object, (B, A), or None if class scores say it too."""
        return None if self.objectness_logits is None else self.objectness_logits.float()

    @cached_property
    def boxes(self) -> Tensor:
        """Decoded boxes, (B, A, 4) as x1 y1 x2 y2 in input pixels."""
        if self.decode is None:
            raise DistillError("a loss asks for boxes, but this network predicts none: take the loss out of the recipe")
        return self.decode().float()

    @cached_property
    def kept(self) -> Tensor:
        """Which boxes are left after non-maximum suppression, (B, A)."""
        with torch.no_grad():
            return kept(self.boxes, probabilities(self.scores, self.objectness))

    def mask_logits(self, anchor: Tensor) -> Tensor:
        """Masks of some anchors of each image, on the grid of the prototypes. Shape: (B, K) indices -> (B, K, h, w)."""
        if self.mask_coefficients is None or self.prototypes is None:
            raise DistillError("a loss asks for masks, but this network predicts none: take the loss out of the recipe")
        chosen = self.mask_coefficients.gather(1, anchor[..., None].expand(-1, -1, self.mask_coefficients.shape[-1]))
        return torch.einsum("bkm,bmhw->bkhw", chosen.float(), self.prototypes.float())

    def feature(self, point: str) -> tuple[Tensor, ...]:
        """Features at a point: one (B, C, H, W) per level at "neck", and one alone at a module's path.

        Raises:
            DistillError: nothing was captured there.
        """
        if point == NECK:
            return self.features
        if point not in self.at:
            known = [NECK, *self.at]
            there = nearest(point, known) or f": there are {', '.join(known)}"
            raise DistillError(f"a loss asks for features at '{point}'{there}; distill.features lists what is captured")
        return (self.at[point].float(),)

    def part(self, images: slice) -> Outputs:
        """The outputs for some of the images."""

        def take(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[images]
            if isinstance(value, Mapping):
                return {name: take(each) for name, each in value.items()}
            return type(value)(map(take, value)) if isinstance(value, (list, tuple)) else value

        fields = ("neck", "class_logits", "side_logits", "objectness_logits", "raw", "at", "prototypes", *BY_ANCHOR)
        taken = {name: take(getattr(self, name)) for name in fields}
        decode = None if self.decode is None else lambda: self.boxes[images]
        if isinstance(self.decode, Decode):
            decode = replace(self.decode, predicted=self.decode.predicted[images])
        beside = tuple(each.part(images) for each in self.beside)
        return replace(self, **taken, decode=decode, beside=beside)

    def pick(self, image: Tensor, anchor: Tensor) -> Outputs:
        """The outputs of N anchors as those of one image, given the index of their image and their own, (N,) each.

        Without prototypes: the anchors of an image share them.
        """

        def take(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[image, anchor][None]

        def boxes() -> Tensor:
            if isinstance(self.decode, Decode):
                same = self.decode.predicted is self.side_logits
                return self.decode.pick(image, anchor, taken["side_logits"] if same else None)()
            return self.boxes[image, anchor][None]

        fields = ("class_logits", "side_logits", "objectness_logits", *BY_ANCHOR)
        taken: dict[str, Any] = {name: take(getattr(self, name)) for name in fields}
        strides = None if self.strides is None else self.strides[anchor]
        return replace(self, **taken, decode=boxes, strides=strides, prototypes=None, raw=None)

    def tensors(self) -> list[Tensor]:
        """Every tensor that a loss can reach the network through."""
        reachable = [*self.neck, *self.at.values(), self.class_logits, self.side_logits, self.objectness_logits]
        reachable += [self.decode.predicted] if isinstance(self.decode, Decode) else []
        reachable += [self.prototypes, *(getattr(self, name) for name in BY_ANCHOR)]
        own = [tensor for tensor in reachable if tensor is not None and tensor.requires_grad]
        return [*own, *(tensor for each in self.beside for tensor in each.tensors())]


class Channels(nn.Module):
    """How the channels of a student's feature meet those of a teacher's, at one point and level.

    Args:
        keep: the teacher's channels that the student still has; None if it has them all.
        project: makes the teacher's channels from the student's, if the student was not cut from this teacher.
    """

    keep: Tensor | None

    def __init__(self, keep: Sequence[int] | None = None, project: nn.Module | None = None) -> None:
        super().__init__()
        index = None if keep is None else torch.as_tensor(keep, dtype=torch.long)
        self.register_buffer("keep", index, persistent=False)
        self.project = project

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The pair that compares. Shape: (B, C, H, W), (B, D, H, W) -> (B, E, H, W) twice."""
        if self.keep is not None:
            teacher = teacher.index_select(1, self.keep)
        return student if self.project is None else self.project(student), teacher


@dataclass(frozen=True, eq=False)
class LossContext:
    """Everything a loss may read about one batch. Read-only, and float32 whatever precision the networks run in.

    Args:
        images: (B, 3, H, W) in [0, 1].
        student: outputs of the network in training.
        teacher: outputs of the frozen teacher that the loss belongs to, without gradient.
        targets: the batch's labels as its loader gives them, or None if the images have none.
        progress: share of the training that is done, 0 to 1.
        points: where the loss reads features: "neck", or paths of modules.
        channels: per point, how both networks' channels meet at each of its levels; a point that is missing here
            compares them as they are.
        anchors: whose `quality` counts: "all", or those that the teacher's NMS has "kept"; that of others is 0.
    """

    images: Tensor
    student: Outputs
    teacher: Outputs
    targets: Mapping[str, Any] | None = None
    progress: float = 0.0
    points: tuple[str, ...] = (NECK,)
    channels: Mapping[str, Sequence[Channels]] = field(default_factory=dict)
    anchors: str = ALL
    _pairs: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, init=False, repr=False)
    _focused: dict[float, LossContext] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        return f"LossContext(images {tuple(self.images.shape)}, student={self.student!r}, progress {self.progress:.0%})"

    def features(self, point: str | None = None) -> list[tuple[Tensor, Tensor]]:
        """Pairs (student, teacher) of features of equal shape (B, C, H, W).

        Channel i of a student that was cut from this teacher was the teacher's channel keep[i], so the two compare without
        a projector. From another teacher the student's feature comes through a learned 1x1 convolution.

        Args:
            point: "neck", with a pair per pyramid level, or a module's path, with one pair; None: all of `points`.

        Raises:
            DistillError: nothing was captured there, or the shapes differ.
        """
        if point is None:
            if not self.points:
                raise DistillError("a loss reads features, and no point is named: list some in distill.features")
            return [pair for each in self.points for pair in self.features(each)]
        if point not in self._pairs:
            self._pairs[point] = self._pair_up(point)
        return self._pairs[point]

    def pair(self, point: str) -> tuple[Tensor, Tensor]:
        """The features (student, teacher) at a module's path: see `features`."""
        pairs = self.features(point)
        if len(pairs) > 1:
            text = f"'{point}' has {len(pairs)} features, one for each level"
            raise DistillError(f"{text}: ctx.features('{point}') gives all of them, ctx.pair one at a module's path")
        return pairs[0]

    def _pair_up(self, point: str) -> list[tuple[Tensor, Tensor]]:
        levels = list(zip(self.student.feature(point), self.teacher.feature(point), strict=True))
        meet = self.channels.get(point) or [Channels() for _ in levels]
        pairs = [channels(*level) for channels, level in zip(meet, levels, strict=True)]
        for index, (student, teacher) in enumerate(pairs):
            if student.shape != teacher.shape:
                place = f"level {index}" if point == NECK else f"'{point}'"
                raise DistillError(
                    f"features of {place}: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
                    "the plan that cut this student belongs to another teacher"
                )
        return pairs

    @cached_property
    def quality(self) -> Tensor:
        """How sure the teacher is that an anchor holds an object, (B, A)."""
        with torch.no_grad():
            quality = anchor_quality(self.teacher.scores, self.teacher.objectness)
            return quality if self.anchors == ALL else quality * self.teacher.kept

    def at_anchors(self, which: str) -> LossContext:
        """The same with the quality of "all" anchors, or of those that the teacher's NMS has "kept" alone.

        Raises:
            DistillError: another word.
        """
        if which not in (ALL, KEPT):
            raise DistillError(f"a loss's option anchors is '{ALL}' or '{KEPT}', not {which!r}")
        return replace(self, anchors=which)

    def focused(self, power: float) -> LossContext:
        """The context of those anchors alone that count in a mean weighted by quality^power, as those of one image.

        Most anchors see background. What is left out holds less than `NEGLIGIBLE` of the weights, so such a mean of values
        between 0 and 1 moves by less than that; and nothing is decoded or compared there.
        """
        if power not in self._focused:
            weight = self.quality**power
            counts = ~(weight <= NEGLIGIBLE * weight.mean())  # what is not a number counts
            image, anchor = counts.nonzero(as_tuple=True)
            outputs = self.student.pick(image, anchor), self.teacher.pick(image, anchor)
            self._focused[power] = replace(self, student=outputs[0], teacher=outputs[1], anchors=ALL)
        return self._focused[power]

    @property
    def strides(self) -> Tensor | None:
        """Input pixels to a cell of each anchor's level, (A,)."""
        return self.teacher.strides


def anchor_quality(scores: Tensor, objectness: Tensor | None = None) -> Tensor:
    """How sure a network is that an anchor holds an object: its best class probability, times objectness if it has that.

    Shape: logits (B, A, nc), (B, A) -> (B, A), 0 to 1.
    """
    best = scores.amax(-1).sigmoid()
    return best if objectness is None else best * objectness.sigmoid()


def probabilities(scores: Tensor, objectness: Tensor | None = None) -> Tensor:
    """How likely an anchor holds an object of each class: the class probabilities, times objectness if there is that.

    Shape: logits (B, A, nc), (B, A) -> (B, A, nc), 0 to 1.
    """
    classes = scores.sigmoid()
    return classes if objectness is None else classes * objectness.sigmoid()[..., None]
