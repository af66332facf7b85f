"""result.json, read back: what it holds of a pruned model, and of a pruned vocabulary."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from faster_pruner.errors import DataError
from faster_pruner.host.marks import RESULT_FILE
from faster_pruner.results import PruneReport
from faster_pruner.vocabulary.measured import VOCABULARY, VocabularyReport

T = TypeVar("T")

# A key that only the result of a pruned model has.
_OF_A_MODEL = "sublayers"


@dataclass(frozen=True)
class Stored:
    """What a folder holds.

    Attributes:
        report: of a model; None where nothing but its vocabulary was pruned.
        vocabulary: of its tokens; None where those are as they were.
        masks: by name of sublayer a digit for each unit of the dense model, 1 kept; empty where they are not there.
    """

    report: PruneReport | None
    vocabulary: VocabularyReport | None
    masks: dict[str, str]


def read_result(folder: Path, masks: str) -> Stored:
    """What a folder's result.json holds, also one of an earlier version, which said less.

    Args:
        folder: that a run wrote.
        masks: name of the file of the masks.

    Raises:
        DataError: there is none, or it is not what was written.
    """
    file = folder / RESULT_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(folder)!r} has no {RESULT_FILE} that can be read: give a folder of results") from error
    known = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    try:
        report = built(PruneReport, known) if _OF_A_MODEL in known else None
        vocabulary = built(VocabularyReport, known[VOCABULARY]) if known.get(VOCABULARY) else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{str(file)!r} is not what was written: {error}") from error
    if report is None and vocabulary is None:
        raise DataError(f"{str(file)!r} is not what was written: it holds no result of a pruned model")
    return Stored(report, vocabulary, _masks(folder / masks))


def _masks(file: Path) -> dict[str, str]:
    """Masks by name; pictures do without them."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {name: bits for name, bits in known.items() if isinstance(bits, str) and not set(bits) - {"0", "1"}}


def built(kind: type[T], raw: object, where: str = "") -> T:
    """A dataclass from what `asdict` and JSON made of one; what it has a default for may be missing.

    Args:
        kind: the dataclass.
        raw: a mapping by field; further keys are left out.
        where: what it is called in errors.

    Raises:
        ValueError: something is missing, or of another type.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the whole'} is no object")
    given, hints = cast("dict[str, Any]", raw), get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(cast(Any, kind)):
        path = f"{where}.{field.name}".lstrip(".")
        if field.name in given:
            values[field.name] = _value(hints[field.name], given[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{path} is missing")
    return kind(**values)


def _value(hint: Any, raw: Any, where: str) -> Any:
    """One value of a field. Raises ValueError."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return raw
    if origin is UnionType:
        (wanted,) = (each for each in inside if each is not type(None))
        return None if raw is None else _value(wanted, raw, where)
    if hint is float:
        # JSON has no NaN
        number = math.nan if raw is None else raw
        if isinstance(number, int | float) and not isinstance(number, bool):
            return float(number)
    elif is_dataclass(hint):
        return built(cast("type[Any]", hint), raw, where)
    elif origin is list and isinstance(raw, list):
        return [_value(inside[0], each, where) for each in cast("list[Any]", raw)]
    elif origin is tuple and isinstance(raw, list) and len(cast("list[Any]", raw)) == len(inside):
        return tuple(_value(own, each, where) for own, each in zip(inside, cast("list[Any]", raw), strict=True))
    elif origin is dict and isinstance(raw, dict):
        return {str(key): _value(inside[1], each, where) for key, each in cast("dict[str, Any]", raw).items()}
    elif isinstance(hint, type) and type(raw) is hint:
        return raw
    raise ValueError(f"{where} is not what it should be")
