"""Sizes of layers in the shape of transformers' `per_layer_config`: stated where that does no harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification

from faster_pruner.checkpoint.sizes import build_stock, mark_as_pruned, sublayers_of

_SIZES: Any = {"vocab_size": 20, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}


class OfConfigs(BertForSequenceClassification):
    """As Mimi: its constructor makes another config of all entries of its own, and reads that."""

    def __init__(self, config: Any) -> None:
        self.width = BertConfig(**config.to_dict()).intermediate_size
        super().__init__(config)


@pytest.mark.parametrize(("kind", "stated"), [(BertForSequenceClassification, True), (OfConfigs, False)])
def test_sizes_that_a_constructor_trips_over_are_not_stated(kind: Any, stated: bool) -> None:
    model = kind(BertConfig(num_hidden_layers=2, **_SIZES))
    sublayers = sublayers_of(model)
    smaller = [s.resized(replace(s.parts, units=s.units - (s.layer == 1))) for s in sublayers]
    mark_as_pruned(model, smaller)
    assert ("per_layer_config" in vars(model.config)) == stated
    assert model.config.faster_pruner["sizes"] == {s.name: s.units for s in smaller}
    assert type(build_stock(model)) is kind
