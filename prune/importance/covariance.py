"""Covariances of a layer's inputs, and their inverses while channels leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 1e-2  # of the mean diagonal of a covariance


@dataclass
class CovarianceBlock:
    """A set of a layer's input columns with its own covariance. Wide layers have several, grouped ones one per group.

    Attributes:
        columns: First and last-plus-one column, counted over C_in * kernel.
        outputs: Slice of output channels that read these columns.
        covariance: Weighted sum of outer products of the inputs less `origin`, (n, n).
        mean: Weighted sum of the inputs less `origin`, (n,).
        origin: Mean of the first samples: sums around it do not drown a small variance in a large mean.
        weight: Weights of the layer on these columns, (outputs, n).
        total: Sum of the weights of the samples so far.
    """

    columns: tuple[int, int]
    outputs: slice
    weight: Tensor
    covariance: Tensor
    mean: Tensor
    total: float = 0.0
    origin: Tensor | None = None

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Add samples: rows (P, C_in * kernel) and their weights (P,), on any device. Sums are kept on the CPU."""
        x = rows[:, slice(*self.columns)]
        if self.origin is None:
            self.origin = x.mean(0).cpu()
        x = x - self.origin.to(x.device)
        weighted = x * weights[:, None]
        if x.device.type != "cpu":  # one matrix is far less to move than the rows
            self.covariance += (weighted.T @ x).cpu()
        else:
            self.covariance.addmm_(weighted.T, x)
        self.mean += weighted.sum(0).cpu()
        self.total += weights.sum().item()

    def inverted(self) -> DowndatedInverse:
        """A working copy, with the covariance centred (a constant costs nothing: the bias takes it) and damped."""
        mean = self.mean / max(self.total, 1e-30)
        matrix = self.covariance / max(self.total, 1e-30) - torch.outer(mean, mean)
        matrix.diagonal().add_(DAMPING * matrix.diagonal().mean().clamp(min=1e-12))
        return DowndatedInverse(self.outputs, self.weight.clone(), torch.linalg.inv(matrix))


class DowndatedInverse:
    """Inverse covariance and weights of a block, downdated as channels leave it.

    A removal is a low-rank change of both. Changes are collected and folded in `PENDING` columns at a time: one matrix
    product then replaces a pass over the whole inverse for every channel.
    """

    PENDING = 72

    def __init__(self, outputs: slice, weight: Tensor, inverse: Tensor) -> None:
        self.outputs, self.weight, self.inverse = outputs, weight, inverse
        self.rows = inverse.new_zeros(0, len(inverse))  # (r, n): rows of H^-1 when they left
        self.steps = self.rows  # (r, n): the same, solved
        self.gone = torch.zeros(0, dtype=torch.long)
        self.lost = weight.new_zeros(len(weight), 0)  # (O, r): weights when they left

    def cost(self, columns: Tensor, sensitivity: Tensor) -> Tensor:
        """Error that losing each set of columns leaves: columns (C, k), sensitivity of all outputs (C_out,) -> (C,)."""
        inner = self.inverse[columns[:, :, None], columns[:, None, :]]  # (C, k, k)
        weights = self.weight[:, columns.flatten()]
        if len(self.gone):
            steps = self.steps[:, columns]  # (r, C, k)
            inner = inner - torch.einsum("rci,rcj->cij", self.rows[:, columns], steps)
            weights = weights - self.lost @ steps.flatten(1)
        weights = weights * sensitivity[self.outputs, None].sqrt()
        weights = weights.unflatten(1, columns.shape).permute(1, 2, 0)  # (C, k, O)
        squared = weights @ weights.transpose(1, 2)  # (C, k, k)
        return torch.linalg.solve_ex(inner, squared)[0].diagonal(dim1=1, dim2=2).sum(1)

    def drop(self, columns: Tensor) -> None:
        """The columns (k,) are gone: the rest of the weights makes up for them (block Schur update)."""
        rows = self.inverse[columns] - self.rows[:, columns].T @ self.steps  # (k, n)
        lost = self.weight[:, columns] - self.lost @ self.steps[:, columns]  # (O, k)
        self.steps = torch.cat([self.steps, torch.linalg.solve(rows[:, columns], rows)])
        self.rows, self.lost = torch.cat([self.rows, rows]), torch.cat([self.lost, lost], 1)
        self.gone = torch.cat([self.gone, columns])
        if len(self.gone) >= self.PENDING:
            self.inverse.addmm_(self.rows.T, self.steps, alpha=-1)
            self.weight.addmm_(self.lost, self.steps, alpha=-1)
            self.weight[:, self.gone] = 0  # exactly, whatever rounding left
            self.rows, self.steps = self.rows[:0], self.steps[:0]
            self.gone, self.lost = self.gone[:0], self.lost[:, :0]
