"""Elimination against direct least squares."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import oracles
from faster_pruner.errors import NumericalError
from faster_pruner.selection.elimination import additive, damped_factor, eliminate, square_root


def damped(gram: Tensor, damping: float) -> Tensor:
    """Gram plus damping * mean(diag(gram)) * I."""
    return gram + damping * gram.diagonal().mean() * torch.eye(gram.shape[0]).double()


def _problem(units: int, group: int, seed: int = 0, d: int = 6) -> tuple[Tensor, Tensor]:
    """A Gram matrix [n, n] and V [n, d]."""
    torch.manual_seed(seed)
    n = units * group
    x = torch.randn(4 * n, n).double() @ torch.randn(n, n).double()
    return x.T @ x / x.shape[0], torch.randn(n, d).double()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("units", "group"), [(24, 1), (5, 3), (1, 4), (1, 1)])
def test_elimination_order_against_recomputation_from_scratch(units: int, group: int, seed: int) -> None:
    gram, weighted = _problem(units, group, seed)
    curve = eliminate(gram, weighted, damping=1e-2, group=group)
    gram = damped(gram, 1e-2)
    removed: list[int] = []
    for step in range(units):
        left = [u for u in range(units) if u not in removed]
        losses = {u: oracles.removal_loss(gram, weighted, [*removed, u], group) for u in left}
        removed.append(min(losses, key=lambda u: losses[u]))
        assert curve.order[step] == removed[-1]
        assert float(curve.loss[step + 1]) == pytest.approx(losses[removed[-1]], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("units", "group", "block"), [(12, 1, 4), (200, 1, 3), (131, 1, 16), (70, 2, 3)])
def test_every_point_of_a_curve_is_a_direct_least_squares_loss(units: int, group: int, block: int) -> None:
    gram, weighted = _problem(units, group, seed=3)
    curve = eliminate(gram, weighted, damping=1e-2, group=group, block=block)
    gram = damped(gram, 1e-2)
    assert sorted(curve.order.tolist()) == list(range(units))
    assert curve.removed[-1] == units
    assert int(curve.removed.diff().max()) == min(block, max(1, units // 64))
    for removed, loss in list(zip(curve.removed.tolist(), curve.loss.tolist(), strict=True))[:: max(1, units // 12)]:
        direct = oracles.removal_loss(gram, weighted, curve.order[:removed].tolist(), group)
        assert loss == pytest.approx(direct, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("groups", "size", "columns"), [(2, 4, 3), (3, 3, 2), (4, 1, 2), (2, 5, 1)])
def test_units_in_groups_go_one_of_each_in_every_step(groups: int, size: int, columns: int) -> None:
    units = groups * size
    gram, weighted = _problem(units, columns, seed=5)
    curve = eliminate(gram, weighted, damping=1e-2, group=columns, groups=groups)
    gram = damped(gram, 1e-2)
    assert curve.removed.tolist() == list(range(0, units + 1, groups))
    removed: list[int] = []
    for step in range(size):
        waiting = set(range(groups))
        while waiting:
            left = [u for u in range(units) if u not in removed and u // size in waiting]
            losses = {u: oracles.removal_loss(gram, weighted, [*removed, u], columns) for u in left}
            removed.append(min(losses, key=lambda u: losses[u]))
            waiting.remove(removed[-1] // size)
        assert curve.order[: len(removed)].tolist() == removed
        direct = oracles.removal_loss(gram, weighted, removed, columns)
        assert float(curve.loss[step + 1]) == pytest.approx(direct, rel=1e-6, abs=1e-9)


def test_losses_that_add_up_take_the_least_of_every_group() -> None:
    curve = additive(torch.tensor([3.0, 1.0, 2.0, 7.0, 9.0, 8.0]), groups=2)
    assert curve.order.tolist() == [1, 3, 2, 5, 0, 4]
    assert curve.removed.tolist() == [0, 2, 4, 6]
    assert curve.loss.tolist() == [0, 8, 18, 30]
    assert additive(torch.tensor([3.0, 1.0, 2.0])).order.tolist() == [1, 2, 0]


def test_duplicate_and_constant_neurons_go_first_and_cost_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 8).double()
    x[:, 5] = x[:, 2]
    x[:, 7] = 0.0
    weighted = torch.randn(8, 4).double()
    curve = eliminate(x.T @ x / 500, weighted, damping=1e-6)
    assert curve.order[0] == 7
    assert int(curve.order[1]) in (2, 5)
    assert float(curve.loss[2]) < 1e-4 * float(curve.loss[-1])


def test_square_root_clamps_a_singular_matrix() -> None:
    v = torch.randn(6, 2).double()
    root = square_root(v @ v.T)
    assert torch.isfinite(root).all()
    assert torch.allclose(root @ root.T, v @ v.T, atol=1e-10)


def _hard_grams() -> dict[str, Tensor]:
    """Symmetric [8, 8] that a plain Cholesky factorisation cannot do, or hardly."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())
    values = torch.linspace(1.0, 2.0, 8).double()
    few = torch.randn(3, 8, generator=generator).double()
    return {
        "slightly indefinite": q @ torch.diag(values.clone().index_fill_(0, torch.tensor([0]), -1.7e-8)) @ q.T,
        "indefinite": q @ torch.diag(values.clone().index_fill_(0, torch.tensor([0, 1]), -0.5)) @ q.T,
        "singular": few.T @ few,
        "one direction": torch.ones(8, 8).double(),
        "zero": torch.zeros(8, 8).double(),
        "negative": -torch.eye(8).double(),
        "tiny": few.T @ few * 1e-30,
        "float32": (few.T @ few).float(),
    }


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-2])
@pytest.mark.parametrize("name", list(_hard_grams()))
def test_there_is_a_factor_of_every_finite_gram(name: str, damping: float) -> None:
    """It is that of the Gram with no less than the damping asked for on its diagonal, and hardly more than it takes."""
    gram = _hard_grams()[name].double()
    factor = damped_factor(_hard_grams()[name], damping)
    added = factor @ factor.T - gram
    scale = float(gram.diagonal().mean())
    scale = scale if scale > 0 else 1.0
    level = float(added.diagonal().mean()) / scale
    assert torch.allclose(added, level * scale * torch.eye(8).double(), atol=1e-12 * max(scale, level * scale))
    lowest = float(torch.linalg.eigvalsh(gram)[0]) / scale
    least = damping if name not in ("zero", "negative") else 1.0
    assert least - 1e-12 <= level <= max(least, 1e-10, -10 * lowest) + 1e-12
    if level > 1e-6:
        # a power of ten of what was asked for
        times = math.log10(level / max(least, 1e-12))
        assert times == pytest.approx(round(times), abs=1e-5)


@pytest.mark.parametrize("damping", [0.0, 1e-2])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("name", list(_hard_grams()))
def test_every_finite_gram_has_a_curve(name: str, group: int, damping: float) -> None:
    gram = _hard_grams()[name]
    weighted = torch.randn(8, 3).double()
    curve = eliminate(gram, weighted, damping=damping, group=group)
    assert sorted(curve.order.tolist()) == list(range(8 // group))
    assert torch.isfinite(curve.loss).all()
    assert bool((curve.loss.diff() >= 0).all())
    factor = damped_factor(gram, damping)
    # without damping a singular Gram is known to what its rounding leaves, which differs between processors
    close = 1e-3 if damping else 1e-2
    assert float(curve.loss[-1]) == pytest.approx(float((factor.T @ weighted).square().sum()), rel=close)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gram_that_is_not_finite_is_refused(wrong: float) -> None:
    gram = torch.eye(4)
    gram[1, 2] = wrong
    with pytest.raises(NumericalError, match="NaN or infinite values; calibrate in float32"):
        damped_factor(gram, 1e-2)
    with pytest.raises(NumericalError, match="NaN or infinite values"):
        eliminate(gram, torch.ones(4, 2), damping=1e-2)


def test_what_is_given_is_left_as_it_was() -> None:
    gram, weighted = _problem(6, 1)
    before = gram.clone(), weighted.clone()
    eliminate(gram, weighted, damping=0.5)
    assert torch.equal(gram, before[0])
    assert torch.equal(weighted, before[1])
    assert eliminate(gram[:0, :0], weighted[:0]).loss.tolist() == [0.0]
