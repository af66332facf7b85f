"""Cholesky: the direct solver, and the reference for every other. Shapes as in `solve.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.linalg.solve import Solution, Status, relative_residual, ridged_system, worst

# A triangular solve in float64 is backward stable: a residual above this means that the factor is useless.
_DIRECT_TOLERANCE = 1e-4


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
        system = ridged_system(matrix, right_side, prior, self.ridge)
        factor, info = torch.linalg.cholesky_ex(system.matrix)
        value = system.prior
        status = Status.BREAKDOWN
        if system.matrix.shape[0] == 0 or int(info) == 0:
            value = torch.cholesky_solve(system.right_side, factor)
            finite = bool(torch.isfinite(value).all())
            status = Status.CONVERGED if finite else Status.BREAKDOWN
            value = value if finite else system.prior
        residual = worst(relative_residual(system, value))
        if status is Status.CONVERGED and residual > _DIRECT_TOLERANCE:
            status = Status.ILL_CONDITIONED
        return Solution(
            value=value.reshape(right_side.shape).to(right_side.dtype),
            status=status,
            iterations=0,
            residual=residual,
            solver=self.name,
        )
