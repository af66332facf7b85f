"""The longest row, exactly, and made-up inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import tiny
from faster_pruner.model.limits import input_names, longest_row, made_up_inputs


def one_row(length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.full((1, length), 5), "attention_mask": torch.ones(1, length, dtype=torch.long)}


@pytest.mark.parametrize(
    ("family", "changes", "longest"),
    [
        ("bert", {}, 64),
        ("bert", {"pad_token_id": 3}, 64),
        ("distilbert", {}, 64),
        # padding_idx rows at the start of the table are never the position of a real token
        ("roberta", {}, 63),
        ("roberta", {"pad_token_id": 1}, 62),
        ("roberta", {"pad_token_id": 1, "max_position_embeddings": 66}, 64),
    ],
)
def test_the_longest_row_runs_and_one_more_token_does_not(family: str, changes: dict[str, Any], longest: int) -> None:
    model = tiny.make_model(family, **changes)
    assert longest_row(model) == longest
    assert bool(cases.logits_of(model, one_row(longest)).isfinite().all())
    with pytest.raises((IndexError, RuntimeError)):
        cases.logits_of(model, one_row(longest + 1))


@pytest.mark.parametrize("stated", [None, 0, -1, "many"])
def test_a_model_that_states_no_limit(stated: object) -> None:
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(max_position_embeddings=stated)
    assert longest_row(model) == 512
    model.config = SimpleNamespace()
    assert longest_row(model) == 512


def test_inputs_a_model_is_called_with() -> None:
    assert input_names(tiny.make_model("bert")) == ("input_ids", "attention_mask", "token_type_ids")
    assert input_names(tiny.make_model("roberta")) == ("input_ids", "attention_mask")
    assert input_names(tiny.make_model("distilbert")) == ("input_ids", "attention_mask")


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_made_up_inputs(family: str) -> None:
    model = tiny.make_model(family)
    inputs = made_up_inputs(model, 40, 9, padded=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape == (40, 9)
    assert torch.equal(ids == model.config.pad_token_id, mask == 0)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < tiny.VOCABULARY
    assert mask[:-1].all()
    assert mask[-1].tolist() == [1] * 4 + [0] * 5
    assert torch.equal(made_up_inputs(model, 40, 9)["input_ids"] * mask, ids)
    assert not torch.equal(made_up_inputs(model, 40, 9, seed=1)["input_ids"], ids)
    assert bool(made_up_inputs(model, 40, 9)["attention_mask"].all())
    assert cases.logits_of(model, inputs).shape == (40, 2)
