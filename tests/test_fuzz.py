"""Whatever a config, a row or an option holds: it works, or it is one error of ours on one line. Never a traceback.

Bounded and derandomised: every run tries the same inputs.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from badness import bad_input
from command import run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.costs.budget import Budget, Limit
from faster_pruner.data.tasks import Task
from faster_pruner.errors import FasterPrunerError
from faster_pruner.objectives.classification import encode
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Descent,
    Fisher,
    Method,
    Rounds,
    Scale,
    SecondOrder,
    SolverOptions,
    Switches,
    Weights,
)


def bounded(examples: int) -> settings:
    """Few examples, always the same ones."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 100)
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["32", "gelu", "auto", "cpu", "\ud800", "\n", "0.5", "nan"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def survives(what: str, action: Callable[[], object]) -> None:
    """Runs it: success, or an error of ours whose text is one line."""
    try:
        action()
    except FasterPrunerError as error:
        message = str(error)
    else:
        return
    bad_input(what)
    assert message.strip()
    assert "\n" not in message


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose config is changed in place; its weights are a link."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    tiny.save_checkpoint(folder)
    shutil.copy(folder / "config.json", folder.parent / "sound.json")
    return folder


@bounded(120)
@given(data=st.data())
def test_configs(room: Path, data: st.DataObject) -> None:
    config = json.loads((room.parent / "sound.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(config)))
        if data.draw(st.booleans()):
            config[key] = data.draw(JSON)
        else:
            del config[key]
        if not config:
            break
    (room / "config.json").write_text(json.dumps(config))
    survives(f"config {config}", lambda: open_checkpoint(str(room), device=torch.device("cpu")))


CONFIGS = [
    tiny.make_model(labels=2).config,
    tiny.make_model(labels=3, problem_type="multi_label_classification").config,
    tiny.make_model(labels=1).config,
    tiny.make_model(labels=2, problem_type="regression").config,
]
TOKENIZER = tiny.make_tokenizer()


@bounded(400)
@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={"text": st.text(max_size=9) | JSON, "label": st.integers(0, 2) | JSON}),
        max_size=3,
    ),
    which=st.integers(0, len(CONFIGS) - 1),
    labelled=st.booleans(),
)
def test_rows(rows: list[dict[str, Any]], which: int, labelled: bool) -> None:
    task = Task(name="", text_column="text")
    survives(
        f"rows {rows}",
        lambda: encode(rows, task, TOKENIZER, config=CONFIGS[which], limit=9, labelled=labelled),
    )


MADE: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "calibration": (CalibrationOptions, tuple(CalibrationOptions.__dataclass_fields__)),
    "budget": (Budget, tuple(Budget.__dataclass_fields__)),
    "limit": (Limit, tuple(Limit.__dataclass_fields__)),
    "solver": (SolverOptions, tuple(SolverOptions.__dataclass_fields__)),
    "fisher": (Fisher, ("batch", "rearrange")),
    "second order": (SecondOrder, ("damping", "moment_tokens", "block")),
    "scale": (
        lambda **given: Scale(**{"solver": SolverOptions(name="cg"), **given}),
        ("solver", "teacher", "limit", "skip_first", "read_tokens_only", "whole_targets"),
    ),
    "weights": (
        lambda **given: Weights(**{"solver": SolverOptions(name="cg"), **given}),
        ("solver", "align", "descent"),
    ),
    "descent": (Descent, ("epochs", "rate", "tokens_per_step", "below")),
    "rounds": (Rounds, ("count", "below")),
    "switches": (Switches, tuple(Switches.__dataclass_fields__)),
}
NEEDED = {"limit": {"cost": "bytes", "share": 0.5}, "budget": {"macs": 0.5}, "solver": {"name": "cg"}}
# Values that are right for some field or other, so that what lies behind the first check is reached, too.
LIKELY = st.sampled_from(
    [0, 1, 2, 8, 0.5, 1e-3, True, None, "auto", "cg", "macs", "free", "dense", "fisher", "weights"]
)


@bounded(500)
@given(data=st.data())
def test_options(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(MADE)))
    make, names = MADE[kind]
    changed = data.draw(st.dictionaries(st.sampled_from(names), LIKELY | JSON, min_size=1, max_size=3))
    values = {**NEEDED.get(kind, {}), **changed}
    survives(f"{kind} {values}", lambda: make(**values))


@bounded(200)
@given(data=st.data())
def test_methods_that_were_written(data: st.DataObject) -> None:
    raw = copy.deepcopy(PRESETS[data.draw(st.sampled_from(sorted(PRESETS)))].to_dict())
    place: Any = raw
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and data.draw(st.booleans()):
            place = place[key]
            continue
        if data.draw(st.booleans()):
            place[key] = data.draw(LIKELY | JSON)
        else:
            del place[key]
        break
    survives(f"method {raw}", lambda: Method.from_dict(raw))


FLAGS = (
    "--macs",
    "--calibration-rows",
    "--seed",
    "--max-length",
    "--memory-limit",
    "--ridge",
    "--round-to",
    "--allocation",
    "--preset",
    "--selection",
    "--recovery",
    "--solver",
    "--precision",
    "--device",
    "--task",
    "--text-column",
    "--label-column",
    "--text-pair-column",
    "--data",
)
WORDS = st.sampled_from(
    [
        "nan",
        "inf",
        "-inf",
        "1e300",
        "-1",
        "0",
        "-0.5",
        "1.5",
        "half",
        "",
        " ",
        "1" * 23,
        "meta",
        "\n",
        "0x10",
        "1_0",
        "²",
    ]
) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6).map(lambda text: text.lstrip("-"))


@bounded(120)
@given(changes=st.dictionaries(st.sampled_from(FLAGS), WORDS, min_size=1, max_size=2))
def test_the_command_line(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, str]) -> None:
    """No model is there: options are looked at first, and what is sound ends at the model."""
    common = {"--macs": "0.5", "--task": "sst2", "--data": str(Path(__file__).parent)}
    words = [f"{flag}={value}" for flag, value in {**common, **changes}.items()]
    absent = str(Path(__file__).with_name("no-such-model"))
    output = str(tmp_path_factory.getbasetemp() / "fuzz-output")
    code, text, errors = run("prune", absent, *words, "--output", output)
    bad_input(f"prune {changes}")
    own = [line for line in errors.splitlines() if line.startswith("faster-pruner: error: ")]
    assert code == 2, (changes, code, text, errors)
    assert len(own) == 1
    assert errors.rstrip("\n").endswith(own[0])
    assert text == ""
    assert "Traceback" not in errors
    assert not os.path.lexists(output)
