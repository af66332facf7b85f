"""Option values of every wrong kind, from Python: one line each, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from badness import bad_input
from faster_pruner.api.cut import cut_again
from faster_pruner.api.evaluate import evaluate
from faster_pruner.api.prune import prune
from faster_pruner.costs.budget import Budget, Limit, as_budget
from faster_pruner.costs.cost import Macs
from faster_pruner.data.tasks import Columns, Data, as_data
from faster_pruner.errors import BudgetError, OptionError
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Fisher,
    Method,
    Rounds,
    Scale,
    SecondOrder,
    SolverOptions,
    Switches,
    Weights,
    as_calibration,
    as_method,
    preset,
)

NAN, INF, DEEP = float("nan"), float("inf"), [[[]]] * 3
NO_NUMBER: list[Any] = [
    NAN,
    INF,
    -INF,
    -1,
    True,
    False,
    "1",
    "x",
    [],
    {},
    (1,),
    b"1",
    1j,
    object(),
    Decimal("NaN"),
    DEEP,
]
NO_COUNT: list[Any] = [*NO_NUMBER, 1.5, 1e300, -(10**30)]
NO_NAME: list[Any] = ["nope", "", "AUTO", 0, True, [], {}, b"auto", "default\n"]
SOLVER = SolverOptions(name="auto")
SOUND: dict[str, Any] = {"name": "m", "labels": True, "selection": Fisher(), "recovery": None}

# What is made with one field, and the values that are wrong there; None stands for a default where it is not listed.
FIELDS: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
    "memory_limit": (lambda v: CalibrationOptions(memory_limit=v), NO_COUNT),
    "rows": (lambda v: CalibrationOptions(rows=v), [*NO_COUNT, 0, None]),
    "seed": (lambda v: CalibrationOptions(seed=v), [*NO_COUNT, 10**22, 2**32, None]),
    "max_length": (lambda v: CalibrationOptions(max_length=v), [*NO_COUNT, -3, 0, 1, 2, None]),
    "tokens_per_batch": (lambda v: CalibrationOptions(tokens_per_batch=v), [*NO_COUNT, 0, None]),
    "precision": (lambda v: CalibrationOptions(precision=v), [*NO_NAME, None]),
    "calibration": (as_calibration, [0, True, "x", {}, [], 2048]),
    "solver": (lambda v: SolverOptions(name=v), [*NO_NAME, None]),
    "ridge": (lambda v: SolverOptions(name="cg", ridge=v), [*NO_NUMBER, None]),
    "tolerance": (lambda v: SolverOptions(name="cg", tolerance=v), [*NO_NUMBER, None]),
    "damp": (lambda v: SolverOptions(name="cg", damp=v), [*NO_NUMBER, None]),
    "max_iterations": (lambda v: SolverOptions(name="cg", max_iterations=v), [*NO_COUNT, 0]),
    "fisher.batch": (lambda v: Fisher(batch=v), [*NO_COUNT, 0, None]),
    "fisher.rearrange": (lambda v: Fisher(rearrange=v), [0, 1, None, "yes"]),
    "damping": (lambda v: SecondOrder(damping=v), [*NO_NUMBER, None]),
    "moment_tokens": (lambda v: SecondOrder(moment_tokens=v), [*NO_COUNT, 0]),
    "block": (lambda v: SecondOrder(block=v), [*NO_COUNT, 0, None]),
    "curvature": (lambda v: SecondOrder(curvature=v), [0, 1, None, "yes"]),
    "scale.solver": (lambda v: Scale(solver=v), [None, "cg", {}, 1]),
    "teacher": (lambda v: Scale(solver=SOLVER, teacher=v), [*NO_NAME, None]),
    "scale.limit": (lambda v: Scale(solver=SOLVER, limit=v), NO_NUMBER),
    "skip_first": (lambda v: Scale(solver=SOLVER, skip_first=v), [0, 1, None, "no"]),
    "align": (lambda v: Weights(solver=SOLVER, align=v), NO_NUMBER),
    "weights.solver": (lambda v: Weights(solver=v), [None, "cg", {}, 1]),
    "rounds": (lambda v: Rounds(count=v), [*NO_COUNT, 0, None]),
    "below": (lambda v: Rounds(below=v), [*NO_NUMBER, None]),
    "method.labels": (lambda v: Method(**{**SOUND, "labels": v}), [0, 1, None, "yes"]),
    "method.selection": (lambda v: Method(**{**SOUND, "selection": v}), [None, "fisher", SOLVER, Fisher]),
    "method.recovery": (lambda v: Method(**{**SOUND, "recovery": v}), ["none", SOLVER, Fisher(), 0]),
    "method.rounds": (lambda v: Method(**{**SOUND, "rounds": v}), [None, 2, "two"]),
    "method.round_to": (lambda v: Method(**{**SOUND, "round_to": v}), [*NO_COUNT, 0, None]),
    "method": (as_method, [None, 0, "nope", [], Fisher(), Method]),
    "preset": (preset, [*NO_NAME, None]),
    "switches.selection": (lambda v: Switches(selection=v), NO_NAME),
    "switches.recovery": (lambda v: Switches(recovery=v), NO_NAME),
    "switches.solver": (lambda v: Switches(solver=v), NO_NAME),
    "switches.ridge": (lambda v: Switches(ridge=v), NO_NUMBER),
    "switches.labels": (lambda v: Switches(labels=v), [0, 1, "no"]),
    "macs": (as_budget, [*NO_NUMBER, None, 0, 0.0, 1, 1.0, 1.5, "half", 10**400, np.float64("nan")]),
    "share": (lambda v: Limit(cost="bytes", share=v), [*NO_NUMBER, None, 0, 1]),
    "amount": (lambda v: Limit(cost="bytes", amount=v), [*NO_NUMBER, None, 0, 10**400]),
    "both": (lambda v: Limit(cost="bytes", share=0.5, amount=v), [1, "1"]),
    "cost": (lambda v: Limit(cost=v, share=0.5), [None, 1, "", "flops", Macs, object(), []]),
    "limits": (lambda v: Budget(macs=0.5, limits=v), [None, 1, "bytes", [], (0.5,), (None,), {"bytes": 1}]),
    "allocation": (lambda v: Budget(macs=0.5, allocation=v), [*NO_NAME, None]),
    "round_to": (lambda v: Budget(macs=0.5, round_to=v), [*NO_COUNT, 0, "Auto"]),
    "task": (lambda v: Data(task=v), [1, True, [], b"sst2"]),
    "folder": (lambda v: Data(folder=v), [1, True, [], b"rows"]),
    "columns": (lambda v: Data(columns=v), [None, "text", {"text": "body"}]),
    "column": (lambda v: Columns(text=v), [1, [], b"body"]),
    "data": (as_data, [None, 1, {}, ["sst2"]]),
    "evaluate": (lambda v: evaluate("none", "sst2", max_length=v), [*NO_COUNT, -3, 0, 2, None]),
    "cut": (lambda v: cut_again("none", macs=0.5, memory_limit=v), NO_COUNT),
    "prune": (lambda v: prune("none", "sst2", macs=v), [NAN, True, "half", None, []]),
}
CASES = [(name, i) for name, (_, values) in FIELDS.items() for i in range(len(values))]


@pytest.mark.parametrize(("name", "which"), CASES, ids=[f"{name}-{i}" for name, i in CASES])
def test_a_wrong_value_is_one_line(name: str, which: int) -> None:
    make, values = FIELDS[name]
    bad_input(f"{name} {which}")
    with pytest.raises((OptionError, BudgetError)) as caught:
        make(values[which])
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 300


@pytest.mark.parametrize(
    "make",
    [
        lambda: CalibrationOptions(rows=np.int64(5), seed=2**32 - 1, max_length=10**9, memory_limit=0),
        lambda: CalibrationOptions(rows=10**30),
        lambda: SolverOptions(name="cg", ridge=np.float32(0.5), tolerance=0, max_iterations=1),
        lambda: as_budget(Fraction(1, 2)),
        lambda: as_budget(np.float32(0.5)),
        lambda: Budget(macs=0.5, round_to=10**9, limits=(Limit(cost="bytes", amount=1e300),)),
        lambda: Scale(solver=SOLVER, limit=None),
    ],
)
def test_sound_values_are_taken(make: Callable[[], object]) -> None:
    assert make() == make()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_part_of_a_written_method_is_checked_when_it_is_read(name: str) -> None:
    """Each entry of the dictionary, at every depth, deleted or replaced."""
    sound = PRESETS[name].to_dict()
    assert Method.from_dict(sound) == PRESETS[name]

    def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        own = [path] if path else []
        return (
            own + [p for key, each in value.items() for p in paths(each, (*path, key))]
            if isinstance(value, dict)
            else own
        )

    for path in paths(sound):
        for junk in (object(), [], "junk", {"a": 1}, b""):
            if junk == "junk" and path == ("name",):
                continue
            raw = Method.to_dict(PRESETS[name])
            place = raw
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            bad_input(f"method {name}: {path} is {type(junk).__name__}")
            with pytest.raises(OptionError) as caught:
                Method.from_dict(raw)
            assert "\n" not in str(caught.value)
