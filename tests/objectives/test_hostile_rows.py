"""Labels and texts of every wrong kind: one line that names the row of the file, the column, and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from badness import bad_input
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.classification import encode

TASK = Task(name="t", text_column="text", pair_column="other")
HUGE = 10**400
NEITHER = [
    None,
    float("nan"),
    float("inf"),
    -float("inf"),
    {},
    {"a": 1},
    b"1",
    HUGE,
    -HUGE,
    "",
    " ",
    "\n",
    "1e999",
    object(),
]
NO_CLASS = [*NEITHER, [], [0], [1, 0], -1, 2, 0.5, "2", "-1", "x", "nan", "inf", 1e300, (0,), {0}, 1j]
NO_TARGET = [*NEITHER, [], [0.5], True, False, "x", "nan", "inf", 1e39, -1e39, {0.5}]
NO_LIST = [
    *NEITHER,
    1,
    0.5,
    True,
    "art",
    {0, 1},
    [None],
    [3],
    [0, 0, 0.5],
    [[0]],
    ["x"],
    [float("nan")],
    [HUGE],
    [b"1"],
]
NO_TEXT = [None, 1, 1.5, float("nan"), True, b"w1", [], ["w1"], {"text": "w1"}, {}, HUGE, "\ud800", "w1 \udfff"]
KINDS: dict[str, tuple[int, dict[str, Any], list[Any], Any]] = {
    "class": (2, {}, NO_CLASS, 1),
    "three-class": (3, {}, [True, False, 3, None], 1),
    "target": (1, {}, NO_TARGET, 0.5),
    "targets": (2, {"problem_type": "regression"}, [*NO_TARGET, [1], [1, "x"], [1, None], [1, 2, 3]], [0.5, 1]),
    "several": (
        3,
        {"problem_type": "multi_label_classification"},
        NO_LIST,
        [0, 1, 0],
    ),
}
CONFIGS = {name: tiny.make_model(labels=labels, **changes).config for name, (labels, changes, _, _) in KINDS.items()}
TOKENIZER = tiny.make_tokenizer()
CASES = [(name, i) for name, (_, _, bad, _) in KINDS.items() for i in range(len(bad))]


def refused(rows: list[dict[str, Any]], kind: str = "class", *, labelled: bool = True) -> str:
    """The message for rows of a file that have been shuffled: the wrong one was the 7th there."""
    given = Rows(rows, numbers=[12, 3, 7][: len(rows)], place="train.jsonl")
    with pytest.raises(DataError) as caught:
        encode(given, TASK, TOKENIZER, config=CONFIGS[kind], limit=16, labelled=labelled)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(("kind", "which"), CASES)
def test_a_bad_label_is_one_line_that_names_its_place(kind: str, which: int) -> None:
    _, _, bad, good = KINDS[kind]
    bad_input(f"label {kind} {which}")
    rows = [{"text": "w1", "other": "w2", "label": label} for label in (good, good, bad[which])]
    message = refused(rows, kind)
    assert message.startswith("train.jsonl, row 7 (counted from 1): label ")
    assert "in column 'label' is not " in message
    # without labels nobody looks at them
    assert len(encode(rows, TASK, TOKENIZER, config=CONFIGS[kind], limit=16, labelled=False)) == 3


@pytest.mark.parametrize("which", range(len(NO_TEXT)))
@pytest.mark.parametrize("column", ["text", "other"])
def test_a_bad_text_is_one_line_that_names_its_place(which: int, column: str) -> None:
    bad_input(f"{column} {which}")
    rows: list[dict[str, Any]] = [{"text": "w1", "other": "w2", "label": 0} for _ in range(3)]
    rows[2][column] = NO_TEXT[which]
    message = refused(rows, labelled=False)
    assert message.startswith("train.jsonl, row 7 (counted from 1)")
    assert f"column {column!r}" in message


@pytest.mark.parametrize("column", ["text", "other", "label"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_column_that_is_missing_is_named(column: str, everywhere: bool) -> None:
    bad_input(f"no column {column}, everywhere: {everywhere}")
    rows: list[dict[str, Any]] = [{"text": "w1", "other": "w2", "label": 0} for _ in range(3)]
    for row in rows if everywhere else rows[2:]:
        del row[column]
    where = "the data has" if everywhere else "train.jsonl, row 7 (counted from 1) has"
    assert refused(rows).startswith(f"{where} no column {column!r}; it has: ")


def test_no_row_and_no_token_are_refused() -> None:
    from tokenizers import processors

    bad_input("no rows")
    assert refused([]) == "there are no rows"
    bare = tiny.make_tokenizer()
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    bad_input("a row without a token")
    with pytest.raises(
        DataError, match=r"row 2 \(counted from 1\): the tokenizer makes no token of '' in column 'text'"
    ):
        encode(
            [{"text": "w1"}, {"text": ""}],
            Task(name="", text_column="text"),
            bare,
            config=CONFIGS["class"],
            limit=9,
            labelled=False,
        )


def test_what_files_of_texts_hold_is_read() -> None:
    for kind, given, wanted in (
        ("class", ["0", "1", "1.0", "LABEL_1", True, 1.0], [0, 1, 1, 1, 1, 1]),
        ("target", ["0.5", "3", "-1e3", 2], [0.5, 3.0, -1000.0, 2.0]),
        (
            "several",
            [[0, 1, 0], ["LABEL_0", "label_2"], [], [2], [True, False, True]],
            [[0, 1, 0], [1, 0, 1], [0] * 3, [0, 0, 1], [1, 0, 1]],
        ),
    ):
        rows = [{"text": "", "other": "null", "label": label} for label in given]
        assert encode(rows, TASK, TOKENIZER, config=CONFIGS[kind], limit=16).labels == wanted
