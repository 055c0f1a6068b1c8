"""The head of the original YOLOv5 (v5.0 to v7.0): some boxes to a cell, each with an objectness and class scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.context import Decode, Outputs
from distill.yolo.checkpoint.stand_ins import GraphParts
from distill.yolo.families.yolov5.loss import anchor_loss

BOX = 5.0  # weight of a box's change beside its scores, by trial on Corn Pest: 2 to 10 do about as well


class AnchorDetect(nn.Module):
    """One 1x1 convolution to a pyramid level, and the original's way to make boxes of what it gives.

    In train mode it returns `feats`, its inputs, and `maps`, per level the raw (B, boxes * (5 + nc), H, W).
    In eval mode it returns what ultralytics' predictor, validator and exporters expect of any head: (B, 4 + nc, A),
    box centre and size in input pixels, then objectness times class probability. `layout = "original"` makes that
    (B, A, 5 + nc), with objectness by itself, as the original's own exports have it.

    Args:
        convolutions: one to a level, with boxes * (5 + nc) output channels each.
        anchors: (levels, boxes, 2) width and height of the anchors in cells.
        stride: (levels,) input pixels to a cell.
        nc: number of classes.
    """

    layout = "ultralytics"

    def __init__(self, convolutions: Sequence[nn.Module], anchors: Tensor, stride: Tensor, nc: int) -> None:
        super().__init__()
        self.nl, self.na, self.nc, self.no = anchors.shape[0], anchors.shape[1], nc, nc + 5
        self.m = nn.ModuleList(convolutions)
        # Not in the state dict: they are no weights, and an average over training steps would round them off.
        self.register_buffer("anchors", anchors.clone().float(), persistent=False)
        self.register_buffer("stride", stride.clone().float(), persistent=False)

    def forward(self, features: Any) -> Any:
        """See the class; `features` is one (B, C, H, W) per level."""
        maps = [conv(features[level]) for level, conv in enumerate(self.m)]
        if self.training:
            return {"feats": list(features), "maps": maps}
        boxes = torch.cat([self.decode(raw, level) for level, raw in enumerate(maps)], 1)  # (B, A, 5 + nc)
        if self.layout == "original":
            return boxes
        return torch.cat((boxes[..., :4], boxes[..., 4:5] * boxes[..., 5:]), 2).transpose(1, 2)

    def split(self, raw: Any) -> Any:
        """A level's raw map as (B, boxes, H, W, 5 + nc)."""
        # Plain torch and no unpacking of shapes, here and in decode: torch.fx follows these lines, see `portable`.
        return raw.view(raw.shape[0], self.na, self.no, raw.shape[2], raw.shape[3]).permute(0, 1, 3, 4, 2)

    def decode(self, raw: Any, level: int) -> Any:
        """Boxes in input pixels, objectness and class probabilities of one level: (B, boxes * H * W, 5 + nc)."""
        anchors, stride = self.get_buffer("anchors"), self.get_buffer("stride")
        p = self.split(raw).sigmoid()
        ones = torch.ones_like(p[..., :1])
        corner = torch.cat((ones.cumsum(3), ones.cumsum(2)), 4) - 1  # x y of each cell
        centre = (p[..., :2] * 2 - 0.5 + corner) * stride[level]
        size = (p[..., 2:4] * 2) ** 2 * (anchors[level] * stride[level]).view(self.na, 1, 1, 2)
        return torch.cat((centre, size, p[..., 4:]), 4).reshape(raw.shape[0], -1, self.no)


def use_original_layout(head: AnchorDetect) -> None:
    """Give (B, A, 5 + nc) in eval mode, as the original's own exports do."""
    head.layout = "original"


def portable(head: AnchorDetect) -> nn.Sequential:
    """The head's inference as torch's own operators, so that a checkpoint holds no class of ours.

    torch.fx keeps a module as the code that it runs: stock ultralytics can load that without this project. `restore`
    makes an `AnchorDetect` of it again.
    """
    code = torch.fx.symbolic_trace(head.eval())
    for node in code.graph.nodes:
        node.type = None  # the annotations of `forward`, as text: torch 2.11 cannot write them to a file
    code.recompile()
    layer: Any = nn.Sequential(code)  # which keeps attributes when it is copied
    layer.nl, layer.na, layer.nc, layer.no = head.nl, head.na, head.nc, head.no
    layer.cells = head.get_buffer("anchors").tolist()  # numbers, so that half precision does not touch them
    layer.pixels = head.get_buffer("stride").tolist()
    return placed_as(head, layer)


def is_portable(layer: nn.Module) -> bool:
    """Whether a network's last layer is what `portable` gives, read with or without its code."""
    kinds = (GraphParts, torch.fx.GraphModule)
    return isinstance(layer, nn.Sequential) and len(layer) == 1 and isinstance(layer[0], kinds)


def restore(layer: Any) -> AnchorDetect:
    """The head that a `portable` layer came from. Reads modules and numbers and runs nothing of the layer."""
    convolutions = [module for _, module in sorted(layer[0].m.named_children(), key=lambda child: int(child[0]))]
    head = AnchorDetect(convolutions, torch.tensor(layer.cells), torch.tensor(layer.pixels), int(layer.nc))
    return placed_as(layer, head)


def placed_as(old: Any, new: Any) -> Any:
    """Copy what ultralytics notes on a layer to the one that takes its place: number, inputs, name and size."""
    for name in ("i", "f", "type", "np"):
        setattr(new, name, getattr(old, name))
    return new


def outputs(head: Any, raw: Any) -> Outputs:
    """What losses read, of what a network with this head returned in train mode."""
    maps = [head.split(level) for level in raw["maps"]]
    flat = torch.cat([level.flatten(1, 3) for level in maps], 1)  # (B, A, 5 + nc)
    shapes = [level.shape[2:4] for level in maps]  # rows and columns
    anchors = torch.tensor([head.na * shape.numel() for shape in shapes])  # of each level
    return Outputs(
        neck=tuple(raw["feats"]),
        class_logits=flat[..., 5:],
        objectness_logits=flat[..., 4],
        decode=Decode(flat[..., :4], partial(corners, head, shapes)),
        strides=head.stride.repeat_interleave(anchors.to(head.stride.device)),
        raw=maps,
    )


def corners(head: Any, shapes: Sequence[torch.Size], predicted: Tensor, anchor: Any) -> Tensor:
    """The boxes of some anchors as x1 y1 x2 y2 in input pixels, by the formula of `AnchorDetect.decode`.

    Args:
        head: an `AnchorDetect`.
        shapes: rows and columns of each level.
        predicted: (..., N, 4), what the head gives of the boxes.
        anchor: the indices of the N anchors.
    """
    strides, cells, sizes = (each[anchor] for each in _priors(head, shapes))
    p = predicted.float().sigmoid()
    centre = (p[..., :2] * 2 - 0.5 + cells) * strides
    half = (p[..., 2:] * 2) ** 2 * sizes / 2
    return torch.cat((centre - half, centre + half), -1)


def _priors(head: Any, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Of all anchors: stride in pixels (A, 1), x y of the cell (A, 2), width and height in pixels (A, 2)."""
    levels = []
    for (rows, columns), anchors, stride in zip(shapes, head.anchors, head.stride, strict=True):
        y, x = torch.meshgrid(*(torch.arange(n, device=anchors.device) for n in (rows, columns)), indexing="ij")
        cells = torch.stack((x, y), -1).flatten(0, 1).repeat(head.na, 1)
        sizes = (anchors * stride).repeat_interleave(rows * columns, 0)
        levels.append((stride.expand(len(cells), 1), cells, sizes))
    return tuple(torch.cat(parts) for parts in zip(*levels, strict=True))


def label_terms(model: Any, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The original's loss, with the gains that the checkpoint was trained with: `model.hyp`."""
    columns = (batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"])
    targets = torch.cat([column.float() for column in columns], 1).to(outputs.class_logits.device)
    return anchor_loss(outputs.raw, targets, model.model[-1].anchors, model.hyp)


def sensitivity(head: Any, raw: Any) -> Tensor:
    """Noise on the maps, shaped by how far they move objectness, classes and boxes.

    Its squared gradient is, in expectation, the Gauss-Newton diagonal of KL(objectness) + objectness * (KL(classes) +
    BOX^2 * |change of the box's centre in box sizes and of its log size|^2): classes and boxes count as much as an object is there.
    """
    total = raw["maps"][0].new_zeros(())
    for level, values in enumerate(raw["maps"]):
        logits = head.split(values.float())  # (B, boxes, H, W, 5 + nc)
        p = logits.detach().sigmoid()
        believed = p[..., 4:5]
        scale = (p * (1 - p)).sqrt()
        scale[..., 5:] *= believed.sqrt()
        # d(centre)/d(logit) = 2 p (1 - p) cells, over the box's size (2 p)^2 anchor; d(log size)/d(logit) = 2 (1 - p).
        size = (p[..., 2:4] * 2) ** 2 * head.anchors[level].view(1, head.na, 1, 1, 2)
        scale[..., :2] = BOX * 2 * p[..., :2] * (1 - p[..., :2]) / size.clamp(min=1e-6) * believed.sqrt()
        scale[..., 2:4] = BOX * 2 * (1 - p[..., 2:4]) * believed.sqrt()
        total = total + (logits * scale * torch.randn_like(logits)).sum()
    return total


def alike(head: Any, other: Any) -> bool:
    """Whether two heads have the same boxes to a cell, of the same anchors; a checkpoint rounds those to float16."""
    ours, theirs = head.anchors, other.anchors
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3)


def reorder(head: Any, order: Sequence[int]) -> None:
    """Put the classes of a head into another order: class i is what was class order[i]."""
    box = [*range(5), *(5 + each for each in order)]
    rows = [anchor * head.no + row for anchor in range(head.na) for row in box]
    with torch.no_grad():
        for convolution in head.m:
            for parameter in convolution.parameters():
                parameter.copy_(parameter[rows])
