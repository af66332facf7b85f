"""Solvers by name, the rule that picks one, and what to do when one fails."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from faster_pruner.linalg.block_cg import BlockConjugateGradient
from faster_pruner.linalg.cg import ConjugateGradient
from faster_pruner.linalg.direct import Cholesky
from faster_pruner.linalg.lsmr import Lsmr
from faster_pruner.linalg.solve import Solution, Solver
from faster_pruner.options import SolverName, SolverOptions

_DEFAULT_CG_ITERATIONS = 1000
# Ridges tried with Cholesky after the chosen solver has failed, as multiples of the one asked for, then absolute.
_FALLBACK_RIDGES = (1.0, 10.0, 100.0)
_LEAST_FALLBACK_RIDGE = 1e-6
# Where `measured_rule` changes over: a float64 matrix of 2 GiB.
_LARGEST_FACTORED = 16_384


def _limit(options: SolverOptions) -> int:
    """Iterations of a conjugate-gradient solver."""
    return _DEFAULT_CG_ITERATIONS if options.max_iterations is None else options.max_iterations


def _cg(options: SolverOptions) -> Solver:
    return ConjugateGradient(
        preconditioner="none", tolerance=options.tolerance, max_iterations=_limit(options), ridge=options.ridge
    )


def _jacobi_cg(options: SolverOptions) -> Solver:
    return ConjugateGradient(
        preconditioner="jacobi", tolerance=options.tolerance, max_iterations=_limit(options), ridge=options.ridge
    )


def _lsmr(options: SolverOptions) -> Solver:
    return Lsmr(
        damp=options.damp,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        ridge=options.ridge,
    )


def _block_cg(options: SolverOptions) -> Solver:
    return BlockConjugateGradient(tolerance=options.tolerance, max_iterations=_limit(options), ridge=options.ridge)


def measured_rule(n: int) -> SolverName:
    """The solver for a system of size n, by benchmarks/solvers.py (docs/solvers.md).

    Up to n = 4096, with one or hundreds of right-hand sides, the factorisation is the fastest by a factor of 2 to 90.
    Far beyond, where a factor beside the matrix is what memory lacks, block CG is the fastest of the others.
    """
    return "cholesky" if n <= _LARGEST_FACTORED else "block-cg"


def make_solver(options: SolverOptions, *, n: int) -> Solver:
    """The solver that `options` describes, for a system of size n; `auto` is decided by `measured_rule`."""
    name = measured_rule(n) if options.name == "auto" else options.name
    return _MAKERS[name](options)


def solve(options: SolverOptions, matrix: Tensor, right_side: Tensor, prior: Tensor) -> Solution:
    """Solve one system with the solver that `options` describes; shapes and meaning as in `solve.py`."""
    return make_solver(options, n=matrix.shape[0]).solve(matrix, right_side, prior)


def solve_or_fall_back(
    options: SolverOptions, matrix: Tensor, right_side: Tensor, prior: Tensor
) -> tuple[Solution, str]:
    """Solve; when that does not converge, use Cholesky with growing ridges.

    Returns:
        The solution, and what happened in words (empty when the chosen solver converged). The solution may still not
        have converged when every ridge has failed; the caller then keeps what it had.
    """
    solution = solve(options, matrix, right_side, prior)
    if solution.converged:
        return solution, ""
    story = f"{solution.solver}: {solution.status} (residual {solution.residual:.1e})"
    for factor in _FALLBACK_RIDGES:
        ridge = max(options.ridge, _LEAST_FALLBACK_RIDGE) * factor
        fallback = Cholesky(ridge=ridge).solve(matrix, right_side, prior)
        if fallback.converged:
            return fallback, f"{story}; fell back to cholesky with ridge {ridge:.0e}"
    return solution, f"{story}; cholesky failed too: {solution.advice}"


_MAKERS: dict[str, Callable[[SolverOptions], Solver]] = {
    "cg": _cg,
    "jacobi-cg": _jacobi_cg,
    "block-cg": _block_cg,
    "lsmr": _lsmr,
    "cholesky": lambda options: Cholesky(ridge=options.ridge),
}
