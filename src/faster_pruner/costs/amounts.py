"""Budgets as people write them: shares (0.5, 50%) and amounts (12M parameters, 40MB)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from faster_pruner.checks import shown
from faster_pruner.costs.budget import CostName, Limit
from faster_pruner.errors import OptionError

_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_SIZES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS: Mapping[CostName, Mapping[str, float]] = {"macs": _COUNTS, "parameters": _COUNTS, "bytes": _SIZES}
_EXAMPLES: Mapping[CostName, str] = {"macs": "1.2G", "parameters": "12M", "bytes": "40MB"}
_NUMBER = re.compile(r"\s*(?P<number>\d+\.?\d*(e[+-]?\d+)?|\.\d+)\s*(?P<unit>%|[a-z]*)\s*", re.IGNORECASE)


def share_or_amount(text: str, cost: CostName, *, option: str) -> tuple[float | None, float | None]:
    """A share of what the dense model costs, or an amount: one of the two is None.

    Args:
        text: "0.5", "50%" or "40MB".
        cost: what it is of, which says which suffixes there are.
        option: that it was given for.

    Raises:
        OptionError: it is neither.
    """
    found, units = _NUMBER.fullmatch(text), _UNITS[cost]
    example = f"a share of the dense model like 0.5 or 50%, or an amount like {_EXAMPLES[cost]}"
    if found is None:
        raise OptionError(f"{option} is {shown(text)}; it must be {example}")
    number, unit = float(found["number"]), found["unit"].lower()
    if unit == "%":
        return number / 100, None
    if unit:
        if unit not in units:
            known = ", ".join(units)
            raise OptionError(f"{option} is {shown(text)}; {found['unit']!r} is no suffix for it, use one of: {known}")
        return None, number * units[unit]
    if number > 1:
        raise OptionError(
            f"{option} is {shown(text)}: a share is between 0 and 1, an amount has a suffix; give {example}"
        )
    return number, None


def limit_of(text: str, cost: CostName, *, option: str) -> Limit:
    """A limit as it is written. Raises BudgetError, OptionError."""
    share, amount = share_or_amount(text, cost, option=option)
    return Limit(cost=cost, share=share, amount=amount)
