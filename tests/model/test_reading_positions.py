"""Predictions that are read where the rows say: the last sublayers are known to be read there, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

import tiny
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.tasks import Task
from faster_pruner.model.reading import Rule, find_reading, real_tokens
from faster_pruner.objectives.parts import predictions_of
from faster_pruner.objectives.registry import kind_of


def tagged_rows(count: int = 20, *, left: bool = False) -> EncodedRows:
    model = tiny.make_tagger()
    kind = kind_of(model)
    task = kind.completed(Task(name="", label_column=""))
    rows = kind.encode(tiny.make_tagged(count, 0), task, tiny.make_tokenizer(), config=model.config, limit=64)
    return replace(rows, left_padded=left)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_a_token_classifiers_last_ffn_is_read_at_the_positions(family: str, left: bool) -> None:
    model = tiny.make_tagger(family)
    objective = kind_of(model).objective(model.config)
    sublayers = sublayers_of(model)
    batches = tiny.make_batches(tagged_rows(left=left), 60)
    reading = find_reading(model, sublayers, batches[0], predictions_of(objective))
    last, others = sublayers[-1], sublayers[:-1]
    assert reading.rules[last.name] is Rule.POSITIONS
    assert reading.partial(last)
    # the last attention adds to what only its own token goes on with
    assert {reading.rules[s.name] for s in others if s.layer == 0} == {Rule.EVERY}
    assert Rule.OTHER not in reading.rules.values()
    for batch in batches:
        assert reading.of(sublayers, batch) is None
        width = batch.inputs["input_ids"].shape
        real = real_tokens(last, batch, torch.zeros(*width, last.columns))
        assert batch.positions is not None
        assert torch.equal(reading.tokens_read(last, real, batch, None), batch.positions)


def test_where_every_word_is_one_token_only_the_special_ones_are_left_out() -> None:
    model = tiny.make_tagger()
    rows = tagged_rows()
    assert rows.positions is not None
    whole = replace(rows, positions=[list(range(1, length - 1)) for length in rows.lengths], labels=None)
    (batch,) = tiny.make_batches(whole, 10_000)
    reading = find_reading(model, sublayers_of(model), batch, predictions_of(kind_of(model).objective(model.config)))
    assert reading.rules[sublayers_of(model)[-1].name] is Rule.POSITIONS


def test_answers_may_start_and_end_anywhere() -> None:
    model = tiny.make_model(auto=AutoModelForQuestionAnswering)
    kind = kind_of(model)
    task = kind.completed(Task(name="", label_column=""))
    rows = kind.encode(tiny.make_questions(9, 0), task, tiny.make_tokenizer(), config=model.config, limit=24)
    batch = tiny.make_batches(rows, 200)[0]
    assert batch.mask is not None
    assert not batch.mask.all()
    reading = find_reading(model, sublayers_of(model), batch, predictions_of(kind.objective(model.config)))
    assert set(reading.rules.values()) == {Rule.EVERY}
