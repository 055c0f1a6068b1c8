"""How a layer reads its input, and its input and output as the rows of a linear regression.

A position is one output pixel of one image (one token for a linear layer), numbered over (N, h, w). Only sampled
positions are unfolded: all of them would take kernel-size times the memory of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from prune.program.operators import channel_dim, operator_name


@dataclass(frozen=True)
class LayerGeometry:
    """How a layer reads its input, as its operator says: a module's own attributes may tell otherwise.

    Attributes:
        dim: The dimension of the output that holds channels: 1 for a convolution, -1 for a linear layer.
        kernel, stride, dilation: (vertical, horizontal).
        padding: Zeros around the input: (left, right, top, bottom).
        groups: Convolution groups.
        spacing: Of the input's values, (vertical, horizontal): a transposed convolution is a convolution of its input
            with zeros between the values.
    """

    dim: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    spacing: tuple[int, int] = (1, 1)

    def padded(self, inputs: Tensor) -> Tensor:
        """The input with its zeros around it, and between its values."""
        if self.spacing != (1, 1):
            (height, width), (down, right) = inputs.shape[-2:], self.spacing
            spaced = inputs.new_zeros(*inputs.shape[:-2], (height - 1) * down + 1, (width - 1) * right + 1)
            spaced[..., ::down, ::right] = inputs
            inputs = spaced
        return F.pad(inputs, self.padding) if any(self.padding) else inputs

    def positions(self, output: Tensor) -> int:
        """How many positions an output has."""
        return output.numel() // output.shape[self.dim]


def geometry_of(node: Node) -> LayerGeometry:
    """The geometry of the convolution or linear layer that a node computes."""
    dim = channel_dim(node)
    if dim == -1:
        return LayerGeometry(dim)
    args: Any = node.args
    if operator_name(node) == "conv_transpose2d":
        return _transposed(args)
    options: list[Any] = list(args[3:])
    options += [[1], [0], [1], 1][len(options) :]
    stride, padding, dilation, groups = options
    kernel, spacing = _pair(args[1].meta["val"].shape[2:]), _pair(dilation)
    if padding == "same":  # what is odd goes to the right and to the bottom
        both = [d * (k - 1) for k, d in zip(kernel, spacing, strict=True)]
        top, left = (total // 2 for total in both)
        sides = left, both[1] - left, top, both[0] - top
    else:
        top, left = _pair([0] if padding == "valid" else padding)
        sides = left, left, top, top
    return LayerGeometry(dim, kernel, _pair(stride), spacing, sides, groups)


def _transposed(args: Any) -> LayerGeometry:
    options: list[Any] = list(args[3:])
    options += [[1], [0], [0], 1, [1]][len(options) :]
    stride, padding, added, groups, dilation = options
    kernel, steps = _pair(args[1].meta["val"].shape[2:]), _pair(dilation)
    top, left = (d * (k - 1) - p for d, k, p in zip(steps, kernel, _pair(padding), strict=True))
    down, right = _pair(added)
    return LayerGeometry(1, kernel, (1, 1), steps, (left, left + right, top, top + down), groups, _pair(stride))


def as_convolution(weight: Tensor, groups: int) -> Tensor:
    """The weights of a transposed convolution, (C_in, C_out / groups, kh, kw), as those of the convolution that it is.

    Its own inverse: of (C_out, C_in / groups, kh, kw) it gives the transposed ones.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-2, -1)


def matrix_of(module: Any) -> Tensor:
    """The weights of a layer as (C_out, C_in / groups, ...), a transposed convolution's too."""
    weight = module.weight.detach()
    return as_convolution(weight, module.groups) if isinstance(module, nn.ConvTranspose2d) else weight


def _pair(value: Any) -> tuple[int, int]:
    return value[0], value[-1]


def output_rows(output: Tensor, layer: LayerGeometry, positions: Tensor) -> Tensor:
    """Values of all output channels at the positions: (positions, C_out)."""
    if layer.dim == -1:
        return output.reshape(-1, output.shape[-1])[positions]
    n, y, x = _locate(output.shape, positions)
    return output[n, :, y, x]


def input_rows(inputs: Tensor, output_shape: torch.Size, layer: LayerGeometry, positions: Tensor) -> Tensor:
    """What each position's output is computed from.

    Args:
        inputs: The layer's input, (N, C_in, H, W), or (..., C_in) for a linear layer.
        output_shape: Shape of its output.
        layer: Its geometry.
        positions: (P,) positions of the output.

    Returns:
        (P, C_in * kh * kw), columns in the order of the weights. For a grouped convolution all input channels are there:
        those of group g stand at columns g*n to (g+1)*n.
    """
    if layer.dim == -1:
        return inputs.reshape(-1, inputs.shape[-1])[positions]
    n, y, x = _locate(output_shape, positions)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
    rows = (y * sh)[:, None, None] + dh * torch.arange(kh, device=y.device)[None, :, None]  # (P, kh, 1)
    columns = (x * sw)[:, None, None] + dw * torch.arange(kw, device=x.device)[None, None, :]  # (P, 1, kw)
    # Channels last: the gather then copies runs of C values.
    patches = layer.padded(inputs).permute(0, 2, 3, 1).contiguous()[n[:, None, None], rows, columns]  # (P, kh, kw, C)
    return patches.permute(0, 3, 1, 2).reshape(len(positions), -1)


def sample_positions(total: int, count: int, seed: int) -> Tensor:
    """At most `count` of `total` positions, drawn evenly without repeats; the same for the same seed."""
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def capped(weight: Tensor, cap: float = 50.0) -> Tensor:
    """Weights scaled to mean 1, none above `cap` times the mean: a few positions must not decide alone."""
    weight = (weight / weight.mean().clamp(min=1e-30)).clamp(max=cap)
    return weight / weight.mean().clamp(min=1e-30)


def _locate(output_shape: torch.Size, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, w = output_shape[-2:]
    return positions // (h * w), positions // w % h, positions % w
