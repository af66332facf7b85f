"""Cholesky: the direct solver, and the reference for every other. Shapes as in `solve.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.linalg.solve import Solution, Status, absolute_ridge, as_given, relative_norm, with_ridge, worst

# A triangular solve in float64 is backward stable: a residual above this means that the factor is useless.
_DIRECT_TOLERANCE = 1e-4
# Right sides are solved for in about so many blocks, so that what is computed on the way stays small; fewer columns
# than these are not worth a block.
_BLOCKS, _FEWEST_COLUMNS = 4, 256


@dataclass(frozen=True, kw_only=True)
class Cholesky:
    """One factorisation for all right-hand sides.

    Attributes:
        ridge: relative ridge, see `solve.py`.
    """

    ridge: float = 0.0

    @property
    def name(self) -> str:
        """`cholesky`."""
        return "cholesky"

    def solve(self, matrix: Tensor, right_side: Tensor, prior: Tensor | None = None) -> Solution:
        """Solve as described in `solve.py`; a matrix that is not positive definite gives `BREAKDOWN` and the prior."""
        columns, start = as_given(matrix, right_side, prior)
        ridge = absolute_ridge(matrix, self.ridge)
        # the copy that is factored goes before the solution comes: beside the caller's three matrices there are three
        factor, info = torch.linalg.cholesky_ex(with_ridge(matrix, ridge))
        value, status = start, Status.BREAKDOWN
        if matrix.shape[0] == 0 or int(info) == 0:
            value = torch.empty_like(columns)
            for j in _blocks(columns):
                half = torch.linalg.solve_triangular(factor, columns[:, j] + ridge * start[:, j], upper=False)
                value[:, j] = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            finite = bool(torch.isfinite(value).all())
            status = Status.CONVERGED if finite else Status.BREAKDOWN
            value = value if finite else start
        residual = _residual(matrix, columns, start, ridge, value)
        if status is Status.CONVERGED and residual > _DIRECT_TOLERANCE:
            status = Status.ILL_CONDITIONED
        return Solution(
            value=value.reshape(right_side.shape).to(right_side.dtype),
            status=status,
            iterations=0,
            residual=residual,
            solver=self.name,
        )


def _blocks(columns: Tensor) -> list[slice]:
    """A few blocks of right sides [n, m], each no more than a part of the matrix."""
    n, m = columns.shape
    width = max(_FEWEST_COLUMNS, -(-n // _BLOCKS))
    return [slice(at, min(m, at + width)) for at in range(0, m, width)]


def _residual(matrix: Tensor, columns: Tensor, start: Tensor, ridge: Tensor, value: Tensor) -> float:
    """As `solve.relative_residual`, the largest; of a ridge that is in no matrix."""
    a, found = matrix.to(value.dtype), [columns.new_zeros(0)]
    for j in _blocks(columns):
        right = columns[:, j] + ridge * start[:, j]
        found.append(relative_norm(right - a @ value[:, j] - ridge * value[:, j], right))
    return worst(torch.cat(found))
