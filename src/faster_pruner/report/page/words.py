"""Numbers as the page writes them."""

from __future__ import annotations

import math

from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.report.summary import format_metric
from faster_pruner.results import LimitResult, SublayerResult

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
UNKNOWN = "not known"


def metric(name: str, value: float) -> str:
    """A metric's value."""
    return format_metric(name, value).replace("-", MINUS) if math.isfinite(value) else UNKNOWN


def change(name: str, value: float) -> str:
    """By how much a metric changed, with its sign."""
    digits = 4 if name in IN_NATURAL_UNITS else 2
    return f"{value:+.{digits}f}".replace("-", MINUS) if math.isfinite(value) else UNKNOWN


def interval(name: str, both: tuple[float, float], *, signed: bool = False) -> str:
    """An interval."""
    return " to ".join((change if signed else metric)(name, value) for value in both)


def percent(share: float) -> str:
    """A share with a digit behind the point."""
    return f"{share:.1%}" if math.isfinite(share) else UNKNOWN


def ratio(part: float, whole: float) -> float:
    """A share; NaN where there is no whole."""
    return part / whole if whole else math.nan


def count(value: float) -> str:
    """12.3 M, 4.5 k, 17."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def size(count_of_bytes: float) -> str:
    """Of a file."""
    return f"{count_of_bytes / 1e6:.1f} MB" if count_of_bytes >= 1e5 else f"{count_of_bytes / 1e3:.1f} kB"


def amount(limit: LimitResult, value: float) -> str:
    """What a limit of a budget is about: what is measured is a time."""
    if limit.measured is not None:
        return f"{1000 * value:.3g} ms" if math.isfinite(value) else UNKNOWN
    return size(value) if limit.cost == "bytes" else count(value)


def faster(speed_up: float) -> str:
    """A speed-up."""
    return f"{speed_up:.2f}{TIMES}"


def seconds(value: float) -> str:
    """A time."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def several(unit: str) -> str:
    """More than one of a unit."""
    return f"{unit}s"


def parts_of(sublayer: SublayerResult) -> tuple[str, str, str]:
    """Stack, layer and kind in the name of a sublayer; what is called in another way is a kind of its own."""
    parts = sublayer.name.rsplit(".", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", sublayer.name)


def kept_of(sublayers: list[SublayerResult]) -> str:
    """What is left of some sublayers of one kind."""
    units, before = sum(s.units for s in sublayers), sum(s.units_before for s in sublayers)
    return f"{units} of {before} {several(sublayers[0].unit)}"
