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
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
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


def several(text: str, *, option: str) -> list[str]:
    """Budgets as a range of shares "0.9:0.1:0.1" (from, to, step; both ends count), or separated by commas.

    Raises:
        OptionError: it is neither, or the range has no end.
    """
    if ":" not in text:
        found = [each.strip() for each in text.split(",") if each.strip()]
        if not found:
            raise OptionError(f"{option} is {shown(text)}; give budgets like 0.7,0.5,0.3 or a range like 0.9:0.1:0.1")
        return found
    parts = text.split(":")
    example = "a range is from:to:step, for instance 0.9:0.1:0.1"
    try:
        first, last, step = (_share(part) for part in parts)
    except ValueError as error:
        raise OptionError(f"{option} is {shown(text)}; {example}") from error
    step = abs(step)
    if not (0 < first <= 1 and 0 < last <= 1 and 1e-3 <= step <= 1):
        raise OptionError(
            f"{option} is {shown(text)}; shares are above 0 and at most 1, steps at least 0.001: {example}"
        )
    count = int(abs(first - last) / step + 1e-6)
    return [f"{first + (step if last > first else -step) * i:.6g}" for i in range(count + 1)]


def _share(text: str) -> float:
    """A plain number, or percent. Raises ValueError."""
    return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)


def limit_of(text: str, cost: CostName, *, option: str) -> Limit:
    """A limit as it is written. Raises BudgetError, OptionError."""
    share, amount = share_or_amount(text, cost, option=option)
    return Limit(cost=cost, share=share, amount=amount)


def seconds(text: str, *, option: str) -> float:
    """A time with its unit: "8ms", "1.5 s". Raises OptionError."""
    found = _NUMBER.fullmatch(text)
    if found is None or found["unit"].lower() not in _TIMES:
        raise OptionError(f"{option} is {shown(text)}; it must be a time with its unit ({', '.join(_TIMES)}), like 8ms")
    return float(found["number"]) * _TIMES[found["unit"].lower()]


def drop(text: str, *, option: str) -> float:
    """The most that may be lost, in percent of a metric: "1%", "0.5". Raises OptionError."""
    found = _NUMBER.fullmatch(text)
    percent = float(found["number"]) if found is not None and found["unit"] in ("", "%") else 0.0
    if not 0 < percent < 100:
        raise OptionError(f"{option} is {shown(text)}; it must be percent of a metric, above 0 and below 100, like 1%")
    return percent / 100


def speed_up(text: str, *, option: str) -> float:
    """How many times faster: "2", "1.5x". Raises OptionError."""
    found = _NUMBER.fullmatch(text)
    number = float(found["number"]) if found is not None and found["unit"].lower() in ("", "x") else 0.0
    if number <= 1:
        raise OptionError(f"{option} is {shown(text)}; it must be a number above 1, like 2 or 1.5x")
    return number
