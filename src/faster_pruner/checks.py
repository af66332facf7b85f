"""What option values may be. A wrong type is as wrong as a wrong value: every check raises OptionError for both.

True and False are no numbers here, and neither are NaN and infinity.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

from faster_pruner.errors import OptionError

_LONGEST_SHOWN = 60
# Seeds that torch and numpy both take, also after the small sums that derive others from them.
LARGEST_SEED = 2**32 - 1


def shown(value: object) -> str:
    """A value as an error message shows it: on one line, cut short."""
    try:
        text = f"{value:g}" if isinstance(value, float) else " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python prints, or somebody's own __repr__
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def one_of(what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise OptionError when `value` is not allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f"{what} {shown(value)} does not exist; choose one of: {', '.join(allowed)}")


def is_number(value: object) -> bool:
    """Whether `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def at_least(what: str, value: object, least: float, *, optional: bool = False) -> None:
    """Raise OptionError when `value` is no number of `least` or more; None is one where it is `optional`."""
    if value is None and optional:
        return
    if not isinstance(value, Real) or not is_number(value):
        raise OptionError(f"{what} is {shown(value)}; it must be a finite number of at least {least:g}")
    if value < least:
        raise OptionError(f"{what} is {shown(value)}; it must be at least {least:g}")


def whole_number(what: str, value: object, least: int, most: int | None = None, *, optional: bool = False) -> None:
    """Raise OptionError when `value` is no whole number from `least` to `most`; None is one where it is `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{what} is {shown(value)}; it must be a whole number of at least {least}")
    if value < least:
        raise OptionError(f"{what} is {shown(value)}; it must be at least {least}")
    if most is not None and int(value) > most:
        raise OptionError(f"{what} is {shown(value)}; it must be at most {most}")


def yes_or_no(what: str, value: object) -> None:
    """Raise OptionError when `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{what} is {shown(value)}; it must be True or False")


def made_of(what: str, value: object, kinds: tuple[type, ...]) -> None:
    """Raise OptionError when `value` is of none of these classes."""
    if not isinstance(value, kinds):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise OptionError(f"{what} is {shown(value)}; it must be {names}")
