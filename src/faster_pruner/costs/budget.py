"""Budgets: one or several limits on costs, and which sizes sublayers may have."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from faster_pruner.checks import is_number, made_of, one_of, shown, whole_number
from faster_pruner.costs.cost import Bytes, Cost, Macs, Parameters, total
from faster_pruner.costs.latency import LatencyLimit, TimeTable
from faster_pruner.errors import BudgetError
from faster_pruner.model.spec import Sublayer
from faster_pruner.options import ALLOCATIONS, AllocationName
from faster_pruner.results import LimitResult

CostName = Literal["macs", "parameters", "bytes"]
COSTS: tuple[CostName, ...] = ("macs", "parameters", "bytes")
_MOST = sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that a pruned model may cost.

    Attributes:
        cost: by name, or any other `Cost`.
        share: of what the dense model costs, inside (0, 1); None when an amount is given.
        amount: in the unit of the cost; None when a share is given.
    """

    cost: CostName | Cost
    share: float | None = None
    amount: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cost, str):
            one_of("cost", self.cost, COSTS)
        elif isinstance(self.cost, type) or not all(hasattr(self.cost, part) for part in ("name", "of", "fixed")):
            raise BudgetError(
                f"cost {shown(self.cost)} is none; choose one of: {', '.join(COSTS)}, or give a value with name, of() "
                "and fixed()"
            )
        if (self.share is None) == (self.amount is None):
            raise BudgetError(f"a limit on {self.name} is a share of the dense model or an amount: give one of the two")
        if self.share is not None and not (is_number(self.share) and 0.0 < self.share < 1.0):
            raise BudgetError(
                f"the share of the {self._words} to keep is {shown(self.share)}; it must be between 0 and 1, "
                "for instance 0.5 for half"
            )
        if self.amount is not None and not (is_number(self.amount) and 0.0 < self.amount <= _MOST):
            raise BudgetError(f"the limit on {self._words} is {shown(self.amount)}; it must be above 0")

    @property
    def name(self) -> str:
        """Name of the cost."""
        return self.cost if isinstance(self.cost, str) else self.cost.name

    @property
    def _words(self) -> str:
        """What is limited, in words."""
        return "encoder's MACs" if self.name == "macs" else self.name


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned model may cost, and which sizes its sublayers may have.

    Attributes:
        macs: share of the encoder's MACs to keep, inside (0, 1); None when `limits` says it all. 1 limits nothing: for
            where something else is made smaller (see `prunes`).
        limits: further limits; all are met together.
        latency: the most time that a forward may take; measured, and met together with the others.
        max_drop: the smallest model that is wanted loses at most so much: 0.01 for a point of a metric in percent, or a
            loss that rises by a hundredth. With it nothing else is limited.
        allocation: `free` lets every sublayer have its own size; `bucketed` takes sizes from a small set (quarters of
            the heads, eighths of the neurons); `uniform` gives all layers the same size; `stock` does so, too, and
            removes only what the stock config can express.
        round_to: numbers of neurons are a multiple of this, or all of them; "auto" measures which multiple the device
            likes; None leaves it to the method.
    """

    macs: float | None = None
    limits: tuple[Limit, ...] = ()
    latency: LatencyLimit | None = None
    max_drop: float | None = None
    allocation: AllocationName = "free"
    round_to: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        one_of("allocation", self.allocation, ALLOCATIONS)
        if isinstance(self.round_to, str):
            one_of("round_to", self.round_to, ("auto", "a number"))
        else:
            whole_number("round_to", self.round_to, 1, optional=True)
        made_of("limits", self.limits, (tuple,))
        for limit in self.limits:
            made_of("each of the limits", limit, (Limit,))
        made_of("latency", self.latency, (LatencyLimit, type(None)))
        if self.max_drop is not None:
            self._check_drop(self.max_drop)
        if not self.prunes and not self._keeps_all_macs:
            raise BudgetError("say what the pruned model may cost, for instance half of the MACs")

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """Every limit but the latency, which becomes one when it has been measured (`timed`)."""
        own = () if self.macs is None or self._keeps_all_macs else (Limit(cost="macs", share=self.macs),)
        return own + self.limits

    @property
    def prunes(self) -> bool:
        """Whether it limits anything: one that does not goes with what makes a model smaller in another way."""
        return bool(self.all_limits) or self.latency is not None or self.max_drop is not None

    def _check_drop(self, drop: float) -> None:
        """Raise BudgetError."""
        if not (is_number(drop) and 0.0 < drop < 1.0):
            raise BudgetError(f"the drop is {shown(drop)}; it must be between 0 and 1, like 0.01 for a point")
        if self.all_limits or self.latency is not None or self.macs is not None:
            raise BudgetError("the smallest model within a drop is searched for: limit nothing else with it")

    @property
    def _keeps_all_macs(self) -> bool:
        return is_number(self.macs) and self.macs == 1

    @property
    def times(self) -> TimeTable | None:
        """The table that its latency is measured by, where it has been."""
        return next((limit.cost for limit in self.limits if isinstance(limit.cost, TimeTable)), None)

    @property
    def time(self) -> float | None:
        """Seconds by that table."""
        return next((limit.amount for limit in self.limits if isinstance(limit.cost, TimeTable)), None)

    @property
    def counted(self) -> tuple[Limit, ...]:
        """Limits on what can be counted, whatever the machine."""
        return tuple(limit for limit in self.all_limits if not isinstance(limit.cost, TimeTable))

    def timed(self, table: TimeTable, seconds: float) -> Budget:
        """The same budget, whose latency is a limit of so many seconds by a measured table."""
        own = Limit(cost=table, amount=seconds)
        return replace(self, limits=(*(e for e in self.limits if not isinstance(e.cost, TimeTable)), own))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        limits = [{"cost": limit.name, "share": limit.share, "amount": limit.amount} for limit in self.counted]
        found = {"macs": self.macs, "limits": limits, "allocation": self.allocation, "round_to": self.round_to}
        found |= {} if self.latency is None else {"latency": asdict(self.latency)}
        return found | ({} if self.max_drop is None else {"max_drop": self.max_drop})


def as_budget(given: float | Budget) -> Budget:
    """A share of the encoder's MACs as a budget; a budget as it is. Raises BudgetError, also for one of everything."""
    budget = as_any_budget(given)
    if not budget.prunes:
        raise BudgetError(
            "the share of the encoder's MACs to keep is 1, which prunes nothing; it must be between 0 and 1, for "
            "instance 0.5 for half"
        )
    return budget


def as_any_budget(given: float | Budget) -> Budget:
    """The same, where a budget of everything is one, too."""
    return given if isinstance(given, Budget) else Budget(macs=given)


def in_amounts(
    budget: Budget, model: nn.Module, sublayers: Sequence[Sublayer], lengths: Mapping[str, float], *, bytes_each: int
) -> Budget:
    """The same budget with amounts in place of shares, for a model whose fixed parts have become smaller meanwhile.

    Args:
        budget: what was asked for.
        model: that the shares are shares of.
        sublayers: all of its sublayers that take part.
        lengths: tokens per row, by stack.
        bytes_each: bytes of a parameter in the weights file.
    """
    limits: list[Limit] = []
    for limit in budget.limits:
        if limit.share is not None:
            cost = _make(limit.cost, lengths, bytes_each)
            whole = total(cost, sublayers) + cost.fixed(model, sublayers)
            limits.append(Limit(cost=limit.cost, amount=limit.share * whole))
        else:
            limits.append(limit)
    return replace(budget, limits=tuple(limits))


@dataclass(frozen=True)
class Bound:
    """One limit for one model.

    Attributes:
        cost: what is limited.
        whole: what the sublayers of the dense model cost.
        most: what those of the pruned one may cost.
    """

    cost: Cost
    whole: float
    most: float

    @property
    def share(self) -> float:
        """How much is left of the sublayers."""
        return self.most / self.whole

    def power(self, exponent: float) -> float:
        """The limit of a step on the way to it."""
        return self.most if exponent == 1.0 else self.share**exponent * self.whole


def bounds_of(
    budget: Budget, model: nn.Module, sublayers: Sequence[Sublayer], lengths: Mapping[str, float], *, bytes_each: int
) -> list[Bound]:
    """The limits of a budget for one dense model; limits that it meets as it is bind nothing and are left out.

    Args:
        budget: what is asked for.
        model: the dense model.
        sublayers: all of them that take part.
        lengths: tokens per row, by stack.
        bytes_each: bytes of a parameter in the weights file.

    Raises:
        BudgetError: a limit that the model cannot meet without any sublayer, or none that it does not meet as it is.
    """
    if budget.latency is not None and budget.times is None:
        raise BudgetError("measure first how long sublayers take (api.latency.with_times)")
    found: list[Bound] = []
    for limit in budget.all_limits:
        cost = _make(limit.cost, lengths, bytes_each)
        whole, fixed = total(cost, sublayers), cost.fixed(model, sublayers)
        if not math.isfinite(whole + fixed):
            raise BudgetError(f"{limit.name}: the dense model costs {whole + fixed}; a cost must be a finite number")
        most = (limit.share * (whole + fixed) if limit.share is not None else limit.amount or 0.0) - fixed
        if most <= 0:
            raise BudgetError(
                f"{limit.name}: {most + fixed:.4g} are asked for, but what cannot be pruned takes {fixed:.4g} already"
            )
        if most < whole:
            found.append(Bound(cost, whole, most))
    if not found:
        raise BudgetError("the model meets this budget as it is: there is nothing to prune")
    return found


def spendings(
    budget: Budget,
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    keeps: Mapping[str, int],
    lengths: Mapping[str, float],
    *,
    bytes_each: int,
    dense: nn.Module | None = None,
) -> list[LimitResult]:
    """Every limit that can be counted: what the dense model costs, what was asked for, and what is left.

    Args:
        budget: what was asked for.
        model: that was pruned, at its sizes before.
        sublayers: its sublayers that took part.
        keeps: units that are left, by name.
        lengths: tokens per row, by stack.
        bytes_each: bytes of a parameter in the weights file.
        dense: the dense model, where that is another one: its other parts may be larger.
    """
    found: list[LimitResult] = []
    for limit in budget.counted:
        cost = _make(limit.cost, lengths, bytes_each)
        fixed = cost.fixed(model, sublayers)
        whole = total(cost, sublayers) + (fixed if dense is None else cost.fixed(dense, sublayers))
        left = total(cost, sublayers, keeps) + fixed
        asked = limit.share * whole if limit.share is not None else limit.amount or 0.0
        found.append(LimitResult(cost=limit.name, dense=whole, asked=asked, pruned=left))
    return found


def _make(cost: CostName | Cost, lengths: Mapping[str, float], bytes_each: int) -> Cost:
    """A cost by name; any other one as it is."""
    if not isinstance(cost, str):
        return cost
    if cost == "macs":
        return Macs(lengths)
    return Parameters() if cost == "parameters" else Bytes(bytes_each)
