"""Solvers by name, and what to do when one fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from faster_pruner.linalg.cg import ConjugateGradient
from faster_pruner.linalg.direct import Cholesky
from faster_pruner.linalg.lsmr import Lsmr
from faster_pruner.linalg.solve import Solution, Solver
from faster_pruner.options import SolverOptions

_DEFAULT_CG_ITERATIONS = 1000
# Ridges tried with Cholesky after the chosen solver has failed, as multiples of the one asked for, then absolute.
_FALLBACK_RIDGES = (1.0, 10.0, 100.0)
_LEAST_FALLBACK_RIDGE = 1e-6


def _cg(options: SolverOptions) -> Solver:
    limit = options.max_iterations or _DEFAULT_CG_ITERATIONS
    return ConjugateGradient(
        preconditioner="none", tolerance=options.tolerance, max_iterations=limit, ridge=options.ridge
    )


def _jacobi_cg(options: SolverOptions) -> Solver:
    limit = options.max_iterations or _DEFAULT_CG_ITERATIONS
    return ConjugateGradient(
        preconditioner="jacobi", tolerance=options.tolerance, max_iterations=limit, ridge=options.ridge
    )


def _lsmr(options: SolverOptions) -> Solver:
    return Lsmr(
        damp=options.damp,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        ridge=options.ridge,
    )


def make_solver(options: SolverOptions) -> Solver:
    """The solver that `options` describes."""
    return _MAKERS[options.name](options)


def solve_or_fall_back(
    options: SolverOptions, matrix: Tensor, right_side: Tensor, prior: Tensor
) -> tuple[Solution, str]:
    """Solve; when that does not converge, use Cholesky with growing ridges.

    Returns:
        The solution, and what happened in words (empty when the chosen solver converged). The solution may still not
        have
        converged when every ridge has failed; the caller then keeps what it had.
    """
    solution = make_solver(options).solve(matrix, right_side, prior)
    if solution.converged:
        return solution, ""
    story = f"{solution.solver}: {solution.status} (residual {solution.residual:.1e})"
    for factor in _FALLBACK_RIDGES:
        ridge = max(options.ridge, _LEAST_FALLBACK_RIDGE) * factor
        fallback = make_solver(replace(options, name="cholesky", ridge=ridge)).solve(matrix, right_side, prior)
        if fallback.converged:
            return fallback, f"{story}; fell back to cholesky with ridge {ridge:.0e}"
    return solution, f"{story}; cholesky failed too: {solution.advice}"


_MAKERS: dict[str, Callable[[SolverOptions], Solver]] = {
    "cg": _cg,
    "jacobi-cg": _jacobi_cg,
    "lsmr": _lsmr,
    "cholesky": lambda options: Cholesky(ridge=options.ridge),
}
