"""Solvers against manufactured solutions; Gram-based fits against least squares on the stacked design matrix."""

from __future__ import annotations

import pytest
import torch

from faster_pruner.linalg import (
    BlockConjugateGradient,
    Cholesky,
    ConjugateGradient,
    Lsmr,
    RegressionMoments,
    SecondMoment,
    Solver,
    Status,
    fit_alignment,
    make_solver,
    mask_normal_equations,
    measured_rule,
    solve_or_fall_back,
)
from faster_pruner.linalg.lsmr import torch_lsmr
from faster_pruner.options import SolverOptions
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
    import dataclasses

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


def test_auto_is_cholesky_except_for_huge_systems() -> None:
    assert measured_rule(3072) == "cholesky"
    assert measured_rule(32_768) == "block-cg"
    options = SolverOptions(name="auto", ridge=1e-3)
    assert make_solver(options, n=16) == Cholesky(ridge=1e-3)
    assert isinstance(make_solver(options, n=10**6), BlockConjugateGradient)


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


@pytest.mark.parametrize(("condition", "damp"), [(1e1, 0.0), (1e1, 1.0), (1e4, 0.0), (1e4, 1.0), (1e7, 1.0)])
def test_torch_lsmr_is_scipys(condition: float, damp: float) -> None:
    """Same stops and iterates; without damping, rounding shifts the last iterations of an ill-conditioned system."""
    from scipy.sparse.linalg import lsmr

    a, b = random_spd(30, condition), torch.randn(30).double()
    theirs = lsmr(a.numpy(), b.numpy(), damp=damp, atol=1e-6, btol=1e-6, conlim=1e8, maxiter=150)
    x, stop, iterations = torch_lsmr(a, b, damp=damp, tolerance=1e-6, condition_limit=1e8, limit=150)
    assert stop == theirs[1]
    if damp or condition < 1e2:
        assert iterations == theirs[2]
        assert torch.allclose(x, torch.from_numpy(theirs[0]), rtol=1e-4, atol=1e-6)
    else:
        assert abs(iterations - theirs[2]) <= 0.1 * theirs[2]
        theirs_residual = float((a @ torch.from_numpy(theirs[0]) - b).norm())
        assert float((a @ x - b).norm()) <= 2 * theirs_residual


def test_lsmr_reports_an_ill_conditioned_matrix() -> None:
    found = Lsmr(damp=0.0, condition_limit=1e2, max_iterations=500).solve(random_spd(40, 1e6), torch.ones(40).double())
    assert found.status is Status.ILL_CONDITIONED


def test_fall_back_says_what_it_did() -> None:
    a, b = random_spd(30, 1e6), torch.randn(30, 2).double()
    hard = SolverOptions(name="cg", tolerance=1e-14, max_iterations=2, ridge=1e-3)
    found, story = solve_or_fall_back(hard, a, b, torch.zeros_like(b))
    assert found.converged
    assert "cg: max-iterations" in story
    assert "cholesky" in story
    hopeless = torch.full((3, 3), float("nan"), dtype=torch.float64)
    found, story = solve_or_fall_back(hard, hopeless, torch.ones(3, 1).double(), torch.zeros(3, 1).double())
    assert not found.converged
    assert "failed too" in story


def test_moments_equal_direct_sums_and_centre() -> None:
    x = torch.randn(50, 6) + 3.0
    moment = SecondMoment(6, torch.device("cpu"))
    for part in x.split(17):
        moment.add(part)
    centred = x.double() - x.double().mean(dim=0)
    assert moment.count == 50
    assert torch.allclose(moment.gram, x.T @ x, rtol=1e-5)
    assert torch.allclose(moment.centred(), centred.T @ centred, atol=1e-3)


def test_sums_do_not_depend_on_how_tokens_arrive() -> None:
    """More tokens than are multiplied at once, in parts of any size, and more after the sums have been read."""
    x, r = torch.randn(2600, 300).bfloat16(), torch.randn(2600, 7)
    moments = RegressionMoments(300, 7, torch.device("cpu"))
    done = 0
    for size in (1, 1022, 1, 1500, 0, 76):
        moments.add(x[done : done + size], r[done : done + size])
        done += size
        seen = x[:done].float()
        assert moments.count == done
        assert torch.allclose(moments.inputs.gram, seen.T @ seen, rtol=1e-4, atol=2e-3)
        assert torch.equal(moments.inputs.gram, moments.inputs.gram.T)
        # factors may be rounded to bfloat16
        assert torch.allclose(moments.cross, seen.T @ r[:done], rtol=1e-2, atol=1.0)
        assert torch.allclose(moments.inputs.total, seen.double().sum(dim=0), atol=1e-3)
        assert torch.allclose(moments.target_total, r[:done].double().sum(dim=0), atol=1e-3)
        assert float(moments.target_square) == pytest.approx(float(r[:done].double().square().sum()), rel=1e-5)


def test_reconstruction_is_least_squares_with_intercept() -> None:
    x, r = torch.randn(200, 9) + 1.0, torch.randn(200, 4) - 2.0
    moments = RegressionMoments(9, 4, torch.device("cpu"))
    for a, b in zip(x.split(64), r.split(64), strict=True):
        moments.add(a, b)
    weight = Cholesky().solve(moments.inputs.centred(), moments.centred_cross()).value.T
    bias = moments.intercept(weight)
    design = torch.cat([x, torch.ones(200, 1)], dim=1).double()
    expected = torch.linalg.lstsq(design, r.double()).solution
    assert torch.allclose(weight.T, expected[:-1], atol=1e-5)
    assert torch.allclose(bias, expected[-1], atol=1e-5)
    residual = (x.double() @ weight.T + bias - r.double()).norm() / r.double().norm()
    assert moments.error(weight, bias) == pytest.approx(float(residual), rel=1e-5)
    assert moments.error(torch.zeros(4, 9), None) == pytest.approx(1.0)


@pytest.mark.parametrize("group", [1, 3])
def test_mask_tuning_is_least_squares_on_the_stacked_design(group: int) -> None:
    units, d, tokens = 4, 5, 80
    n = units * group
    x, weight, r = torch.randn(tokens, n).double(), torch.randn(d, n).double(), torch.randn(tokens, d).double()
    matrix, right_side = mask_normal_equations(x.T @ x, x.T @ r, weight, group)
    parts = [x[:, u * group : (u + 1) * group] @ weight[:, u * group : (u + 1) * group].T for u in range(units)]
    design = torch.stack([part.flatten() for part in parts], dim=1)
    expected = torch.linalg.lstsq(design, r.flatten()[:, None]).solution[:, 0]
    assert torch.allclose(Cholesky().solve(matrix, right_side).value, expected, atol=1e-8)


@pytest.mark.parametrize("offset", [True, False])
def test_alignment_is_least_squares_and_folds_into_a_producer(offset: bool) -> None:
    """W applied to the fitted inputs is the least-squares fit of the producer's dense outputs, and one fold away."""
    x, dense = torch.randn(300, 5) + 0.5, torch.randn(300, 5) - 1.0
    moments = RegressionMoments(5, 5, torch.device("cpu"))
    moments.add(x, dense)
    fitted = fit_alignment(moments, ridge=0.0, offset=offset)
    weight, bias = torch.randn(7, 5), torch.randn(7)
    design = torch.cat([x, torch.ones(300, int(offset))], dim=1).double()
    wanted = dense.double() @ weight.double().T
    expected = design @ torch.linalg.lstsq(design, wanted).solution
    new_weight, new_bias = fitted.fold(weight, bias if offset else None)
    found = x.double() @ new_weight.T + (new_bias - bias.double() if new_bias is not None else 0.0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_alignment_of_unchanged_inputs_is_the_identity() -> None:
    x = torch.randn(100, 6)
    moments = RegressionMoments(6, 6, torch.device("cpu"))
    moments.add(x, x)
    fitted = fit_alignment(moments, ridge=1e-2, offset=True)
    assert torch.allclose(fitted.matrix, torch.eye(6).double(), atol=1e-5)
    assert torch.allclose(fitted.offset, torch.zeros(6).double(), atol=1e-5)
