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
# A range is from, to, step; so many budgets at most.
_PARTS_OF_A_RANGE, _MOST_BUDGETS = 3, 1000
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


def several(text: str, *, option: str, example: str = "0.9:0.1:0.1", shares: bool = True) -> list[str]:
    """Budgets as a range "0.9:0.1:0.1" or "40MB:20MB:10MB" (from, to, step; both ends count), or separated by commas.

    Args:
        text: of them; the numbers of a range have one suffix.
        option: that it was given for.
        example: of a range of this kind.
        shares: numbers without a suffix are shares.

    Raises:
        OptionError: it is neither, or the range has no end.
    """
    if ":" not in text:
        found = [each.strip() for each in text.split(",") if each.strip()]
        if not found:
            raise OptionError(f"{option} is {shown(text)}; give budgets like 0.7,0.5,0.3 or a range like {example}")
        return found
    what = f"{option} is {shown(text)}; "
    *ends, step = text.split(":")
    # which way it goes is said by the ends
    parts = [_NUMBER.fullmatch(part) for part in (*ends, step.strip().removeprefix("-"))]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len(parts) != _PARTS_OF_A_RANGE or len({p["unit"].lower() for p in known}) != 1:
        raise OptionError(f"{what}a range is from:to:step, each with the same suffix, for instance {example}")
    unit, (first, last, step) = known[0]["unit"], (float(part["number"]) for part in known)
    if shares and unit in ("", "%"):
        first, last, step, unit = *(_share(number, unit) for number in (first, last, step)), ""
        if not (0 < first <= 1 and 0 < last <= 1 and 1e-3 <= step <= 1):
            raise OptionError(f"{what}shares are above 0 and at most 1, steps at least 0.001: for instance {example}")
    most = _MOST_BUDGETS
    if min(first, last, step) <= 0 or abs(first - last) > most * step:
        raise OptionError(
            f"{what}numbers are above 0, and a range holds at most {most} of them: for instance {example}"
        )
    count = int(abs(first - last) / step + 1e-6)
    return [f"{first + (step if last > first else -step) * i:.6g}{unit}" for i in range(count + 1)]


def _share(number: float, unit: str) -> float:
    """A plain number, or percent."""
    return number / 100 if unit == "%" else number


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
