"""A layer as the linear regression that it is: rows of unfolded inputs at sampled output positions.

A position is one output pixel of one image (one token for a linear layer), numbered over (N, h, w). Only sampled
positions are unfolded: all of them would take kernel-size times the memory of the activations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def output_rows(output: Tensor, module: nn.Module, positions: Tensor) -> Tensor:
    """Values of all output channels at the positions: (positions, C_out)."""
    if isinstance(module, nn.Linear):
        return output.reshape(-1, output.shape[-1])[positions]
    n, y, x = _locate(output, positions)
    return output[n, :, y, x]


def input_rows(inputs: Tensor, output_shape: torch.Size, module: nn.Module, positions: Tensor) -> Tensor:
    """What each position's output is computed from: (positions, C_in * kh * kw), columns in the order of the weights.

    For a grouped convolution all input channels are there: those of group g stand at columns g*n to (g+1)*n.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])[positions]
    assert isinstance(module, nn.Conv2d)
    n, y, x = _locate(torch.empty(output_shape, device="meta"), positions)
    padded = (
        F.pad(inputs, module._reversed_padding_repeated_twice)
        if any(module._reversed_padding_repeated_twice)
        else inputs
    )
    (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
    rows = (y * sh)[:, None, None] + dh * torch.arange(kh, device=y.device)[None, :, None]  # (P, kh, 1)
    columns = (x * sw)[:, None, None] + dw * torch.arange(kw, device=x.device)[None, None, :]  # (P, 1, kw)
    # Channels last: the gather then copies runs of C values.
    patches = padded.permute(0, 2, 3, 1).contiguous()[n[:, None, None], rows, columns]  # (P, kh, kw, C)
    return patches.permute(0, 3, 1, 2).reshape(len(positions), -1)


def sample_positions(output_shape: torch.Size, module: nn.Module, count: int, seed: int) -> Tensor:
    """At most `count` positions of an output, drawn evenly without repeats; the same for the same seed."""
    total = output_shape.numel() // output_shape[-1 if isinstance(module, nn.Linear) else 1]
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def position_weights(gradient: Tensor, module: nn.Module) -> Tensor:
    """Squared gradient of every position, summed over channels, scaled to mean 1 and capped: (positions,)."""
    dim = -1 if isinstance(module, nn.Linear) else 1
    return capped(gradient.float().square().sum(dim).flatten())


def capped(weight: Tensor, cap: float = 50.0) -> Tensor:
    """Weights scaled to mean 1, none above `cap` times the mean: a few positions must not decide alone."""
    weight = (weight / weight.mean().clamp(min=1e-30)).clamp(max=cap)
    return weight / weight.mean().clamp(min=1e-30)


def _locate(output: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, w = output.shape[-2:]
    return positions // (h * w), positions // w % h, positions % w
