"""Flags of configs, training mode, ways of computing attention, attention weights: nothing of it gets in the way."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stock_models as stock
from faster_pruner import load, prune_model
from faster_pruner.model.describe import describe

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]

_TOLERANCE = 1e-5
FLAGS: dict[str, dict[str, Any]] = {
    "torchscript": {"torchscript": True},
    "tuples": {"return_dict": False},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "hidden states": {"output_hidden_states": True},
    "attention weights": {"output_attentions": True, "attention": "eager"},
    "chunked ffn": {"chunk_size_feed_forward": 3},
    "decoder": {"is_decoder": True},
    "decoder without cache": {"is_decoder": True, "use_cache": False},
    "decoder with cross-attention": {"is_decoder": True, "add_cross_attention": True},
}


def memory(model: Any) -> dict[str, Tensor]:
    """What another model would have put out, for a decoder that looks at it."""
    if not getattr(model.config, "add_cross_attention", False):
        return {}
    return {"encoder_hidden_states": torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_flags_of_bert_like_models(name: str, flag: str, tmp_path: Path) -> None:
    model = stock.build(name, **FLAGS[flag])
    inputs = stock.inputs_for(model)
    sublayers = describe(model, inputs).sublayers
    assert [s.units for s in sublayers] == [4, 48] * 2
    smaller, left = stock.cut(model, sublayers, stock.some(sublayers))
    with stock.masked(model, sublayers, stock.some(sublayers)):
        expected = own_values(model, inputs)
    assert stock.furthest(own_values(smaller, inputs), expected) < _TOLERANCE
    assert stock.furthest(own_values(smaller, inputs), own_values(model, inputs)) > 0.1
    reopened = load(stock.save(smaller, left, tmp_path / "saved"))
    reopened.set_attn_implementation(model.config._attn_implementation)
    assert all(map(torch.equal, stock.values(reopened, inputs), stock.values(smaller, inputs)))
    for key, value in FLAGS[flag].items():
        if key not in ("attention", "gradient_checkpointing"):
            assert getattr(reopened.config, key) == value
    result = prune_model(model, [inputs, stock.inputs_for(model, seed=1)], macs=0.5)
    assert 0 < result.report.macs_kept <= 0.5


def own_values(model: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What does not have as many entries as there are heads: the same of a smaller model."""
    return [value for value in stock.values(model, inputs) if value.ndim < 4]


@pytest.mark.parametrize(
    ("name", "cls"), [("bert", "BertLMHeadModel"), ("roberta", "RobertaForCausalLM"), ("electra", "ElectraForCausalLM")]
)
def test_decoders_that_look_at_another_model(name: str, cls: str, tmp_path: Path) -> None:
    """Their cross-attention is not called in calibration: it stays whole."""
    model = stock.build(name, cls=cls, is_decoder=True, add_cross_attention=True)
    inputs = stock.inputs_for(model)
    sublayers = describe(model, inputs).sublayers
    keep = stock.some(sublayers)
    smaller, left = stock.cut(model, sublayers, keep)
    for more in ({}, memory(model)):
        with stock.masked(model, sublayers, keep):
            expected = stock.values(model, {**inputs, **more}, use_cache=False)
        found = stock.values(smaller, {**inputs, **more}, use_cache=False)
        assert stock.furthest(found, expected) < _TOLERANCE
    assert not any("crossattention" in s.parts.projection for s in sublayers)
    reopened = load(stock.save(smaller, left, tmp_path / "saved"))
    again = stock.values(reopened, {**inputs, **memory(model)}, use_cache=False)
    assert all(map(torch.equal, again, found))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = stock.build(name)
    batches = [stock.inputs_for(model, seed=seed) for seed in range(2)]
    expected = prune_model(model, batches, macs=0.5).model
    model.gradient_checkpointing_enable()
    found = prune_model(model, batches, macs=0.5).model
    assert found.is_gradient_checkpointing
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))
    # the smaller model trains with it, and the gradients are those without it
    gradients: list[dict[str, Tensor]] = []
    for enabled in (True, False):
        own = copy.deepcopy(expected).train()
        for module in own.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if enabled:
            own.gradient_checkpointing_enable()
        own(**batches[0], use_cache=False).logits.square().mean().backward()
        gradients.append({key: p.grad for key, p in own.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", ["wav2vec2", "bart", "gpt2"])
def test_a_model_in_training_mode_is_calibrated_without_dropping_anything(name: str) -> None:
    model = stock.build(name)
    batches = [stock.inputs_for(model, seed=seed) for seed in range(2)]
    expected = prune_model(model, batches, macs=0.5)
    found = prune_model(model.train(), batches, macs=0.5)
    assert model.training
    assert found.model.training
    assert all(map(torch.equal, found.model.state_dict().values(), expected.model.state_dict().values()))
    smaller = found.model.eval()
    one, other = (stock.values(smaller, batches[0]) for _ in range(2))
    assert all(map(torch.equal, one, other))


# Models with both ways of computing attention, and how few units of each first layer there may be.
BOTH: dict[str, list[int]] = {
    "bert": [0, 0],
    "modernbert": [0, 0],
    "dinov2": [0, 0],
    "gpt2": [1, 0],
    "llama": [1, 0],
    "mistral": [1, 0],
    "bart": [0, 0],
}


@pytest.mark.parametrize("size", ["some", "least"])
@pytest.mark.parametrize("name", BOTH)
def test_eager_and_sdpa_agree(name: str, size: str) -> None:
    model, described = stock.dense(name)
    inputs, sublayers = stock.inputs_for(model), described.sublayers
    assert [s.spec.least for s in sublayers[:2]] == BOTH[name]
    keep = (stock.some if size == "some" else stock.least)(sublayers)
    smaller, _ = stock.cut(model, sublayers, keep)
    found: dict[str, list[Tensor]] = {}
    for attention in ("eager", "sdpa"):
        for own in (smaller, model):
            own.set_attn_implementation(attention)
        with stock.masked(model, sublayers, keep):
            expected = stock.values(model, inputs)
        found[attention] = stock.values(smaller, inputs)
        assert stock.furthest(found[attention], expected) < _TOLERANCE
    # padding that sees nothing but padding is nobody's business: dense models differ there, too
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    pairs = [
        [value[real] if real is not None and value.shape[:2] == real.shape else value for value in found[attention]]
        for attention in ("eager", "sdpa")
    ]
    assert stock.furthest(*pairs) < _TOLERANCE


# Of each model, the heads in each layer by what holds the weights, when as few are left as there may be.
WEIGHTS: dict[str, dict[str, list[int]]] = {
    "bert": {"attentions": [0, 0]},
    "electra": {"attentions": [0, 0]},
    "modernbert": {"attentions": [0, 0]},
    "mpnet": {"attentions": [0, 0]},
    "deberta-v2": {"attentions": [0, 0]},
    "dinov2": {"attentions": [0, 0]},
    "gpt2": {"attentions": [1, 0]},
    # two query heads a group
    "llama": {"attentions": [2, 0]},
    "bart": {"encoder_attentions": [0, 0], "decoder_attentions": [1, 0], "cross_attentions": [1, 0]},
    "t5": {"encoder_attentions": [4, 0, 0], "decoder_attentions": [4, 0], "cross_attentions": [4, 0]},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_attention_weights_have_an_entry_per_layer(name: str) -> None:
    model, described = stock.dense(name)
    inputs, sublayers = stock.inputs_for(model), described.sublayers
    model = stock.build(name, attention="eager")
    smaller, _ = stock.cut(model, sublayers, stock.least(sublayers))
    plain = stock.values(smaller, inputs)
    with torch.no_grad():
        found = smaller(**inputs, output_attentions=True, output_hidden_states=True)
    heads = {key: [each.shape[1] for each in found[key]] for key in WEIGHTS[name]}
    assert heads == WEIGHTS[name]
    logits = found["logits"]
    assert any(torch.equal(logits, value) for value in plain)
    for key, values in found.items():
        if key.endswith("hidden_states") and isinstance(values, tuple):
            stack = "decoder" if key.startswith("decoder") else "encoder" if key.startswith("encoder") else ""
            assert len(values) == 1 + len(found[f"{stack}_attentions" if stack else "attentions"])


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_weights_of_what_is_left_are_those_of_the_whole_model(name: str) -> None:
    model, described = stock.dense(name)
    inputs, sublayers = stock.inputs_for(model), described.sublayers
    model = stock.build(name, attention="eager")
    keep = stock.some(sublayers)
    smaller, _ = stock.cut(model, sublayers, keep)
    with torch.no_grad(), stock.masked(model, sublayers, keep):
        expected = model(**inputs, output_attentions=True).attentions
    with torch.no_grad():
        found = smaller(**inputs, output_attentions=True).attentions
    attention = [s for s in sublayers if s.spec.mixes_tokens]
    for s, small, whole in zip(attention, found, expected, strict=True):
        per_unit = whole.shape[1] // s.units
        kept = (keep[s.name][:, None] * per_unit + torch.arange(per_unit)).flatten()
        assert torch.allclose(small, whole[:, kept], atol=_TOLERANCE)
