"""A device without float64: everything is computed in float32 there, and nothing asks it for more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from faster_pruner.linalg import (
    BlockConjugateGradient,
    Cholesky,
    ConjugateGradient,
    RegressionMoments,
    SecondMoment,
    Solver,
    Status,
    fit_alignment,
    mask_normal_equations,
)
from faster_pruner.linalg.lsmr import torch_lsmr
from faster_pruner.selection import fisher, search
from faster_pruner.selection.elimination import Curve, additive, damped_factor, eliminate, square_root
from faster_pruner.selection.rearrange import rearrange
from oracles import random_spd, removal_loss

CPU = torch.device("cpu")


class OnDevice(Tensor):
    """A tensor on a device that has no float64; `cpu()` takes it away from there."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        found = super().__torch_function__(func, types, args, kwargs)
        for part in found if isinstance(found, tuple) else (found,):
            if isinstance(part, OnDevice) and part.dtype is torch.float64:
                raise RuntimeError("this device has no float64")
        return found


def there(tensor: Tensor) -> Tensor:
    """On the device, in float32."""
    return tensor.float().as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def _no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith(("faster_pruner.linalg", "faster_pruner.selection")) and hasattr(module, "solve_dtype"):
            monkeypatch.setattr(module, "solve_dtype", lambda device: torch.float32)


def test_the_device_refuses_float64() -> None:
    x = there(torch.ones(2))
    assert x.cpu().double().dtype is torch.float64
    for widen in (Tensor.double, lambda t: t.to(torch.float64), lambda t: t + torch.ones(2).double()):
        with pytest.raises(RuntimeError, match="no float64"):
            widen(x)


@pytest.mark.parametrize(
    "solver",
    [
        Cholesky(ridge=1e-2),
        ConjugateGradient(preconditioner="none", ridge=1e-2),
        ConjugateGradient(preconditioner="jacobi", ridge=1e-2),
        BlockConjugateGradient(ridge=1e-2),
    ],
    ids=lambda solver: solver.name,
)
def test_solvers(solver: Solver) -> None:
    a, b, prior = random_spd(30, 50.0), torch.randn(30, 4).double(), torch.randn(30, 4).double()
    level = 1e-2 * a.diagonal().mean()
    expected = torch.linalg.solve(a + level * torch.eye(30).double(), b + level * prior)
    found = solver.solve(there(a), there(b), there(prior))
    assert found.status is Status.CONVERGED
    assert found.value.dtype is torch.float32
    assert torch.allclose(found.value.cpu().double(), expected, atol=1e-4 * float(expected.abs().max()))


def test_lsmr() -> None:
    a, b = random_spd(20, 10.0), torch.randn(20).double()
    x, _, _ = torch_lsmr(there(a), there(b), damp=0.0, tolerance=1e-6, condition_limit=1e8, limit=200)
    assert torch.allclose(x.cpu().double(), torch.linalg.solve(a, b), atol=1e-3)


def test_moments_and_the_fits_from_them() -> None:
    x, r = torch.randn(400, 5) + 100.0, torch.randn(400, 5)
    moments = RegressionMoments(5, 5, CPU)
    moments.add(x, r)
    wide = x.double() - x.double().mean(dim=0)
    assert moments.x.centred().dtype is torch.float32
    assert torch.allclose(moments.x.centred().double(), wide.T @ wide, rtol=1e-3, atol=1e-2)
    expected = torch.linalg.lstsq(wide, r.double() - r.double().mean(dim=0)).solution
    aligned = fit_alignment(moments, ridge=0.0, offset=True)
    assert aligned.matrix.dtype is torch.float32
    assert torch.allclose(aligned.matrix.double(), expected, atol=1e-3)
    two = SecondMoment(5, CPU).plus(moments.x)
    assert torch.allclose(two.plain(), moments.x.plain(), rtol=1e-5)


def test_mask_tuning() -> None:
    gram, cross, weight = random_spd(12, 10.0), torch.randn(12, 5).double(), torch.randn(5, 12).double()
    matrix, right_side = mask_normal_equations(there(gram), there(cross), there(weight), 3)
    blocks = (gram * (weight.T @ weight)).view(4, 3, 4, 3).sum(dim=(1, 3))
    assert torch.allclose(matrix.cpu().double(), blocks, atol=1e-4)
    assert torch.allclose(right_side.cpu().double(), (cross @ weight).diagonal().view(4, 3).sum(dim=1), atol=1e-4)


@pytest.mark.parametrize("group", [1, 4])
def test_elimination(group: int) -> None:
    gram, gradient, weight = random_spd(24, 20.0), random_spd(6, 10.0), torch.randn(24, 6).double()
    root = square_root(there(gradient))
    assert torch.allclose((root @ root.T).cpu().double(), gradient, atol=1e-5)
    found = eliminate(there(gram), there(weight) @ root, damping=1e-2, group=group)
    assert found.loss.dtype is torch.float64
    level = 1e-2 * gram.diagonal().mean() * torch.eye(24).double()
    weighted, order = weight @ torch.linalg.cholesky(gradient), found.order.tolist()
    expected = [removal_loss(gram + level, weighted, order[:count], group) for count in range(len(order) + 1)]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_factor_of_any_gram() -> None:
    for gram in (torch.zeros(3, 3), torch.diag(torch.tensor([1.0, -1e-3, 2.0])), torch.ones(3, 3)):
        factor = damped_factor(there(gram), 1e-6)
        assert torch.isfinite(factor).all()
        assert bool((factor.diagonal() > 0).all())


def test_first_order_selection() -> None:
    gradients = torch.randn(40, 6)
    wide = gradients.double()
    assert torch.allclose(fisher.diagonal(there(gradients)).cpu().double(), wide.square().sum(dim=0), rtol=1e-5)
    assert torch.allclose(fisher.block(there(gradients)).cpu().double(), wide.T @ wide, atol=1e-4)
    kept = rearrange(torch.tensor([0, 2, 5]), there(gradients))
    assert kept.tolist() == rearrange(torch.tensor([0, 2, 5]), gradients).tolist()
    curve: Curve = additive(fisher.diagonal(there(gradients)))
    assert curve.loss.dtype is torch.float64
    assert float(curve.loss[-1]) == pytest.approx(float(wide.square().sum()), rel=1e-5)


def test_the_mask_search() -> None:
    importance = torch.tensor([3.0, 1.0, 2.0])
    candidates = {
        "a": search.Candidates(kind="head", importance=there(importance), unit_cost=1.0),
        "b": search.Candidates(kind="neuron", importance=there(importance * 2), unit_cost=1.0),
    }
    chosen = search.search_masks(candidates, 3.0)
    assert {name: keep.tolist() for name, keep in chosen.items()} == {"a": [0], "b": [0, 2]}
