"""Gram matrices of token activations, accumulated in float32 batch by batch.

Rows are tokens: x [T, n], r [T, d]. Padding never gets here.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SecondMoment:
    """Sums of x and of x' x.

    Attributes:
        gram: [n, n] float32, sum of outer products.
        total: [n] float64, sum.
        count: tokens.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.gram = torch.zeros(n, n, device=device)
        self.total = torch.zeros(n, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add tokens x [T, n]."""
        wide = x.float()
        self.gram.addmm_(wide.T, wide)
        self.total += wide.sum(dim=0).to(self.total.dtype)
        self.count += x.shape[0]

    def centred(self) -> Tensor:
        """[n, n] float64: the sum of ``(x - mean)' (x - mean)``, what is left when a bias absorbs the mean."""
        wide = self.gram.to(self.total.dtype)
        return wide - torch.outer(self.total, self.total) / max(1, self.count)


class RegressionMoments:
    """All that a least-squares fit of r [T, d] on x [T, n] with intercept needs.

    Attributes:
        inputs: second moment of x.
        cross: [n, d] float32, sum of x' r.
        target_total: [d] float64, sum of r.
        target_square: 0-d float64, sum of ||r||^2.
    """

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        self.inputs = SecondMoment(n, device)
        dtype = self.inputs.total.dtype
        self.cross = torch.zeros(n, d, device=device)
        self.target_total = torch.zeros(d, dtype=dtype, device=device)
        self.target_square = torch.zeros((), dtype=dtype, device=device)

    def add(self, x: Tensor, r: Tensor) -> None:
        """Add tokens x [T, n] with targets r [T, d]."""
        wide = r.float()
        self.inputs.add(x)
        self.cross.addmm_(x.float().T, wide)
        self.target_total += wide.sum(dim=0).to(self.target_total.dtype)
        self.target_square += wide.square().sum().to(self.target_square.dtype)

    @property
    def count(self) -> int:
        """Tokens."""
        return self.inputs.count

    def centred_cross(self) -> Tensor:
        """[n, d] float64: sum of ``(x - mean)' (r - mean)``."""
        wide = self.cross.to(self.target_total.dtype)
        return wide - torch.outer(self.inputs.total, self.target_total) / max(1, self.count)

    def normal_equations(self, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """Matrix [n, n] and right sides [n, d] of the fit, float64; centred when a bias takes the means."""
        if intercept:
            return self.inputs.centred(), self.centred_cross()
        dtype = self.target_total.dtype
        return self.inputs.gram.to(dtype), self.cross.to(dtype)

    def intercept(self, weight: Tensor) -> Tensor:
        """[d] float64: the bias that goes with `weight` [d, n]."""
        means = self.inputs.total / max(1, self.count)
        return self.target_total / max(1, self.count) - weight.to(means.dtype) @ means

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Relative root-mean-square error ``||x W' + b - r|| / ||r||`` over all tokens added."""
        dtype = self.target_total.dtype
        w = weight.to(dtype)
        b = torch.zeros_like(self.target_total) if bias is None else bias.to(dtype)
        aw = self.inputs.gram.to(dtype) @ w.T
        square = (w.T * aw).sum() - 2 * (w.T * self.cross.to(dtype)).sum() + self.target_square
        square = square + self.count * b.square().sum()
        square = square + 2 * (b * (w @ self.inputs.total - self.target_total)).sum()
        relative = square.clamp(min=0) / self.target_square.clamp(min=torch.finfo(dtype).tiny)
        return float(relative.sqrt())
