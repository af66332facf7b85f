"""One interface for every solver of the recovery stage.

All of them are given a symmetric positive semi-definite matrix and one or many right-hand sides:

* `matrix` [n, n], `right_side` [n] or [n, m], `prior` of the shape of `right_side` (default zero);
* the system solved is ``(matrix + ridge_abs I) x = right_side + ridge_abs prior``, the minimiser of
  ``x' matrix x - 2 right_side' x + ridge_abs ||x - prior||^2``, with ``ridge_abs = ridge * mean(diag(matrix))``, or
  ``ridge`` itself where that mean is zero (inputs that never vary): the solution is the prior;
* iterations start from `prior`.

A solver is a frozen value of its hyper-parameters. A solve returns a `Solution`; the caller looks at its status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor


class Status(StrEnum):
    """How a solve ended."""

    CONVERGED = "converged"
    MAX_ITERATIONS = "max-iterations"
    BREAKDOWN = "breakdown"
    ILL_CONDITIONED = "ill-conditioned"


# The recurrence's residual drifts from the true one; a solve is called converged when the true one is within this
# factor of the tolerance.
_RECURRENCE_DRIFT = 10.0

ADVICE: dict[Status, str] = {
    Status.CONVERGED: "",
    Status.MAX_ITERATIONS: "raise max_iterations or ridge, or use the jacobi-cg or cholesky solver",
    Status.BREAKDOWN: "the matrix is not positive definite to working precision: raise ridge",
    Status.ILL_CONDITIONED: "the matrix is too ill-conditioned for this solver: raise ridge or use cholesky",
}


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solve found.

    Attributes:
        value: the solution, shape and dtype of the right-hand side.
        status: how the solve ended; anything but `CONVERGED` needs the caller's attention.
        iterations: iterations used (0 for a direct solver), the most over all right-hand sides.
        residual: ``||b - A x|| / ||b||`` of the system that was solved, the largest over all right-hand sides.
        solver: name of the solver.
    """

    value: Tensor
    status: Status
    iterations: int
    residual: float
    solver: str

    @property
    def converged(self) -> bool:
        """Whether the solver reached its tolerance."""
        return self.status is Status.CONVERGED

    @property
    def advice(self) -> str:
        """What to change when the solve did not converge; empty when it did."""
        return ADVICE[self.status]


class Solver(Protocol):
    """What the recovery stage asks of a solver."""

    @property
    def name(self) -> str:
        """Name shown in reports."""
        ...

    def solve(self, matrix: Tensor, right_side: Tensor, prior: Tensor | None = None) -> Solution:
        """Solve the (ridged) system described in this module's docstring."""
        ...


def solve_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it, float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class System:
    """A ridged system in solve precision, right-hand sides as columns.

    Attributes:
        matrix: [n, n], ridge included.
        right_side: [n, m], ridge times prior included.
        prior: [n, m].
    """

    matrix: Tensor
    right_side: Tensor
    prior: Tensor


def _as_columns(tensor: Tensor) -> Tensor:
    """[n] or [n, m] as [n, m]."""
    return tensor[:, None] if tensor.ndim == 1 else tensor


def as_given(matrix: Tensor, right_side: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Right sides and prior as columns [n, m] in solve precision. Raises ValueError on shapes that do not fit."""
    n = matrix.shape[0]
    if matrix.shape != (n, n) or right_side.shape[0] != n or right_side.ndim > 2:
        raise ValueError(
            f"matrix {tuple(matrix.shape)} and right_side {tuple(right_side.shape)} do not fit: "
            "expected [n, n] and [n] or [n, m]"
        )
    dtype = solve_dtype(matrix.device)
    columns = _as_columns(right_side).to(dtype)
    return columns, torch.zeros_like(columns) if prior is None else _as_columns(prior).to(dtype)


def absolute_ridge(matrix: Tensor, ridge: float) -> Tensor:
    """0-d, in solve precision: what is added to the diagonal for a relative ridge."""
    diagonal = matrix.diagonal().to(solve_dtype(matrix.device))
    if ridge <= 0 or not diagonal.numel():
        return diagonal.new_zeros(())
    mean = diagonal.mean()
    return ridge * torch.where(mean > 0, mean, torch.ones_like(mean))


def with_ridge(matrix: Tensor, ridge_abs: Tensor) -> Tensor:
    """A copy of a matrix in solve precision, with the ridge on its diagonal."""
    found = matrix.to(ridge_abs.dtype, copy=True)
    found.diagonal().add_(ridge_abs)
    return found


def ridged_system(matrix: Tensor, right_side: Tensor, prior: Tensor | None, ridge: float) -> System:
    """Cast to solve precision and add the relative ridge. Raises ValueError on shapes that do not fit."""
    columns, start = as_given(matrix, right_side, prior)
    ridge_abs = absolute_ridge(matrix, ridge)
    return System(with_ridge(matrix, ridge_abs), columns + ridge_abs * start, start)


def relative_residual(system: System, value: Tensor) -> Tensor:
    """``||b - A x|| / ||b||`` per column of `value` [n, m]; a zero right-hand side is measured absolutely."""
    return relative_norm(system.right_side - system.matrix @ value, system.right_side)


def relative_norm(rest: Tensor, right_side: Tensor) -> Tensor:
    """[m]: norms of the columns of `rest` [n, m] over those of `right_side`; over 1 where these are zero."""
    norm = right_side.norm(dim=0)
    return rest.norm(dim=0) / torch.where(norm > 0, norm, torch.ones_like(norm))


def solve_iteratively(
    iterate: Callable[[System], tuple[Tensor, int, bool]],
    matrix: Tensor,
    right_side: Tensor,
    prior: Tensor | None,
    *,
    name: str,
    tolerance: float,
    ridge: float,
) -> Solution:
    """Run a recurrence on the ridged system and judge what it found by the true residual.

    Args:
        iterate: from the system to (value [n, m], iterations used, whether non-positive curvature was met).
        matrix: [n, n].
        right_side: [n] or [n, m].
        prior: of the shape of `right_side`.
        name: of the solver.
        tolerance: relative residual that is asked for.
        ridge: relative ridge.

    Raises:
        ValueError: shapes that do not fit.
    """
    system = ridged_system(matrix, right_side, prior, ridge)
    value, iterations, broke = iterate(system)
    residual = worst(relative_residual(system, value))
    if residual <= tolerance * _RECURRENCE_DRIFT:
        status = Status.CONVERGED
    else:
        status = Status.BREAKDOWN if broke or residual == float("inf") else Status.MAX_ITERATIONS
    found = value.reshape(right_side.shape).to(right_side.dtype)
    return Solution(value=found, status=status, iterations=iterations, residual=residual, solver=name)


def worst(residuals: Tensor) -> float:
    """Largest entry, 0 for an empty system, infinity when any entry is not finite."""
    if residuals.numel() == 0:
        return 0.0
    largest = float(residuals.max())
    return largest if torch.isfinite(residuals).all() else float("inf")
