"""Budgets as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from badness import bad_input
from faster_pruner.costs.amounts import limit_of, seconds, share_or_amount, speed_up
from faster_pruner.costs.budget import Limit
from faster_pruner.errors import FasterPrunerError, OptionError


@pytest.mark.parametrize(
    ("text", "cost", "wanted"),
    [
        ("0.5", "macs", (0.5, None)),
        (".5", "bytes", (0.5, None)),
        ("50%", "parameters", (0.5, None)),
        (" 12.5 % ", "bytes", (0.125, None)),
        ("1", "macs", (1.0, None)),
        ("1.0", "macs", (1.0, None)),
        ("1.2G", "macs", (None, 1.2e9)),
        ("12M", "parameters", (None, 12e6)),
        ("0.5b", "parameters", (None, 0.5e9)),
        ("300k", "parameters", (None, 300e3)),
        ("40MB", "bytes", (None, 40e6)),
        ("40 mb", "bytes", (None, 40e6)),
        ("1.5GiB", "bytes", (None, 1.5 * 2**30)),
        ("800B", "bytes", (None, 800.0)),
        ("1e-1", "macs", (0.1, None)),
    ],
)
def test_shares_and_amounts(text: str, cost: Any, wanted: tuple[float | None, float | None]) -> None:
    assert share_or_amount(text, cost, option="--x") == pytest.approx(wanted)
    if wanted != (1.0, None):
        assert limit_of(text, cost, option="--x") == Limit(cost=cost, share=wanted[0], amount=wanted[1])


@given(text=st.text(max_size=12), cost=st.sampled_from(["macs", "parameters", "bytes"]))
def test_anything_else_is_one_line_with_an_example(text: str, cost: Any) -> None:
    """Whatever is typed is a limit or an error that names the option and shows how it is written."""
    said = ""
    try:
        limit = limit_of(text, cost, option="--size")
    except FasterPrunerError as error:
        bad_input(f"{cost} of {text!r}")
        said = str(error)
    else:
        assert (limit.share is None) != (limit.amount is None)
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "text", ["", "half", "-1", "0,5", "nan", "inf", "1e400GB", "5 apples", "40M B", "0x10", "1.2.3"]
)
def test_what_is_neither(text: str) -> None:
    bad_input(f"size of {text!r}")
    with pytest.raises(FasterPrunerError):
        limit_of(text, "bytes", option="--size")


@pytest.mark.parametrize(("text", "wanted"), [("8ms", 0.008), ("1.5 s", 1.5), ("250us", 250e-6), ("0.5S", 0.5)])
def test_times(text: str, wanted: float) -> None:
    assert seconds(text, option="--x") == pytest.approx(wanted)


@pytest.mark.parametrize(("text", "wanted"), [("2", 2.0), ("1.5x", 1.5), ("3 X", 3.0)])
def test_times_faster(text: str, wanted: float) -> None:
    assert speed_up(text, option="--x") == wanted


@pytest.mark.parametrize("text", ["8", "", "ms", "-8ms", "8 m", "8min", "0x8ms", "1,5s", "inf s"])
def test_what_is_no_time(text: str) -> None:
    bad_input(f"time of {text!r}")
    with pytest.raises(OptionError, match="like 8ms"):
        seconds(text, option="--x")


@pytest.mark.parametrize("text", ["1", "0.5", "", "x", "-2", "2%", "two", "1x", "nan"])
def test_what_is_not_faster(text: str) -> None:
    bad_input(f"speed-up of {text!r}")
    with pytest.raises(OptionError, match="like 2 or 1.5x"):
        speed_up(text, option="--x")
