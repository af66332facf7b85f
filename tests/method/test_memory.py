"""Memory by arithmetic, and as the system sees it."""

from __future__ import annotations

import pytest
import torch

import tiny
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.data.batches import pack, padded_tokens, rows_of, rows_with
from faster_pruner.method.memory import Tokens, memory_terms, peak_memory, reset_peak, within_limit

CPU = torch.device("cpu")


def test_tokens_are_those_of_the_batches() -> None:
    rows = tiny.make_rows(30, longest=20)
    first = rows_with(rows.lengths, 100)
    batches = pack(rows, tokens_per_batch=60, device=CPU, differentiated=first)
    found = Tokens.of(batches)
    assert found.real == sum(rows.lengths)
    assert found.differentiated == sum(rows.lengths[:first])
    assert found.padded == sum(batch.inputs["input_ids"].numel() for batch in batches)
    assert found.padded == padded_tokens(rows.lengths, tokens_per_batch=60, differentiated=first)


def test_rows_may_be_named_again() -> None:
    rows = tiny.make_rows(5)
    found = rows_of(rows, [4, 0, 0])
    assert [list(row["input_ids"]) for row in found.tokens] == [list(rows.tokens[i]["input_ids"]) for i in (4, 0, 0)]
    assert rows.labels is not None
    assert found.labels == [rows.labels[i] for i in (4, 0, 0)]


def test_the_formula_by_hand() -> None:
    """A BERT of two layers, width 24, three heads of 8 columns and 40 neurons."""
    model = tiny.make_model()
    tokens = Tokens(real=100, differentiated=60, padded=120)
    found = memory_terms(model, sublayers_of(model), tokens, item=4, threads=2)
    assert found == {
        "student": 4 * sum(p.numel() for p in model.parameters()),
        "statistics": 4 * 2 * ((24**2 + 24**2) + (40**2 + 24**2)),
        "hidden states": 4 * 24 * (2 * 160 + 100),
        "suspended": 120 * (4 * 4 * 24 + 8 * 24),
        "eliminations": 32 * 40**2 * 2,
    }
    fitted = memory_terms(model, sublayers_of(model), tokens, item=4, threads=2, descent=True)
    assert fitted == {**found, "descent": 4 * 24 * 220}
    # suspended forwards have the first claim; half of them are worked on, whatever the limit
    bounded = within_limit(found, found["suspended"] + 100)
    assert bounded == {**found, "hidden states": 100}
    assert within_limit(found, None) == found
    assert within_limit(found, 10) == {**found, "hidden states": 0, "suspended": found["suspended"] // 2}


@pytest.mark.on_the_cpu
def test_the_peak_grows_with_what_is_held() -> None:
    reset_peak(CPU)
    before = peak_memory(CPU)
    held = torch.ones(64 * 2**20 // 4)
    grown = peak_memory(CPU) - before
    assert held.sum() > 0
    assert 48 * 2**20 < grown < 160 * 2**20
