"""A family as JSON and back: how a checkpoint says what no row of the table says.

What comes from a file is not trusted: unknown fields, wrong types, and names that reach for what is not a model's own
are refused.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from faster_pruner.model.spec import Family

# A path of modules, an attribute or a config field; nothing private, so nothing that leads out of the model.
_PATH = re.compile(r"([A-Za-z0-9][A-Za-z0-9_]*)(\.[A-Za-z0-9][A-Za-z0-9_]*)*")
# Names of sublayers and stacks also have these.
_NAME = re.compile(r"[A-Za-z0-9_:. -]*")
_LONGEST, _MOST = 200, 4096


def family_to_json(family: Family) -> dict[str, Any]:
    """Nested dictionaries and lists of plain values; what is as by default is left out."""
    return cast("dict[str, Any]", _written(family))


def family_from_json(data: Any) -> Family:
    """The family that a checkpoint states. Raises ValueError, which says what is wrong with it."""
    family = cast(Family, _read(Family, data, "family"))
    if not family.stacks or not all(stack.sublayers for stack in family.stacks):
        raise ValueError("family has no sublayers")
    return family


def _written(value: Any) -> Any:
    if is_dataclass(value):
        return {
            each.name: _written(getattr(value, each.name))
            for each in fields(value)
            if each.default is MISSING or getattr(value, each.name) != each.default
        }
    if isinstance(value, tuple):
        return [_written(each) for each in cast("tuple[Any, ...]", value)]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`. Raises ValueError."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in inside):
            raise ValueError(f"{where} is {_shown(value)}; it must be one of {', '.join(map(str, inside))}")
        return value
    if origin in (Union, UnionType):
        return _one_of(inside, value, where)
    if origin is tuple:
        if not isinstance(value, list) or len(cast("list[Any]", value)) > _MOST:
            raise ValueError(f"{where} is {_shown(value)}; it must be a list")
        items = cast("list[Any]", value)
        return tuple(_read(inside[0], each, f"{where}[{place}]") for place, each in enumerate(items))
    if is_dataclass(kind):
        return _record(cast(type, kind), value, where)
    if type(value) is not kind:
        raise ValueError(f"{where} is {_shown(value)}; it must be of type {kind.__name__}")
    if kind is int and not 0 <= value < 1 << 31:
        raise ValueError(f"{where} is {_shown(value)}; it must be no negative number")
    if kind is str:
        _check_name(value, where)
    return value


def _check_name(value: str, where: str) -> None:
    pattern = _NAME if where.endswith((".name", ".kind", ".unit", ".memory")) and "followers" not in where else _PATH
    if len(value) > _LONGEST or (value and not pattern.fullmatch(value)):
        raise ValueError(f"{where} is {_shown(value)}, which names nothing inside a model")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first of the types that fits a value: None, a plain one, or a record."""
    if value is None and NoneType in kinds:
        return None
    records = [each for each in kinds if is_dataclass(each)]
    plain = next((each for each in kinds if each is type(value)), None)
    return _read(plain or (records[0] if records else kinds[0]), value, where)


def _record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_shown(value)}; it must be an object")
    given = cast("dict[str, Any]", value)
    known = {each.name: each for each in fields(kind)}
    for name in given:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {_shown(name)}")
    lacking = [name for name, each in known.items() if each.default is MISSING and name not in given]
    if lacking:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], each, f"{where}.{name}") for name, each in given.items()})


def _shown(value: Any) -> str:
    return repr(value)[:60]
