"""Gram matrices of token activations, accumulated in float32 batch by batch.

Rows are tokens: x [T, n], r [T, d]. Padding never gets here.

Products may round their factors (never their sums) to bfloat16 or TF32 where the hardware multiplies those faster: the
result is the exact Gram of activations that differ from the true ones by 0.2 %, so it stays positive semi-definite, and
the noise is far below every ridge. Only blocks on and above the diagonal are computed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

# Columns per strip of the symmetric update; narrower strips save little and multiply slower.
_STRIP = 384


@contextmanager
def reduced_products() -> Generator[None]:
    """float32 matrix products may round their factors to bfloat16 or TF32; put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _add_upper_outer(gram: Tensor, x: Tensor) -> None:
    """Add x' x to the blocks of `gram` on and above the diagonal; what is below is left wrong."""
    for start in range(0, gram.shape[0], _STRIP):
        stop = start + _STRIP
        gram[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])


class SecondMoment:
    """Sums of x and of x' x.

    Attributes:
        total: [n] float64, sum.
        count: tokens.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._upper = torch.zeros(n, n, device=device)
        self._mirrored = True
        self.total = torch.zeros(n, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add tokens x [T, n]."""
        wide = x.float()
        with reduced_products():
            _add_upper_outer(self._upper, wide)
        self._mirrored = False
        self.total += wide.sum(dim=0).to(self.total.dtype)
        self.count += x.shape[0]

    @property
    def gram(self) -> Tensor:
        """[n, n] float32, sum of outer products."""
        if not self._mirrored:
            self._upper = self._upper.triu() + self._upper.triu(1).T
            self._mirrored = True
        return self._upper

    def plus(self, other: SecondMoment) -> SecondMoment:
        """The moment of both sets of tokens."""
        return SecondMoment.of(self.gram + other.gram, self.total + other.total, self.count + other.count)

    @classmethod
    def of(cls, gram: Tensor, total: Tensor, count: int) -> SecondMoment:
        """A moment from its parts."""
        made = cls(0, gram.device)
        made._upper, made.total, made.count = gram, total, count
        return made

    def centred(self) -> Tensor:
        """[n, n] float64: the sum of ``(x - mean)' (x - mean)``, what is left when a bias absorbs the mean."""
        wide = self.gram.to(self.total.dtype, copy=True)
        return wide.addr_(self.total, self.total, alpha=-1 / max(1, self.count))


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
        with reduced_products():
            self.cross.addmm_(x.float().T, wide)
        self.target_total += wide.sum(dim=0).to(self.target_total.dtype)
        self.target_square += wide.square().sum().to(self.target_square.dtype)

    @property
    def count(self) -> int:
        """Tokens."""
        return self.inputs.count

    def centred_cross(self) -> Tensor:
        """[n, d] float64: sum of ``(x - mean)' (r - mean)``."""
        wide = self.cross.to(self.target_total.dtype, copy=True)
        return wide.addr_(self.inputs.total, self.target_total, alpha=-1 / max(1, self.count))

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
