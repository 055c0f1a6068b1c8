"""Weighted ridge regression of a layer, from sums that grow batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune.program.geometry import matrix_of

RIDGE = 1e-3  # of the mean diagonal of the inputs' covariance
STRIPE = 144  # rows of a covariance that are made at once


class Regression:
    """Weighted ridge regression of the residual that a layer leaves, per convolution group; sums only, in float64."""

    def __init__(self, module: Any, constant: bool) -> None:
        self.module, self.constant = module, constant
        self.groups = getattr(module, "groups", 1)
        self.weight = matrix_of(module).flatten(1).unflatten(0, (self.groups, -1))  # (G, O/G, n)
        # Inputs are taken relative to this: sums around it do not drown a small variance in a large mean.
        self.origin = module.weight.new_zeros(self.groups * self.weight.shape[2])
        self.total: float = 0.0
        self.xx: Any = 0.0  # (G, n, n)
        self.xr: Any = 0.0  # (G, n, O/G)
        self.x: Any = 0.0  # (G, n)
        self.r: Any = 0.0  # (G, O/G)
        self.rr: Any = 0.0  # squared residual, weighted sum
        self.y: Any = 0.0  # (O,) weighted sum of the target outputs
        self.yy: Any = 0.0  # and of their squares

    def grouped(self, columns: Tensor) -> Tensor:
        """(..., G * n) -> (G, ..., n)."""
        return columns.unflatten(-1, (self.groups, -1)).movedim(-2, 0)

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add samples: inputs (P, G * n), target outputs (P, O) and weights (P,)."""
        x = self.grouped(rows)  # (G, P, n)
        outputs = x @ self.weight.transpose(1, 2)  # (G, P, O/G)
        if self.module.bias is not None:
            outputs = outputs + self.module.bias.detach().unflatten(0, (self.groups, -1))[:, None]
        residual = self.grouped(targets) - outputs
        x = x - self.grouped(self.origin)[:, None]
        weighted = x * weights[:, None]
        self.total += weights.sum().item()
        self.xx += _symmetric(weighted, x).double()
        self.xr += (weighted.transpose(1, 2) @ residual).double()
        self.x += weighted.sum(1).double()
        self.r += (residual * weights[:, None]).sum(1).double()
        self.rr += (residual.square().sum((0, 2)) * weights).sum().double()
        self.y += (targets * weights[:, None]).sum(0).double()
        self.yy += (targets.square() * weights[:, None]).sum(0).double()

    def merge(self, other: Regression) -> Regression:
        """The sums of both; `other` is untouched."""
        if other.total:
            for name in ("total", "xx", "xr", "x", "r", "rr", "y", "yy"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def solve(self) -> tuple[Tensor, Tensor] | None:
        """Least squared residual with a ridge towards no change: (step (G, O/G, n), constant (O,)) around the origin.

        None if there is nothing to solve: no samples, or inputs that do not vary.
        """
        if not self.total:
            return None
        xx, xr = self.xx / self.total, self.xr / self.total
        mx, mr = self.x / self.total, self.r / self.total
        if self.constant:
            xx = xx - mx[:, :, None] * mx[:, None, :]
            xr = xr - mx[:, :, None] * mr[:, None, :]
        diagonal = xx.diagonal(dim1=1, dim2=2)
        diagonal.add_((RIDGE * diagonal.mean(1, keepdim=True)).clamp(min=1e-12))
        factor, failed = torch.linalg.cholesky_ex(xx)
        if failed.any():
            return None
        step = torch.cholesky_solve(xr, factor).transpose(1, 2)  # (G, O/G, n)
        shift = mr - (step @ mx[:, :, None])[:, :, 0] if self.constant else torch.zeros_like(mr)
        return step, shift.flatten()

    def error(self, change: tuple[Tensor, Tensor] | None) -> float:
        """Weighted mean squared residual after the change, as a fraction of the variance of the target outputs."""
        if not self.total:
            return float("nan")
        variance = (self.yy / self.total - (self.y / self.total).square()).sum()
        error = self.rr / self.total
        if change is not None:
            step, shift = change[0], change[1].unflatten(0, (self.groups, -1))
            xx, xr = self.xx / self.total, self.xr / self.total
            mx, mr = self.x / self.total, self.r / self.total
            inner = (step @ mx[:, :, None])[:, :, 0]  # mean of step @ x
            error = error - 2 * (step * xr.transpose(1, 2)).sum() + ((step @ xx) * step).sum()
            error = error - 2 * (shift * mr).sum() + 2 * (shift * inner).sum() + shift.square().sum()
        return (error / variance.clamp(min=1e-30)).item()


def _symmetric(weighted: Tensor, x: Tensor) -> Tensor:
    """The symmetric product weightedᵀ x, (G, n, n): what lies under the diagonal is copied, not multiplied out."""
    n = x.shape[2]
    product = x.new_empty(len(x), n, n)
    for start in range(0, n, STRIPE):
        rows, rest = slice(start, start + STRIPE), slice(start + STRIPE, n)
        product[:, rows, start:] = weighted[:, :, rows].transpose(1, 2) @ x[:, :, start:]
        product[:, rest, rows] = product[:, rows, rest].transpose(1, 2)
    return product
