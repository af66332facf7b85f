"""LSMR in torch against scipy's."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import lsmr

from faster_pruner.linalg import Lsmr, Status
from faster_pruner.linalg.lsmr import torch_lsmr
from oracles import random_spd


@pytest.mark.parametrize(("condition", "damp"), [(1e1, 0.0), (1e1, 1.0), (1e4, 0.0), (1e4, 1.0), (1e7, 1.0)])
def test_torch_lsmr_is_scipys(condition: float, damp: float) -> None:
    """Same stops and iterates; without damping, rounding shifts the last iterations of an ill-conditioned system."""
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
