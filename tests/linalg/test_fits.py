"""Fits from moments against least squares on the stacked design matrix."""

from __future__ import annotations

import pytest
import torch

from faster_pruner.linalg import Cholesky, RegressionMoments, fit_alignment, mask_normal_equations

CPU = torch.device("cpu")


@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
def test_reconstruction_is_least_squares_with_intercept(offset: float) -> None:
    """However far from zero the inputs are."""
    x, r = torch.randn(200, 9) + offset, torch.randn(200, 4) - 2.0
    moments = RegressionMoments(9, 4, CPU)
    for a, b in zip(x.split(64), r.split(64), strict=True):
        moments.add(a, b)
    weight = Cholesky().solve(*moments.normal_equations(intercept=True)).value.T
    bias = moments.intercept(weight)
    design = torch.cat([x.double() - offset, torch.ones(200, 1)], dim=1)
    expected = torch.linalg.lstsq(design, r.double()).solution
    assert torch.allclose(weight.T, expected[:-1], atol=1e-5)
    assert torch.allclose(bias + offset * weight.sum(dim=1), expected[-1], atol=1e-5)
    residual = (x.double() @ weight.T + bias - r.double()).norm() / r.double().norm()
    assert moments.error(weight, bias) == pytest.approx(float(residual), rel=1e-5)
    assert moments.error(torch.zeros(4, 9), None) == pytest.approx(1.0)


def test_reconstruction_without_intercept_is_least_squares_through_zero() -> None:
    x, r = torch.randn(200, 6) + 2.0, torch.randn(200, 3) - 1.0
    moments = RegressionMoments(6, 3, CPU)
    moments.add(x, r)
    weight = Cholesky().solve(*moments.normal_equations(intercept=False)).value.T
    expected = torch.linalg.lstsq(x.double(), r.double()).solution
    assert torch.allclose(weight.T, expected, atol=1e-5)
    left = x.double() @ weight.T - r.double()
    assert moments.error(weight, None) == pytest.approx(float(left.norm() / r.double().norm()), rel=1e-5)


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
    moments = RegressionMoments(5, 5, CPU)
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
    moments = RegressionMoments(6, 6, CPU)
    moments.add(x, x)
    fitted = fit_alignment(moments, ridge=1e-2, offset=True)
    assert torch.allclose(fitted.matrix, torch.eye(6).double(), atol=1e-5)
    assert torch.allclose(fitted.offset, torch.zeros(6).double(), atol=1e-5)
