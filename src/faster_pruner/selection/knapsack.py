"""Knapsack over the loss curves of all sublayers: the least total loss whose costs meet every limit.

Each item (a sublayer, or several that shrink together) offers sizes; a size has a loss and, for each limit, a cost,
which need not be linear. One limit is met by dynamic programming over a discretised cost (as in ZipLM's structured
search), several by an integer programme (scipy's HiGHS). What the block size of the curves leaves over is spent size by
size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import Tensor

from faster_pruner.errors import BudgetError
from faster_pruner.selection.elimination import Curve

_BINS = 20_000
_ROUNDING = 1e-12
# How far, relatively, the integer programme may stop from the best total loss, and after how many nodes it makes do
# with what it has: to prove the last thousandth can take hours. A limit in seconds would make what is found depend on
# the machine.
_GAP, _NODES = 1e-3, 20_000
_STDOUT = 1

# The costs [L, P] of keeping numbers of units [P], float64.
Costs = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Sublayers that are given one size together; one sublayer when nothing says otherwise.

    Attributes:
        curves: cumulative loss against units removed, one per sublayer; all of the same number of units.
        costs: of all of them together.
        least: the fewest units that may be kept.
        multiple: the units kept are a multiple of this, or all; losses between two points of a curve are interpolated.
    """

    curves: tuple[Curve, ...]
    costs: Costs
    least: int = 0
    multiple: int = 1

    @property
    def units(self) -> int:
        """Units before the removal."""
        return self.curves[0].order.numel()


@dataclass(frozen=True)
class Offer:
    """Sizes that an item may get, largest first.

    Attributes:
        keeps: [P], units kept.
        loss: [P] float64.
        costs: [L, P] float64.
    """

    keeps: Tensor
    loss: Tensor
    costs: Tensor


def offer(item: Item, *, every_size: bool) -> Offer:
    """What an item may become: every size that is allowed, or as few of them as its curve has points."""
    if len(item.curves) == 1 and item.multiple == 1 and not every_size:
        keeps = item.units - item.curves[0].removed
    else:
        keeps = torch.arange(item.units // item.multiple, -1, -1) * item.multiple
        if item.units % item.multiple:
            keeps = torch.cat([torch.tensor([item.units]), keeps])
    keeps = keeps[keeps >= min(item.least, item.units)]
    gone = (item.units - keeps).numpy()
    losses = [np.interp(gone, curve.removed.numpy(), curve.loss.numpy()) for curve in item.curves]
    return Offer(keeps, torch.as_tensor(np.sum(losses, axis=0)), item.costs(keeps).double())


def allocate(items: Mapping[str, Item], limits: Sequence[float], *, bins: int = _BINS) -> dict[str, int]:
    """The units to keep in each item.

    Args:
        items: by name.
        limits: [L], most that all of them may cost together.
        bins: resolution of the dynamic programme. Costs are rounded down to ``limit / bins``; the true cost of what it
            finds is checked, and the next smaller capacity is tried until it fits.

    Raises:
        BudgetError: when the smallest sizes already cost more than a limit.
    """
    most = torch.tensor(list(limits), dtype=torch.float64) * (1 + _ROUNDING)
    coarse = {name: offer(item, every_size=False) for name, item in items.items()}
    _check_floor(list(coarse.values()), most)
    choose = _choose_under_one if len(most) == 1 else _choose_under_all
    points = choose(list(coarse.values()), most, bins)
    chosen = {name: int(each.keeps[point]) for (name, each), point in zip(coarse.items(), points, strict=True)}
    _spend_slack({name: offer(item, every_size=True) for name, item in items.items()}, chosen, most)
    return chosen


def _check_floor(offers: list[Offer], limits: Tensor) -> None:
    """Raise BudgetError when the smallest model costs more than a limit."""
    floor = sum((each.costs[:, -1] for each in offers), torch.zeros_like(limits))
    whole = sum((each.costs[:, 0] for each in offers), torch.zeros_like(limits))
    short = (floor > limits).nonzero().flatten().tolist()
    if short:
        least = max(float(floor[i] / whole[i]) for i in short)
        raise BudgetError(
            f"the budget is below the smallest model this method builds: ask for at least {least:.3g} of the dense one"
        )


def _choose_under_one(offers: list[Offer], limits: Tensor, bins: int) -> list[int]:
    """Index of the chosen point of each offer, by dynamic programming."""
    limit = float(limits[0])
    best = torch.zeros(bins + 1, dtype=torch.float64)
    choices: list[Tensor] = []
    spends: list[list[int]] = []
    for offered in offers:
        spend = torch.floor(offered.costs[0] * (bins / limit) + 1e-9).long().tolist()
        table = torch.full_like(best, torch.inf)
        choice = torch.zeros(bins + 1, dtype=torch.long)
        for point, cost in enumerate(spend):
            if cost > bins:
                continue
            total = best[: bins + 1 - cost] + offered.loss[point]
            better = total < table[cost:]
            table[cost:] = torch.where(better, total, table[cost:])
            choice[cost:] = torch.where(better, point, choice[cost:])
        best = table
        choices.append(choice)
        spends.append(spend)
    # rounding down hides less than one bin per item
    for capacity in range(bins, max(-1, bins - len(offers) - 1), -1):
        points = _trace_back(choices, spends, capacity) if torch.isfinite(best[capacity]) else None
        if points is not None and bool((_spent(offers, points) <= limits).all()):
            return points
    return [offered.keeps.numel() - 1 for offered in offers]


def _trace_back(choices: list[Tensor], spends: list[list[int]], capacity: int) -> list[int]:
    """The points that the dynamic programme chose for `capacity` bins."""
    points: list[int] = []
    for choice, spend in zip(reversed(choices), reversed(spends), strict=True):
        points.append(int(choice[capacity]))
        capacity -= spend[points[-1]]
    return points[::-1]


def _choose_under_all(offers: list[Offer], limits: Tensor, bins: int) -> list[int]:
    """Index of the chosen point of each offer, by an integer programme: one 0/1 variable per point."""
    del bins
    sizes = [each.keeps.numel() for each in offers]
    losses = torch.cat([each.loss for each in offers]).numpy()
    costs = torch.cat([each.costs for each in offers], dim=1) / limits[:, None]
    columns = np.arange(sum(sizes))
    one_each = csr_array((np.ones(columns.size), (np.repeat(np.arange(len(sizes)), sizes), columns)))
    with _no_output():
        found: Any = milp(
            losses / max(float(losses.max()), np.finfo(np.float64).tiny),
            integrality=np.ones(columns.size),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(csr_array(costs.numpy()), -np.inf, 1)],
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
    if found.x is None:
        return [size - 1 for size in sizes]
    points = [int(part.argmax()) for part in np.split(found.x, np.cumsum(sizes)[:-1])]
    # the programme meets its limits up to its own tolerance
    return points if bool((_spent(offers, points) <= limits).all()) else _shrunk(offers, points, limits)


@contextmanager
def _no_output() -> Generator[None]:
    """Nothing reaches the standard output: HiGHS prints there now and then, past Python, whatever its options say."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # closed: nothing to keep clean
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDOUT)
            yield
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _shrunk(offers: list[Offer], points: list[int], limits: Tensor) -> list[int]:
    """Points of the next smaller sizes, the cheapest step first, until every limit is met."""
    points = list(points)
    while not bool((_spent(offers, points) <= limits).all()):
        steps = [i for i, each in enumerate(offers) if points[i] + 1 < each.keeps.numel()]
        smaller = min(steps, key=lambda i: float(offers[i].loss[points[i] + 1] - offers[i].loss[points[i]]))
        points[smaller] += 1
    return points


def _spent(offers: list[Offer], points: list[int]) -> Tensor:
    """[L]: true costs of one point per offer."""
    return torch.stack([each.costs[:, point] for each, point in zip(offers, points, strict=True)]).sum(dim=0)


def _spend_slack(offers: Mapping[str, Offer], chosen: dict[str, int], limits: Tensor) -> None:
    """Take the next larger sizes, the largest loss saved per cost first, while they fit. Changes `chosen`."""
    point = {name: int((each.keeps == chosen[name]).nonzero()) for name, each in offers.items()}
    slack = limits - _spent(list(offers.values()), [point[name] for name in offers])
    while True:
        best: tuple[float, str] = (-torch.inf, "")
        for name, each in offers.items():
            at = point[name]
            more = each.costs[:, at - 1] - each.costs[:, at] if at > 0 else None
            if more is None or not bool((more <= slack).all()):
                continue
            price = float((more / limits).max())
            saved = float(each.loss[at] - each.loss[at - 1])
            best = max(best, (saved / max(price, _ROUNDING), name), key=lambda found: found[0])
        name = best[1]
        if not name:
            return
        slack = slack - (offers[name].costs[:, point[name] - 1] - offers[name].costs[:, point[name]])
        point[name] -= 1
        chosen[name] = int(offers[name].keeps[point[name]])


def kept_units(curve: Curve, keep: int) -> Tensor:
    """Sorted indices of the last `keep` units of a curve's order."""
    return curve.order[curve.order.numel() - keep :].sort().values
