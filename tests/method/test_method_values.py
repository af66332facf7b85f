"""A method is a nested value: checked where it is made, changed by switches, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from badness import bad_input
from faster_pruner.errors import OptionError
from faster_pruner.options import (
    PRESETS,
    RECOVERIES,
    SELECTIONS,
    CalibrationOptions,
    Fisher,
    Method,
    Rounds,
    Scale,
    SecondOrder,
    SolverOptions,
    Switches,
    Weights,
    customise,
    preset,
)

DEFAULT = PRESETS["default"]
SOLVER = SolverOptions(name="cg")


def kept(method: Method) -> Method:
    """Written as JSON and read back."""
    return Method.from_dict(json.loads(json.dumps(method.to_dict())))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name: str) -> None:
    assert kept(PRESETS[name]) == PRESETS[name]
    assert preset(name) is PRESETS[name]
    assert PRESETS[name].name == name


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("selection", [None, *SELECTIONS])
@pytest.mark.parametrize("recovery", [None, *RECOVERIES])
def test_customised_methods_survive_json(name: str, selection: str | None, recovery: str | None) -> None:
    switches = Switches(selection=selection, recovery=recovery, labels=True, solver="lsmr", ridge=0.5)
    method = customise(PRESETS[name], switches)
    assert kept(method) == method
    assert method.labels
    assert method.selection.name == (selection or PRESETS[name].selection.name)
    if recovery == "none":
        assert method.recovery is None
        return
    own = PRESETS[name].recovery
    assert method.recovery is not None
    assert method.recovery.name == (recovery or (own and own.name))
    assert (method.recovery.solver.name, method.recovery.solver.ridge) == ("lsmr", 0.5)


def test_switches_leave_alone_what_they_do_not_name() -> None:
    for method in PRESETS.values():
        assert customise(method, Switches()) == method
        assert customise(method, Switches(selection=method.selection.name)) == method
        assert method.recovery is not None
        assert customise(method, Switches(recovery=method.recovery.name)) == method
        ridged = customise(method, Switches(ridge=0.5))
        assert ridged.recovery is not None
        assert replace(ridged.recovery, solver=method.recovery.solver) == method.recovery
        assert ridged.recovery.solver == replace(method.recovery.solver, ridge=0.5)


def test_the_published_search_leaves_any_number_of_neurons() -> None:
    assert DEFAULT.round_to == 8
    assert customise(DEFAULT, Switches(selection="fisher")).round_to == 1
    assert customise(DEFAULT, Switches(selection="second-order")).round_to == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preset("best"), "preset 'best' does not exist; choose one of: default, kwon2022, li2024"),
        (lambda: SolverOptions(name="gauss"), "solver 'gauss' does not exist"),
        (lambda: SolverOptions(name="cg", ridge=-1.0), "ridge is -1; it must be at least 0"),
        (lambda: SolverOptions(name="cg", ridge=float("nan")), "ridge is nan"),
        (lambda: SolverOptions(name="cg", tolerance=-1.0), "tolerance is -1"),
        (lambda: SolverOptions(name="cg", max_iterations=0), "max_iterations is 0; it must be at least 1"),
        (lambda: SolverOptions(name="cg", damp=-1.0), "damp is -1"),
        (lambda: Fisher(batch=0), "examples per gradient is 0"),
        (lambda: SecondOrder(damping=-0.1), "damping is -0.1"),
        (lambda: SecondOrder(moment_tokens=0), "moment tokens is 0"),
        (lambda: SecondOrder(block=0), "elimination block is 0"),
        (lambda: Scale(solver=SOLVER, teacher="half"), "teacher 'half' does not exist"),
        (lambda: Scale(solver=SOLVER, limit=-1.0), "scale limit is -1"),
        (lambda: Weights(solver=SOLVER, align=-1.0), "alignment ridge is -1"),
        (lambda: Rounds(count=0), "rounds is 0"),
        (lambda: Rounds(below=-0.1), "share of a strong budget is -0.1"),
        (lambda: replace(DEFAULT, round_to=0), "round_to is 0"),
        (lambda: Switches(selection="third-order"), "selection 'third-order' does not exist"),
        (lambda: Switches(recovery="all"), "recovery 'all' does not exist; choose one of: none, scale, weights"),
        (lambda: Switches(solver="gauss"), "solver 'gauss' does not exist"),
        (lambda: Switches(ridge=-1.0), "ridge is -1"),
        (lambda: CalibrationOptions(rows=0), "calibration rows is 0"),
        (lambda: CalibrationOptions(max_length=2), "max length is 2"),
        (lambda: CalibrationOptions(tokens_per_batch=0), "tokens per batch is 0"),
        (lambda: CalibrationOptions(seed=-1), "seed is -1"),
        (lambda: CalibrationOptions(precision="float16"), "precision 'float16' does not exist"),
        (lambda: CalibrationOptions(memory_limit=-1), "memory limit is -1"),
    ],
)
def test_values_are_checked_where_they_are_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_what_is_read_back_is_checked_the_same_way() -> None:
    raw = DEFAULT.to_dict()
    for garbage in (
        {**raw, "rounds": {"count": 0, "below": 0.25}},
        {**raw, "selection": {"name": "third-order"}},
        {**raw, "selection": {"name": ["fisher"]}},
        {**raw, "recovery": {**raw["recovery"], "solver": "cg"}},
        {**raw, "recovery": {**raw["recovery"], "descent": {"epochs": 0}}},
        {**raw, "recovery": {**raw["recovery"], "descent": "yes"}},
        {**raw, "labels": 1},
        {**raw, "more": 1},
        {},
        [],
        None,
        "default",
    ):
        bad_input(f"a method from {garbage}")
        with pytest.raises(OptionError) as caught:
            Method.from_dict(garbage)
        assert "\n" not in str(caught.value)


def test_methods_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULT.labels = True


def test_steps_to_a_strong_budget_have_equal_ratios() -> None:
    assert DEFAULT.rounds.exponents(0.5) == DEFAULT.rounds.exponents(0.25) == [1.0]
    assert DEFAULT.rounds.exponents(0.16) == [0.5, 1.0]
    assert [0.16**e for e in DEFAULT.rounds.exponents(0.16)] == pytest.approx([0.4, 0.16])
    three = Rounds(count=3, below=1.0)
    assert [0.125**e for e in three.exponents(0.125)] == pytest.approx([0.5, 0.25, 0.125])
    assert PRESETS["kwon2022"].rounds.exponents(0.01) == [1.0]
