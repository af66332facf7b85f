"""Selection against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracles
from faster_pruner.errors import BudgetError
from faster_pruner.selection.budget import Item, allocate, allocate_uniform
from faster_pruner.selection.fisher import block, diagonal, grouped
from faster_pruner.selection.obs import Curve, damped, eliminate, square_root
from faster_pruner.selection.rearrange import rearrange
from faster_pruner.selection.search import Candidates, search_masks, total_cost


def test_grouped_gradients_are_minibatch_means() -> None:
    g = torch.randn(7, 3)
    assert grouped(g, 1) is g
    assert torch.allclose(grouped(g, 3), torch.stack([g[:3].mean(0), g[3:6].mean(0), g[6:].mean(0)]))
    assert torch.allclose(diagonal(g), block(g).diagonal())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_search_is_as_good_as_brute_force(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    candidates = {
        f"layers.{layer}.{kind}": Candidates(kind=kind, importance=torch.rand(units), unit_cost=cost)
        for layer in range(2)
        for kind, units, cost in (("attention", 2, 5.0), ("ffn", 4, 2.0))
    }
    budget = share * total_cost(candidates)
    selection = search_masks(candidates, budget)
    spent = sum(candidates[name].unit_cost * keep.numel() for name, keep in selection.items())
    found = sum(float(candidates[name].importance[keep].sum()) for name, keep in selection.items())
    best = oracles.best_selection_by_brute_force(
        {n: c.importance for n, c in candidates.items()}, {n: c.unit_cost for n, c in candidates.items()}, budget
    )
    assert spent <= budget
    assert found == pytest.approx(best, rel=1e-6)


def test_search_refuses_a_budget_below_one_unit() -> None:
    candidates = {"a": Candidates(kind="ffn", importance=torch.ones(4), unit_cost=10.0)}
    with pytest.raises(BudgetError, match=r"at least 0\.25"):
        search_masks(candidates, 9.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep_count", [1, 3, 6])
def test_rearrangement_is_the_brute_force_swap(seed: int, keep_count: int) -> None:
    torch.manual_seed(seed)
    gradients = torch.randn(20, 8) + torch.randn(20, 1)
    keep = diagonal(gradients).argsort(descending=True)[:keep_count].sort().values
    found = rearrange(keep, gradients)
    assert found.tolist() == oracles.rearrange_by_brute_force(keep.tolist(), gradients)

    def cost(kept: torch.Tensor) -> float:
        gone = torch.ones(8, dtype=torch.bool)
        gone[kept] = False
        return float(gradients.double()[:, gone].sum(dim=1).square().sum())

    assert found.numel() == keep_count
    assert cost(found) <= cost(keep) + 1e-9


def test_rearrangement_leaves_full_and_empty_masks_alone() -> None:
    gradients = torch.randn(5, 4)
    assert rearrange(torch.arange(4), gradients).tolist() == [0, 1, 2, 3]
    assert rearrange(torch.empty(0, dtype=torch.long), gradients).tolist() == []


def _problem(units: int, group: int, seed: int = 0, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    n = units * group
    x = torch.randn(4 * n, n).double() @ torch.randn(n, n).double()
    return damped(x.T @ x / x.shape[0], 1e-2), torch.randn(n, d).double()


@pytest.mark.parametrize(("units", "group"), [(12, 1), (5, 3), (1, 4), (1, 1)])
def test_elimination_order_against_recomputation_from_scratch(units: int, group: int) -> None:
    gram, weighted = _problem(units, group)
    curve = eliminate(gram, weighted, group=group)
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
    curve = eliminate(gram, weighted, group=group, block=block)
    assert sorted(curve.order.tolist()) == list(range(units))
    assert curve.removed[-1] == units
    assert int(curve.removed.diff().max()) == min(block, max(1, units // 64))
    for removed, loss in list(zip(curve.removed.tolist(), curve.loss.tolist(), strict=True))[:: max(1, units // 12)]:
        direct = oracles.removal_loss(gram, weighted, curve.order[:removed].tolist(), group)
        assert loss == pytest.approx(direct, rel=1e-6, abs=1e-9)


def test_duplicate_and_constant_neurons_go_first_and_cost_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 8).double()
    x[:, 5] = x[:, 2]
    x[:, 7] = 0.0
    weighted = torch.randn(8, 4).double()
    curve = eliminate(damped(x.T @ x / 500, 1e-6), weighted)
    assert curve.order[0] == 7
    assert int(curve.order[1]) in (2, 5)
    assert float(curve.loss[2]) < 1e-4 * float(curve.loss[-1])


def test_square_root_clamps_a_singular_matrix() -> None:
    v = torch.randn(6, 2).double()
    root = square_root(v @ v.T)
    assert torch.isfinite(root).all()
    assert torch.allclose(root @ root.T, v @ v.T, atol=1e-10)


def _curve(units: int, step: int, seed: int) -> Curve:
    generator = torch.Generator().manual_seed(seed)
    removed = torch.tensor(sorted({*range(0, units, step), units}))
    gains = torch.rand(removed.numel() - 1, generator=generator).double()
    loss = torch.cat([torch.zeros(1).double(), gains.cumsum(0)])
    return Curve(order=torch.randperm(units, generator=generator), removed=removed, loss=loss)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_knapsack_is_as_good_as_brute_force(seed: int, share: float) -> None:
    items = {
        "a": Item(curve=_curve(4, 1, seed), unit_cost=7.0),
        "b": Item(curve=_curve(12, 3, seed + 10), unit_cost=1.0),
        "c": Item(curve=_curve(10, 3, seed + 20), unit_cost=2.0),
    }
    budget = share * sum(i.curve.order.numel() * i.unit_cost for i in items.values())
    selection = allocate(items, budget)
    spent = sum(items[name].unit_cost * keep.numel() for name, keep in selection.items())
    assert spent <= budget
    best = oracles.knapsack_by_brute_force(
        [i.curve.loss for i in items.values()],
        [i.curve.order.numel() - i.curve.removed for i in items.values()],
        [i.unit_cost for i in items.values()],
        budget,
    )
    # the loss at the next curve point up is an upper bound of the loss after the slack is spent
    found = 0.0
    for name, keep in selection.items():
        gone = items[name].curve.order.numel() - keep.numel()
        found += float(items[name].curve.loss[int(torch.searchsorted(items[name].curve.removed, torch.tensor(gone)))])
    assert found <= best + 1e-9


def test_slack_of_the_block_is_spent() -> None:
    item = Item(curve=_curve(100, 16, 0), unit_cost=1.0)
    kept = allocate({"only": item}, 37.0)["only"]
    assert kept.numel() == 37
    assert set(kept.tolist()) == set(item.curve.order[63:].tolist())


def test_least_units_are_respected_and_a_budget_below_them_is_refused() -> None:
    flat = Curve(order=torch.arange(4), removed=torch.arange(5), loss=torch.zeros(5).double())
    steep = Curve(order=torch.arange(4), removed=torch.arange(5), loss=torch.arange(5).double())
    kept = allocate({"flat": Item(curve=flat, unit_cost=1.0, least=1), "steep": Item(curve=steep, unit_cost=1.0)}, 4.0)
    assert kept["flat"].numel() == 1
    assert kept["steep"].numel() == 3
    with pytest.raises(BudgetError, match="at least"):
        allocate({"flat": Item(curve=flat, unit_cost=1.0, least=2)}, 1.5)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_multiples_are_kept_to_and_the_budget_is_used_up_to_one_of_them(share: float) -> None:
    items = {
        "a": Item(curve=_curve(50, 7, 0), unit_cost=1.0, multiple=8),
        "b": Item(curve=_curve(12, 1, 1), unit_cost=3.0),
        "c": Item(curve=_curve(64, 16, 2), unit_cost=1.0, multiple=8),
    }
    budget = share * sum(i.units * i.unit_cost for i in items.values())
    kept = {name: keep.numel() for name, keep in allocate(items, budget).items()}
    assert all(kept[name] % 8 == 0 or kept[name] == items[name].units for name in ("a", "c"))
    spent = sum(kept[name] * item.unit_cost for name, item in items.items())
    assert budget - 8 < spent <= budget


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("multiple", [1, 4])
def test_uniform_allocation_is_the_best_pair_of_sizes(share: float, multiple: int) -> None:
    kinds = {"a0": "attention", "f0": "ffn", "a1": "attention", "f1": "ffn"}
    items = {
        name: Item(
            curve=_curve(6, 1, i) if kind == "attention" else _curve(24, 4, i),
            unit_cost=5.0 if kind == "attention" else 1.0,
            multiple=multiple if kind == "ffn" else 1,
        )
        for i, (name, kind) in enumerate(kinds.items())
    }
    budget = share * sum(i.units * i.unit_cost for i in items.values())
    kept = {name: keep.numel() for name, keep in allocate_uniform(items, kinds, budget).items()}
    assert kept["a0"] == kept["a1"]
    assert kept["f0"] == kept["f1"]
    assert kept["f0"] % multiple == 0

    def loss(heads: int, neurons: int) -> float:
        total = 0.0
        for name, kind in kinds.items():
            curve = items[name].curve
            gone = 6 - heads if kind == "attention" else 24 - neurons
            total += float(np.interp(gone, curve.removed.numpy(), curve.loss.numpy()))
        return total

    pairs = [(h, n) for h in range(7) for n in range(0, 25, multiple) if 10 * h + 2 * n <= budget + 1e-9]
    assert loss(kept["a0"], kept["f0"]) == pytest.approx(min(loss(*pair) for pair in pairs))


def test_uniform_allocation_needs_equal_sizes_and_respects_the_least() -> None:
    items = {"a": Item(curve=_curve(4, 1, 0), unit_cost=1.0), "b": Item(curve=_curve(6, 1, 1), unit_cost=1.0)}
    with pytest.raises(BudgetError, match=r"\[4, 6\] units"):
        allocate_uniform(items, {"a": "ffn", "b": "ffn"}, 5.0)
    whole = {"a": Item(curve=_curve(4, 1, 0), unit_cost=1.0, least=4), "b": Item(curve=_curve(6, 1, 1), unit_cost=1.0)}
    kept = allocate_uniform(whole, {"a": "attention", "b": "ffn"}, 7.0)
    assert (kept["a"].numel(), kept["b"].numel()) == (4, 3)
    with pytest.raises(BudgetError, match="at least 0.4"):
        allocate_uniform(whole, {"a": "attention", "b": "ffn"}, 3.0)
