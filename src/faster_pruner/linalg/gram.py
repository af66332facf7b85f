"""Gram matrices of token activations, accumulated in float32.

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

from faster_pruner.linalg.solve import solve_dtype

# Columns per strip of the symmetric update; narrower strips save little and multiply slower. A GPU wants larger
# products (its sizes are not measured).
_STRIP_ON_CPU, _STRIP_ELSEWHERE = 192, 1024
# Tokens that are collected before they are multiplied. CPU libraries generate code for every new shape of a product,
# for up to a millisecond, and batches come in many lengths.
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 1024, 4096


@contextmanager
def reduced_products() -> Generator[None]:
    """float32 matrix products may round their factors to bfloat16 or TF32; put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _TokenSums:
    """Sums over tokens of z = [x | r], [T, n + d]: z, x' z and ||r||^2.

    Attributes:
        n: columns of x.
        product: [n, n + d] float32, x' z; blocks of x' x below the diagonal are wrong.
        total: [n + d] float64.
        square: 0-d float64, sum of ||r||^2.
        count: tokens.
    """

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        self.n, self.count = n, 0
        self.product = torch.zeros(n, n + d, device=device)
        self.total = torch.zeros(n + d, dtype=solve_dtype(device), device=device)
        self.square = torch.zeros((), dtype=solve_dtype(device), device=device)
        on_cpu = device.type == "cpu"
        self._strip = _STRIP_ON_CPU if on_cpu else _STRIP_ELSEWHERE
        self._tokens = _TOKENS_ON_CPU if on_cpu else _TOKENS_ELSEWHERE
        self._waiting: Tensor | None = None
        self._filled = 0

    def add(self, *parts: Tensor) -> None:
        """Add tokens: x [T, n], or x and r [T, d]."""
        count = parts[0].shape[0]
        start = 0
        while start < count:
            if self._waiting is None:
                self._waiting = torch.empty(self._tokens, self.total.numel(), device=self.product.device)
            stop = min(count, start + self._tokens - self._filled)
            rows = self._waiting[self._filled : self._filled + stop - start]
            for place, part in zip(rows.split([part.shape[1] for part in parts], dim=1), parts, strict=True):
                place.copy_(part[start:stop])
            self._filled += stop - start
            start = stop
            if self._filled == self._tokens:
                self._multiply(self._waiting)
        self.count += count

    def finish(self) -> None:
        """Add what still waits."""
        if self._waiting is not None:
            self._waiting[self._filled :].zero_()
            self._multiply(self._waiting)
            self._waiting = None

    def _multiply(self, z: Tensor) -> None:
        with reduced_products():
            for start in range(0, self.n, self._strip):
                stop = min(self.n, start + self._strip)
                self.product[start:stop, start:].addmm_(z[:, start:stop].T, z[:, start:])
        self.total += z.sum(dim=0).to(self.total.dtype)
        self.square += z[:, self.n :].square().sum().to(self.square.dtype)
        self._filled = 0


class SecondMoment:
    """Sums of x and of x' x; with `sums`, a view of the x in them."""

    def __init__(self, n: int, device: torch.device, sums: _TokenSums | None = None) -> None:
        self._sums = sums or _TokenSums(n, 0, device)
        self._mirrored_at = 0

    def add(self, x: Tensor) -> None:
        """Add tokens x [T, n]."""
        self._sums.add(x)

    def finish(self) -> None:
        """Complete the sums and free what was needed to add to them; adding more is still possible."""
        self._sums.finish()

    @property
    def count(self) -> int:
        """Tokens."""
        return self._sums.count

    @property
    def total(self) -> Tensor:
        """[n] float64, sum."""
        self._sums.finish()
        return self._sums.total[: self._sums.n]

    @property
    def gram(self) -> Tensor:
        """[n, n] float32, sum of outer products."""
        self._sums.finish()
        gram = self._sums.product[:, : self._sums.n]
        if self._mirrored_at != self.count:
            gram.copy_(gram.triu() + gram.triu(1).T)
            self._mirrored_at = self.count
        return gram

    def plus(self, other: SecondMoment) -> SecondMoment:
        """The moment of both sets of tokens."""
        return SecondMoment.of(self.gram + other.gram, self.total + other.total, self.count + other.count)

    @classmethod
    def of(cls, gram: Tensor, total: Tensor, count: int) -> SecondMoment:
        """A moment from its parts."""
        made = cls(0, gram.device)
        made._sums.n, made._sums.product, made._sums.total, made._sums.count = gram.shape[0], gram, total, count
        made._mirrored_at = count
        return made

    def centred(self) -> Tensor:
        """[n, n] float64: the sum of ``(x - mean)' (x - mean)``, what is left when a bias absorbs the mean."""
        wide = self.gram.to(self.total.dtype, copy=True)
        return wide.addr_(self.total, self.total, alpha=-1 / max(1, self.count))


class RegressionMoments:
    """All that a least-squares fit of r [T, d] on x [T, n] with intercept needs.

    Attributes:
        inputs: second moment of x.
    """

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        self._sums = _TokenSums(n, d, device)
        self.inputs = SecondMoment(n, device, self._sums)

    def add(self, x: Tensor, r: Tensor) -> None:
        """Add tokens x [T, n] with targets r [T, d]."""
        self._sums.add(x, r)

    @property
    def cross(self) -> Tensor:
        """[n, d] float32, sum of x' r."""
        self._sums.finish()
        return self._sums.product[:, self._sums.n :]

    @property
    def target_total(self) -> Tensor:
        """[d] float64, sum of r."""
        self._sums.finish()
        return self._sums.total[self._sums.n :]

    @property
    def target_square(self) -> Tensor:
        """0-d float64, sum of ||r||^2."""
        self._sums.finish()
        return self._sums.square

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
