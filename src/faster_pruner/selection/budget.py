"""Knapsack over the loss curves of all sublayers: the least total loss whose cost meets the budget.

Each sublayer offers one point of its curve (`obs.Curve`); the points are chosen by dynamic programming over a
discretised cost (as in ZipLM's structured search), then what the discretisation and the block size left of the budget
is spent unit by unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.errors import BudgetError
from faster_pruner.selection.obs import Curve
from faster_pruner.selection.search import Selection

_BINS = 20_000
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sublayer on offer.

    Attributes:
        curve: cumulative loss against units removed.
        unit_cost: cost of one kept unit, in the unit of the budget.
        least: the fewest units that may be kept.
    """

    curve: Curve
    unit_cost: float
    least: int = 0


def allocate(items: Mapping[str, Item], budget: float, *, bins: int = _BINS) -> Selection:
    """The units to keep in each sublayer.

    Args:
        items: by sublayer.
        budget: most that the kept units may cost together.
        bins: resolution of the dynamic programme. Costs are rounded down to ``budget / bins``; the true cost of what it
            finds is checked, and the next smaller capacity is tried until it fits.

    Raises:
        BudgetError: when the fewest units allowed already cost more than the budget.
    """
    floor = sum(_least_cost(item) for item in items.values())
    if floor > budget:
        everything = sum(item.curve.order.numel() * item.unit_cost for item in items.values())
        raise BudgetError(
            "the budget is below the smallest model this method builds: "
            f"ask for at least {floor / everything:.3g} of the encoder's MACs"
        )
    points = _choose(items, budget, bins)
    removed = {name: int(item.curve.removed[point]) for (name, item), point in zip(items.items(), points, strict=True)}
    _spend_slack(items, removed, budget)
    return {name: item.curve.order[removed[name] :].sort().values for name, item in items.items()}


def _least_cost(item: Item) -> float:
    """Cost of the smallest allowed point of an item."""
    return _keeps(item).min().item() * item.unit_cost


def _keeps(item: Item) -> Tensor:
    """Units kept at each allowed point; points below `least` are moved to the smallest allowed one."""
    keeps = item.curve.order.numel() - item.curve.removed
    return keeps[keeps >= item.least]


def _choose(items: Mapping[str, Item], budget: float, bins: int) -> list[int]:
    """Index of the chosen point of each curve."""
    best = torch.zeros(bins + 1, dtype=torch.float64)
    choices: list[Tensor] = []
    spends: list[list[int]] = []
    for item in items.values():
        spend = torch.floor(_keeps(item) * (item.unit_cost * bins / budget) + 1e-9).long().tolist()
        table = torch.full_like(best, torch.inf)
        choice = torch.zeros(bins + 1, dtype=torch.long)
        for point, cost in enumerate(spend):
            if cost > bins:
                continue
            offer = best[: bins + 1 - cost] + item.curve.loss[point]
            better = offer < table[cost:]
            table[cost:] = torch.where(better, offer, table[cost:])
            choice[cost:] = torch.where(better, point, choice[cost:])
        best = table
        choices.append(choice)
        spends.append(spend)
    # rounding down hides less than one bin per item
    for capacity in range(bins, max(-1, bins - len(items) - 1), -1):
        points = _trace_back(choices, spends, capacity) if torch.isfinite(best[capacity]) else None
        if points is not None and _cost(items, points) <= budget * (1 + _ROUNDING):
            return points
    return [_keeps(item).numel() - 1 for item in items.values()]


def _trace_back(choices: list[Tensor], spends: list[list[int]], capacity: int) -> list[int]:
    """The points that the dynamic programme chose for `capacity` bins."""
    points: list[int] = []
    for choice, spend in zip(reversed(choices), reversed(spends), strict=True):
        points.append(int(choice[capacity]))
        capacity -= spend[points[-1]]
    return points[::-1]


def _cost(items: Mapping[str, Item], points: list[int]) -> float:
    """True cost of one point per curve."""
    return sum(float(_keeps(item)[point]) * item.unit_cost for item, point in zip(items.values(), points, strict=True))


def _spend_slack(items: Mapping[str, Item], removed: dict[str, int], budget: float) -> None:
    """Take units back, the largest loss saved per cost first, while they fit. Changes `removed`."""
    slack = budget - sum((item.curve.order.numel() - removed[name]) * item.unit_cost for name, item in items.items())
    while True:
        fits = [name for name, item in items.items() if removed[name] > 0 and item.unit_cost <= slack]
        if not fits:
            return
        name = max(fits, key=lambda n: _saving(items[n].curve, removed[n]) / items[n].unit_cost)
        removed[name] -= 1
        slack -= items[name].unit_cost


def _saving(curve: Curve, removed: int) -> float:
    """Loss saved by taking back the last of `removed` units: the slope of the curve there."""
    upper = int(torch.searchsorted(curve.removed, torch.tensor(removed)))
    width = int(curve.removed[upper] - curve.removed[upper - 1])
    return float(curve.loss[upper] - curve.loss[upper - 1]) / width
