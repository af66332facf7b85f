"""Families as JSON: back to the same value, and nothing but a family is taken for one."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from badness import bad_input
from faster_pruner.model.literal import family_from_json, family_to_json
from faster_pruner.model.table import FAMILIES
from made_up import MADE_UP

EVERY = {**FAMILIES, **{name: made.family for name, made in MADE_UP.items()}}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_family_goes_through_json(name: str) -> None:
    text = json.dumps(family_to_json(EVERY[name]))
    assert family_from_json(json.loads(text)) == EVERY[name]
    # nothing is written that says what is so anyway
    assert "null" not in text
    assert '"rounded": false' not in text


def changed(path: list[Any], value: Any) -> Any:
    """The BERT family as JSON with one value replaced."""
    data: Any = copy.deepcopy(family_to_json(FAMILIES["bert"]))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


ATTENTION = ["stacks", 0, "sublayers", 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *((value, "must be an object") for value in (None, 3, "bert", [], [1])),
        ({}, "lacks stacks"),
        ({"stacks": []}, "no sublayers"),
        ({"stacks": {}}, "must be a list"),
        ({"stacks": [3]}, "must be an object"),
        (changed(["stacks", 0, "sublayers"], []), "no sublayers"),
        (changed(["stacks", 0, "surprise"], 1), "unknown field"),
        (changed(["stacks", 0, "calls"], -1), "negative"),
        (changed(["stacks", 0, "calls"], True), "type int"),
        (changed(["stacks", 0, "calls"], 1.0), "type int"),
        (changed([*ATTENTION, "join"], "glued"), "one of add, normed, parallel"),
        (changed([*ATTENTION, "projection"], ["a"]), "type str"),
        (changed([*ATTENTION, "projection"], "attention.__class__"), "names nothing inside a model"),
        (changed([*ATTENTION, "projection"], "a..b"), "names nothing"),
        (changed([*ATTENTION, "projection"], "a" * 300), "names nothing"),
        (changed([*ATTENTION, "producers", 0, "module"], "self._private"), "names nothing"),
        (changed([*ATTENTION, "producers", 0, "blocks"], ["equal", "all"]), "one of equal, columns, fixed"),
        (changed([*ATTENTION, "followers", 0, "name"], "forward.__globals__"), "names nothing"),
        (changed([*ATTENTION, "followers", 0, "axis"], "0"), "type int"),
        (changed([*ATTENTION, "unit_size"], {"module": "a", "attribute": "__dict__"}), "names nothing"),
        (changed([*ATTENTION, "mixes_tokens"], "yes"), "type bool"),
        (changed([*ATTENTION, "layers"], [0, "1"]), "type int"),
    ],
)
def test_what_is_no_family_is_refused(data: Any, message: str) -> None:
    bad_input(f"family {data!r}")
    with pytest.raises(ValueError, match=message) as caught:
        family_from_json(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
