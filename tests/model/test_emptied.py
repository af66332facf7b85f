"""Emptied branches: their attention weights, copies of them, no matrix without a column, and int8."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import cases
from cases import Case, inputs_of, logits_of
from faster_pruner.model.table import FAMILIES

EMPTIED = {"layers.0.attention", "layers.1.ffn"}
EVERYTHING = {"layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"}


def emptied(name: str, names: set[str] = EMPTIED) -> Case:
    case = cases.make(name)
    return case.shrunk(cases.emptied(case.sublayers, names))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attention_weights_have_an_entry_per_layer(family: str) -> None:
    model: Any = emptied(family).model
    inputs = inputs_of(family)
    expected = logits_of(model, inputs)
    for own in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            found = own(**inputs, output_attentions=True, output_hidden_states=True)
        assert [tuple(each.shape) for each in found.attentions] == [(3, 0, 7, 7), (3, 3, 7, 7)]
        assert len(found.hidden_states) == 3
        assert torch.equal(found.logits, expected)
    # where attention is not written out nobody has weights
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert not model(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("names", [EMPTIED, EVERYTHING], ids=["some", "all"])
@pytest.mark.parametrize("name", cases.NAMES)
def test_no_matrix_without_a_column_is_left(name: str, names: set[str]) -> None:
    case = cases.make(name)
    wanted = {s.name for s in case.sublayers} if names is EVERYTHING else {s.name for s in case.sublayers[::2]}
    model = case.shrunk(cases.emptied(case.sublayers, wanted)).model
    assert not [key for key, value in model.state_dict().items() if value.numel() == 0]
    assert all(min(m.in_features, m.out_features) > 0 for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [EMPTIED, EVERYTHING], ids=["some", "all"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dynamic_int8_is_close(family: str, names: set[str]) -> None:
    model = emptied(family, names).model
    quantised: Any = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    expected, found = logits_of(model, inputs_of(family)), logits_of(quantised, inputs_of(family))
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("names", [EMPTIED, EVERYTHING], ids=["some", "all"])
def test_torchao_int8_is_close(names: set[str], config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = emptied("bert", names).model
    quantised: Any = copy.deepcopy(model)
    quantization.quantize_(quantised, getattr(quantization, config)())
    expected, found = logits_of(model, inputs_of("bert")), logits_of(quantised, inputs_of("bert"))
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
