"""Knapsack over the loss curves of all sublayers: the least total loss whose cost meets the budget.

Each sublayer offers one point of its curve (`obs.Curve`); the points are chosen by dynamic programming over a
discretised cost (as in ZipLM's structured search), then what the discretisation and the block size left of the budget
is spent unit by unit. Sizes can be confined to multiples, or to one size for all sublayers of a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
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
        multiple: the units kept are a multiple of this, or all; losses between two points of the curve are
            interpolated.
    """

    curve: Curve
    unit_cost: float
    least: int = 0
    multiple: int = 1

    @property
    def units(self) -> int:
        """Units before the removal."""
        return self.curve.order.numel()


@dataclass(frozen=True)
class _Offer:
    """The allowed sizes of one item, largest first.

    Attributes:
        keeps: [P], units kept.
        loss: [P] float64.
        unit_cost: of the item.
    """

    keeps: Tensor
    loss: Tensor
    unit_cost: float

    @property
    def least_cost(self) -> float:
        """Cost of the smallest size."""
        return float(self.keeps[-1]) * self.unit_cost


def _offer(item: Item, *, every_size: bool = False) -> _Offer:
    """What an item may become: the points of its curve, or every allowed size."""
    if item.multiple == 1 and not every_size:
        keeps, loss = item.units - item.curve.removed, item.curve.loss
    else:
        keeps = torch.arange(item.units // item.multiple, -1, -1) * item.multiple
        if item.units % item.multiple:
            keeps = torch.cat([torch.tensor([item.units]), keeps])
        gone = (item.units - keeps).numpy()
        loss = torch.as_tensor(np.interp(gone, item.curve.removed.numpy(), item.curve.loss.numpy()))
    allowed = keeps >= min(item.least, item.units)
    return _Offer(keeps[allowed], loss[allowed], item.unit_cost)


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
    offers = {name: _offer(item) for name, item in items.items()}
    _check_floor(items, sum(offer.least_cost for offer in offers.values()), budget)
    points = _choose(list(offers.values()), budget, bins)
    keeps = {name: int(offer.keeps[point]) for (name, offer), point in zip(offers.items(), points, strict=True)}
    _spend_slack(items, keeps, budget)
    return _selection(items, keeps)


def allocate_uniform(items: Mapping[str, Item], kinds: Mapping[str, str], budget: float) -> Selection:
    """The same number of units in every sublayer of a kind: the pair of numbers with the least total loss.

    Args:
        items: by sublayer.
        kinds: kind of each sublayer; at most two kinds.
        budget: as in `allocate`.

    Raises:
        BudgetError: as in `allocate`; also when sublayers of one kind have different sizes already.
    """
    found = [(kind, [item for name, item in items.items() if kinds[name] == kind]) for kind in {*kinds.values()}]
    groups = dict(sorted(found))
    for kind, group in groups.items():
        sizes = sorted({item.units for item in group})
        if len(sizes) > 1:
            raise BudgetError(
                f"the {kind} sublayers have {sizes} units: the same size everywhere needs a model that starts so"
            )
    sums = [_together(group) for group in groups.values()]
    _check_floor(items, sum(offer.least_cost for offer in sums), budget)
    best: tuple[float, tuple[int, ...]] = (torch.inf, ())
    for point in range(sums[0].keeps.numel()):
        size, loss = int(sums[0].keeps[point]), float(sums[0].loss[point])
        left = budget * (1 + _ROUNDING) - size * sums[0].unit_cost
        rest = [_largest_within(other, left) for other in sums[1:]]
        total = loss + sum(other[1] for other in rest)
        if left >= 0 and total < best[0]:
            best = (total, (size, *(other[0] for other in rest)))
    chosen = dict(zip(groups, best[1], strict=True))
    return _selection(items, {name: chosen[kinds[name]] for name in items})


def _together(group: list[Item]) -> _Offer:
    """Sublayers that shrink together: their losses at equal sizes, summed."""
    offers = [_offer(item, every_size=True) for item in group]
    loss = torch.stack([offer.loss for offer in offers]).sum(dim=0)
    return _Offer(offers[0].keeps, loss, sum(offer.unit_cost for offer in offers))


def _largest_within(offer: _Offer, budget: float) -> tuple[int, float]:
    """The largest size that costs at most `budget` and its loss; an infinite loss when none does."""
    fits = (offer.keeps * offer.unit_cost <= budget).nonzero().flatten()
    if fits.numel() == 0:
        return 0, torch.inf
    return int(offer.keeps[fits[0]]), float(offer.loss[fits[0]])


def _check_floor(items: Mapping[str, Item], floor: float, budget: float) -> None:
    """Raise BudgetError when the smallest model costs more than the budget."""
    if floor > budget * (1 + _ROUNDING):
        everything = sum(item.units * item.unit_cost for item in items.values())
        raise BudgetError(
            "the budget is below the smallest model this method builds: "
            f"ask for at least {floor / everything:.3g} of the encoder's MACs"
        )


def _selection(items: Mapping[str, Item], keeps: Mapping[str, int]) -> Selection:
    """The last units of each order."""
    return {name: item.curve.order[item.units - keeps[name] :].sort().values for name, item in items.items()}


def _choose(offers: list[_Offer], budget: float, bins: int) -> list[int]:
    """Index of the chosen point of each offer."""
    best = torch.zeros(bins + 1, dtype=torch.float64)
    choices: list[Tensor] = []
    spends: list[list[int]] = []
    for offered in offers:
        spend = torch.floor(offered.keeps * (offered.unit_cost * bins / budget) + 1e-9).long().tolist()
        table = torch.full_like(best, torch.inf)
        choice = torch.zeros(bins + 1, dtype=torch.long)
        for point, cost in enumerate(spend):
            if cost > bins:
                continue
            offer = best[: bins + 1 - cost] + offered.loss[point]
            better = offer < table[cost:]
            table[cost:] = torch.where(better, offer, table[cost:])
            choice[cost:] = torch.where(better, point, choice[cost:])
        best = table
        choices.append(choice)
        spends.append(spend)
    # rounding down hides less than one bin per item
    for capacity in range(bins, max(-1, bins - len(offers) - 1), -1):
        points = _trace_back(choices, spends, capacity) if torch.isfinite(best[capacity]) else None
        if points is not None and _cost(offers, points) <= budget * (1 + _ROUNDING):
            return points
    return [offer.keeps.numel() - 1 for offer in offers]


def _trace_back(choices: list[Tensor], spends: list[list[int]], capacity: int) -> list[int]:
    """The points that the dynamic programme chose for `capacity` bins."""
    points: list[int] = []
    for choice, spend in zip(reversed(choices), reversed(spends), strict=True):
        points.append(int(choice[capacity]))
        capacity -= spend[points[-1]]
    return points[::-1]


def _cost(offers: list[_Offer], points: list[int]) -> float:
    """True cost of one point per offer."""
    return sum(float(offer.keeps[point]) * offer.unit_cost for offer, point in zip(offers, points, strict=True))


def _spend_slack(items: Mapping[str, Item], keeps: dict[str, int], budget: float) -> None:
    """Take units back, the largest loss saved per cost first, while they fit. Changes `keeps`."""
    slack = budget - sum(keeps[name] * item.unit_cost for name, item in items.items())
    while True:
        steps = {name: min(item.multiple, item.units - keeps[name]) for name, item in items.items()}
        fits = [name for name, step in steps.items() if step > 0 and step * items[name].unit_cost <= slack]
        if not fits:
            return
        name = max(fits, key=lambda n: _saving(items[n].curve, items[n].units - keeps[n]) / items[n].unit_cost)
        keeps[name] += steps[name]
        slack -= steps[name] * items[name].unit_cost


def _saving(curve: Curve, removed: int) -> float:
    """Loss saved by taking back the last of `removed` units: the slope of the curve there."""
    upper = int(torch.searchsorted(curve.removed, torch.tensor(removed)))
    width = int(curve.removed[upper] - curve.removed[upper - 1])
    return float(curve.loss[upper] - curve.loss[upper - 1]) / width
