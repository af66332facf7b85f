"""Limits on time, and the table that they are spent by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from badness import bad_input
from faster_pruner.costs.budget import Budget, bounds_of
from faster_pruner.costs.latency import LatencyLimit, Times
from faster_pruner.errors import BudgetError, FasterPrunerError


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"share": 0.5, "seconds": 0.1},
        {"share": 1.0},
        {"share": 0.0},
        {"share": -1.0},
        {"share": "half"},
        {"share": float("nan")},
        {"seconds": 0.0},
        {"seconds": -1.0},
        {"seconds": float("inf")},
        {"seconds": "8ms"},
        {"share": 0.5, "batch": 0},
        {"share": 0.5, "tokens": 1.5},
        {"share": 0.5, "runtime": "tensorrt"},
    ],
)
def test_what_is_no_limit(given_: dict[str, Any]) -> None:
    bad_input(f"latency {given_}")
    with pytest.raises(FasterPrunerError):
        LatencyLimit(**given_)


def test_it_is_a_budget_of_its_own() -> None:
    limit = LatencyLimit(share=0.5)
    budget = Budget(latency=limit)
    assert budget.prunes
    assert budget.all_limits == ()
    assert budget.to_dict()["latency"]["share"] == 0.5
    assert (limit.wanted, LatencyLimit(seconds=0.008).wanted) == ("2x", "8 ms")
    with pytest.raises(BudgetError, match="measure first"):
        bounds_of(budget, torch.nn.Linear(1, 1), [], {}, bytes_each=4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 5))
def test_more_units_never_take_less(steps: list[float], gap: int) -> None:
    """Between, below and beyond the sizes that were measured; the first units cost as much as the first size."""
    keeps = tuple(gap * i for i in range(len(steps) + 1))
    seconds = tuple(sum(steps[:i]) for i in range(len(steps) + 1))
    found = Times(keeps, seconds).at(torch.arange(keeps[-1] + 3))
    assert bool((found.diff() >= -1e-12).all())
    assert found[0] == 0
    assert found[1] == pytest.approx(seconds[1])
    for keep, each in zip(keeps, seconds, strict=True):
        assert float(found[keep]) == pytest.approx(each)
    assert float(found[-1]) == pytest.approx(seconds[-1])
