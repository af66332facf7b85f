"""Solvers by name, their options, and what happens when one fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from faster_pruner.errors import OptionError
from faster_pruner.linalg import (
    BlockConjugateGradient,
    Cholesky,
    ConjugateGradient,
    Lsmr,
    make_solver,
    measured_rule,
    solve,
    solve_or_fall_back,
)
from faster_pruner.options import SOLVERS, SolverName, SolverOptions
from oracles import random_spd


def test_auto_is_cholesky_except_for_huge_systems() -> None:
    assert measured_rule(3072) == "cholesky"
    assert measured_rule(32_768) == "block-cg"
    options = SolverOptions(name="auto", ridge=1e-3)
    assert make_solver(options, n=16) == Cholesky(ridge=1e-3)
    assert isinstance(make_solver(options, n=10**6), BlockConjugateGradient)


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


@pytest.mark.parametrize("name", SOLVERS)
def test_a_limit_of_no_iterations_is_refused_and_one_is_kept(name: SolverName) -> None:
    with pytest.raises(OptionError, match="max_iterations is 0; it must be at least 1"):
        SolverOptions(name=name, max_iterations=0)
    a, b = random_spd(40, 1e6), torch.randn(40, 2).double()
    found = solve(SolverOptions(name=name, max_iterations=1), a, b, torch.zeros_like(b))
    assert found.value.shape == b.shape
    # auto is a factorisation at this size
    assert found.iterations == (0 if name in ("auto", "cholesky") else 1)
    assert found.converged == (name in ("auto", "cholesky"))


def test_without_a_limit_every_solver_has_its_own() -> None:
    options = SolverOptions(name="cg")
    assert make_solver(options, n=10) == ConjugateGradient(preconditioner="none", max_iterations=1000)
    assert make_solver(replace(options, name="block-cg"), n=10) == BlockConjugateGradient(max_iterations=1000)
    assert make_solver(replace(options, name="lsmr"), n=10) == Lsmr(damp=0.0, max_iterations=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gauss"}, "solver 'gauss' does not exist; choose one of: auto, cg"),
        ({"ridge": -1e-3}, "ridge is -0.001; it must be at least 0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"damp": -1.0}, "damp is -1"),
    ],
)
def test_solver_options_are_checked_where_they_are_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SolverOptions(**{"name": "cg", **changes})
