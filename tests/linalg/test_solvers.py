"""Every solver against manufactured solutions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from faster_pruner.linalg import (
    BlockConjugateGradient,
    Cholesky,
    ConjugateGradient,
    Lsmr,
    Solver,
    Status,
)
from oracles import random_spd

SOLVERS: list[Solver] = [
    ConjugateGradient(preconditioner="none", tolerance=1e-10),
    ConjugateGradient(preconditioner="jacobi", tolerance=1e-10),
    BlockConjugateGradient(tolerance=1e-10),
    Cholesky(),
    Lsmr(damp=0.0, tolerance=1e-12, condition_limit=1e12, max_iterations=4000),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
@pytest.mark.parametrize("columns", [None, 1, 7])
def test_manufactured_solution(solver: Solver, columns: int | None) -> None:
    a = random_spd(40, 1e3)
    x = torch.randn(40, dtype=torch.float64) if columns is None else torch.randn(40, columns, dtype=torch.float64)
    found = solver.solve(a, a @ x)
    assert found.status is Status.CONVERGED
    assert found.advice == ""
    assert found.value.shape == x.shape
    assert torch.allclose(found.value, x, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_ridge_pulls_towards_the_prior(solver: Solver) -> None:
    a, b, prior = random_spd(12, 50.0), torch.randn(12, 3).double(), torch.randn(12, 3).double()
    ridge = 0.3
    level = ridge * a.diagonal().mean()
    expected = torch.linalg.solve(a + level * torch.eye(12).double(), b + level * prior)
    found = dataclasses.replace(solver, ridge=ridge).solve(a, b, prior)  # pyright: ignore
    assert torch.allclose(found.value, expected, atol=1e-7)


def test_jacobi_needs_fewer_iterations_on_a_badly_scaled_matrix() -> None:
    scale = torch.logspace(0, 3, 60, dtype=torch.float64)
    a = scale[:, None] * random_spd(60, 10.0) * scale
    b = torch.randn(60, dtype=torch.float64)
    plain = ConjugateGradient(preconditioner="none", tolerance=1e-8).solve(a, b)
    jacobi = ConjugateGradient(preconditioner="jacobi", tolerance=1e-8).solve(a, b)
    assert jacobi.converged
    assert jacobi.iterations < plain.iterations / 2


def test_block_cg_against_cholesky_and_how_few_iterations_it_needs() -> None:
    a, b, prior = random_spd(96, 1e5), torch.randn(96, 32).double(), torch.randn(96, 32).double()
    exact = Cholesky(ridge=1e-3).solve(a, b, prior)
    block = BlockConjugateGradient(ridge=1e-3, tolerance=1e-9).solve(a, b, prior)
    single = ConjugateGradient(ridge=1e-3, tolerance=1e-9).solve(a, b, prior)
    assert block.converged
    assert torch.allclose(block.value, exact.value, atol=1e-6)
    # 32 directions an iteration span all 96 dimensions in three; rounding costs a few more
    assert 3 <= block.iterations <= 6
    assert block.iterations < single.iterations / 4


def test_block_cg_with_dependent_right_sides_and_more_of_them_than_unknowns() -> None:
    a, b = random_spd(20, 1e2), torch.randn(20, 3).double()
    wide = b @ torch.randn(3, 50).double()
    wide[:, 7] = 0
    found = BlockConjugateGradient(tolerance=1e-10).solve(a, wide)
    assert found.converged
    assert torch.allclose(found.value, torch.linalg.solve(a, wide), atol=1e-7)


def test_iteration_limit_is_reported_with_advice() -> None:
    found = ConjugateGradient(preconditioner="none", tolerance=1e-12, max_iterations=3).solve(
        random_spd(50, 1e6), torch.ones(50).double()
    )
    assert found.status is Status.MAX_ITERATIONS
    assert found.iterations == 3
    assert "max_iterations" in found.advice
    assert found.residual > 1e-12


def test_an_indefinite_matrix_is_a_breakdown_not_an_answer() -> None:
    a = torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    assert Cholesky().solve(a, b).status is Status.BREAKDOWN
    assert ConjugateGradient().solve(a, b).status is Status.BREAKDOWN
    assert BlockConjugateGradient().solve(a, b).status is Status.BREAKDOWN


def test_warm_start_at_the_solution_needs_no_iteration() -> None:
    a, x = random_spd(20, 100.0), torch.randn(20, 4).double()
    found = ConjugateGradient().solve(a, a @ x, prior=x)
    assert found.iterations == 0
    assert torch.equal(found.value, x)


def test_zero_right_side_and_empty_system() -> None:
    for solver in SOLVERS:
        assert not solver.solve(random_spd(5, 10.0), torch.zeros(5, 2).double()).value.any()
        assert solver.solve(torch.zeros(0, 0), torch.zeros(0, 3)).value.shape == (0, 3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"do not fit"):
        Cholesky().solve(torch.eye(3), torch.ones(4))


@pytest.mark.parametrize("limit", [0, 1])
def test_an_iteration_limit_is_meant_however_small(limit: int) -> None:
    """Nought is not taken for a default, and no solver claims to be done after it."""
    a, b = random_spd(50, 1e6), torch.randn(50, 3).double()
    iterative: list[Solver] = [
        ConjugateGradient(preconditioner="none", max_iterations=limit),
        ConjugateGradient(preconditioner="jacobi", max_iterations=limit),
        BlockConjugateGradient(max_iterations=limit),
        Lsmr(max_iterations=limit),
    ]
    for solver in iterative:
        found = solver.solve(a, b)
        assert found.iterations == limit
        assert found.status is Status.MAX_ITERATIONS, solver.name
        assert torch.isfinite(found.value).all()
        assert found.value.any() == (limit > 0)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_zero_matrix_with_a_ridge_gives_the_prior(solver: Solver) -> None:
    """Inputs that never vary say nothing, so that nothing changes."""
    prior = torch.randn(6, 2).double()
    found = dataclasses.replace(solver, ridge=1e-2).solve(torch.zeros(6, 6).double(), torch.zeros_like(prior), prior)  # pyright: ignore
    assert found.converged
    assert torch.allclose(found.value, prior, atol=1e-12)
