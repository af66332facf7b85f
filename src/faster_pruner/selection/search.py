"""Mask search under a budget (Kwon et al. 2022, section 4.1, algorithm 1).

Units of one kind (heads, neurons) are ranked together over all layers by their diagonal Fisher information; for every
number of heads the rest of the budget goes to the best neurons, and the best total wins.

The search adds up units, so it needs a cost that is linear in their number and one limit; for other costs the knapsack
takes its importances (`knapsack.py`).

Departures from the reference: a number of heads that alone exceeds the budget is not considered (theirs would break the
budget), and unit costs may differ between sublayers (theirs may not).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.errors import BudgetError

# A selection: for each sublayer, the sorted indices of the units to keep.
Selection = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The units of one sublayer, ready to be chosen from.

    Attributes:
        kind: units of one kind are ranked together.
        importance: [U], the larger the more worth keeping.
        unit_cost: what keeping one unit costs, in the unit of the budget.
    """

    kind: str
    importance: Tensor
    unit_cost: float


@dataclass(frozen=True)
class _Ranked:
    """All units of one kind, best first, with running totals; entry k of the totals is for the k best units."""

    names: list[str]
    units: Tensor
    cost: Tensor
    importance: Tensor


def total_cost(candidates: Mapping[str, Candidates]) -> float:
    """Cost of keeping every unit."""
    return sum(c.importance.numel() * c.unit_cost for c in candidates.values())


def search_masks(candidates: Mapping[str, Candidates], budget: float) -> Selection:
    """The units to keep so that their cost is at most `budget` and their summed importance is largest.

    Raises:
        BudgetError: when not even the cheapest unit fits.
    """
    kinds = list(dict.fromkeys(c.kind for c in candidates.values()))
    if len(kinds) > 2:
        raise ValueError(f"mask search ranks at most two kinds of units, got {kinds}")
    if min(c.unit_cost for c in candidates.values()) > budget:
        cheapest = min(c.unit_cost for c in candidates.values()) / total_cost(candidates)
        raise BudgetError(
            f"the budget is below what one unit costs: ask for at least {cheapest:.2g} of the dense model"
        )
    first = _rank(candidates, kinds[0])
    second = (
        _rank(candidates, kinds[1])
        if len(kinds) == 2
        else _Ranked([], torch.empty(0), *([torch.zeros(1).double()] * 2))
    )
    affordable = first.cost <= budget
    best_second = torch.searchsorted(second.cost, budget - first.cost, right=True) - 1
    total = first.importance + second.importance[best_second.clamp(min=0)]
    total[~affordable] = -torch.inf
    take_first = int(total.argmax())
    keep = {name: [] for name in candidates}
    for ranked, count in ((first, take_first), (second, int(best_second[take_first]))):
        for name, unit in zip(ranked.names[:count], ranked.units[:count].tolist(), strict=True):
            keep[name].append(unit)
    return {name: torch.tensor(sorted(units), dtype=torch.long) for name, units in keep.items()}


def _rank(candidates: Mapping[str, Candidates], kind: str) -> _Ranked:
    """All units of `kind`, best first; ties go to the earlier layer."""
    chosen = {name: c for name, c in candidates.items() if c.kind == kind}
    importance = torch.cat([c.importance.cpu().double() for c in chosen.values()])
    cost = torch.cat([torch.full((c.importance.numel(),), float(c.unit_cost)).double() for c in chosen.values()])
    names = [name for name, c in chosen.items() for _ in range(c.importance.numel())]
    units = torch.cat([torch.arange(c.importance.numel()) for c in chosen.values()])
    order = importance.argsort(descending=True, stable=True)
    zero = torch.zeros(1).double()
    return _Ranked(
        [names[i] for i in order.tolist()],
        units[order],
        torch.cat([zero, cost[order].cumsum(0)]),
        torch.cat([zero, importance[order].cumsum(0)]),
    )
