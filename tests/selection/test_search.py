"""First-order selection against brute force."""

from __future__ import annotations

import pytest
import torch

import oracles
from faster_pruner.errors import BudgetError
from faster_pruner.selection.elimination import additive
from faster_pruner.selection.fisher import block, diagonal, grouped
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


def test_search_ranks_two_kinds_at_most() -> None:
    three = {kind: Candidates(kind=kind, importance=torch.ones(2), unit_cost=1.0) for kind in ("a", "b", "c")}
    with pytest.raises(ValueError, match=r"at most two kinds of units, got \['a', 'b', 'c'\]"):
        search_masks(three, 3.0)


def test_losses_of_the_first_order_add_up() -> None:
    importance = torch.tensor([3.0, 0.0, 2.0, 5.0])
    curve = additive(importance)
    assert curve.order.tolist() == [1, 2, 0, 3]
    assert curve.removed.tolist() == [0, 1, 2, 3, 4]
    assert curve.loss.tolist() == [0.0, 0.0, 2.0, 5.0, 10.0]
