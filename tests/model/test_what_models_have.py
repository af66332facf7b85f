"""What people's models have, each in a tiny model of transformers' own class: found, cut, saved and reopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import stock_models as stock
from faster_pruner import load
from faster_pruner.checkpoint.sizes import sublayers_of

pytestmark = pytest.mark.filterwarnings("ignore")

_TOLERANCE = 1e-5
_GATED = {"mlp.gate_proj": (24, 32), "mlp.up_proj": (24, 32), "mlp.down_proj": (32, 24)}
_GROUPED = {
    "self_attn.q_proj": (16, 32),
    "self_attn.k_proj": (8, 32),
    "self_attn.v_proj": (8, 32),
    "self_attn.o_proj": (32, 16),
}
_NEOX = {"mlp.dense_h_to_4h": (24, 32), "mlp.dense_4h_to_h": (32, 24)}
_BERT_FFN = {"intermediate.dense": (24, 32), "output.dense": (32, 24)}
_SEEN = {f"attention.{name}_proj": (24, 32) for name in "qkv"} | {"attention.o_proj": (32, 24)}

# Of each model: the path of a layer, and the weights of that layer that have other shapes when one of its four heads is
# gone (or one of its two groups of heads) and half of its neurons; a Conv1D's is [inputs, outputs].
SHAPES: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    # Conv1D
    "gpt2": (
        "transformer.h.0",
        {"attn.c_attn": (32, 72), "attn.c_proj": (24, 32), "mlp.c_fc": (32, 24), "mlp.c_proj": (24, 32)},
    ),
    # query, key and value in one matrix: head by head, one after the other, with one key and value for all heads
    "gpt-neox": ("gpt_neox.layers.0", {"attention.query_key_value": (72, 32), "attention.dense": (32, 24), **_NEOX}),
    "mpt": (
        "transformer.blocks.0",
        {"attn.Wqkv": (72, 32), "attn.out_proj": (32, 24), "ffn.up_proj": (64, 32), "ffn.down_proj": (32, 64)},
    ),
    "falcon-one-key": (
        "transformer.h.0",
        {"self_attention.query_key_value": (24 + 2 * 8, 32), "self_attention.dense": (32, 24), **_NEOX},
    ),
    "falcon-groups": (
        "transformer.h.0",
        {"self_attention.query_key_value": (32, 32), "self_attention.dense": (32, 16), **_NEOX},
    ),
    "phi3": (
        "model.layers.0",
        {
            "self_attn.qkv_proj": (16 + 8 + 8, 32),
            "self_attn.o_proj": (32, 16),
            "mlp.gate_up_proj": (24 + 24, 32),
            "mlp.down_proj": (32, 24),
        },
    ),
    # gates
    "modernbert": (
        "model.layers.0",
        {"attn.Wqkv": (72, 32), "attn.Wo": (32, 24), "mlp.Wi": (24 + 24, 32), "mlp.Wo": (32, 24)},
    ),
    # biases of q, k and v
    "qwen2": ("model.layers.0", {**_GROUPED, **_GATED}),
    # norms of q and k
    "qwen3": ("model.layers.0", {**_GROUPED, **_GATED}),
    "gemma3": ("model.layers.0", {**_GROUPED, **_GATED}),
    "olmo2": ("model.layers.0", _GATED),
    # rotary positions, of a part of each head
    "llama": ("model.layers.0", {**_GROUPED, **_GATED}),
    "phi": (
        "model.layers.0",
        {
            **{f"self_attn.{name}_proj": (24, 32) for name in "qkv"},
            "self_attn.dense": (32, 24),
            "mlp.fc1": (24, 32),
            "mlp.fc2": (32, 24),
        },
    ),
    "stablelm": ("model.layers.0", {**_GROUPED, **_GATED}),
    # windows
    "mistral": ("model.layers.0", {**_GROUPED, **_GATED}),
    "gemma2": ("model.layers.0", {**_GROUPED, **_GATED}),
    # LayerScale
    "dinov2": ("dinov2.encoder.layer.0", {**_SEEN, "mlp.fc1": (32, 32), "mlp.fc2": (32, 32)}),
    "beit": ("beit.layers.0", {**_SEEN, "mlp.fc1": (24, 32), "mlp.fc2": (32, 24)}),
    # relative positions: by their own matrices, by those of q and k, by a table that all layers share
    "deberta": (
        "deberta.encoder.layer.0",
        {
            "attention.self.in_proj": (72, 32),
            "attention.self.pos_proj": (24, 32),
            "attention.self.pos_q_proj": (24, 32),
            "attention.output.dense": (32, 24),
            **_BERT_FFN,
        },
    ),
    "deberta-v2": (
        "deberta.encoder.layer.0",
        {
            **{f"attention.self.{name}_proj": (24, 32) for name in ("query", "key", "value")},
            "attention.output.dense": (32, 24),
            **_BERT_FFN,
        },
    ),
    "mpnet": (
        "mpnet.encoder.layer.0",
        {**{f"attention.attn.{name}": (24, 32) for name in "qkv"}, "attention.attn.o": (32, 24), **_BERT_FFN},
    ),
    "t5": (
        "encoder.block.2",
        {
            **{f"layer.0.SelfAttention.{name}": (24, 32) for name in "qkv"},
            "layer.0.SelfAttention.o": (32, 24),
            "layer.1.DenseReluDense.wi_0": (24, 32),
            "layer.1.DenseReluDense.wi_1": (24, 32),
            "layer.1.DenseReluDense.wo": (32, 24),
        },
    ),
    # layers that training drops at random
    "wav2vec2": (
        "wav2vec2.encoder.layers.0",
        {
            **{f"attention.{name}_proj": (24, 32) for name in "qkv"},
            "attention.out_proj": (32, 24),
            "feed_forward.intermediate_dense": (24, 32),
            "feed_forward.output_dense": (32, 24),
        },
    ),
    "bart": (
        "model.decoder.layers.0",
        {
            **{f"{each}.{name}_proj": (24, 32) for name in "qkv" for each in ("self_attn", "encoder_attn")},
            "self_attn.out_proj": (32, 24),
            "encoder_attn.out_proj": (32, 24),
            "fc1": (24, 32),
            "fc2": (32, 24),
        },
    ),
}


def outputs_of(module: Any) -> int:
    """Features that a matrix puts out."""
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_found_cut_saved_and_reopened(name: str, tmp_path: Path) -> None:
    path, shapes = SHAPES[name]
    model, described = stock.dense(name)
    inputs, sublayers = stock.inputs_for(model), described.sublayers
    keep = stock.some(sublayers)
    smaller, left = stock.cut(model, sublayers, keep)
    # nothing but these
    before, after = (dict(each.get_submodule(path).named_modules()) for each in (model, smaller))
    weights = {n: m.weight for n, m in after.items() if isinstance(getattr(m, "weight", None), torch.Tensor)}
    assert {n: tuple(w.shape) for n, w in weights.items() if w.shape != before[n].weight.shape} == shapes
    for module in shapes:
        if getattr(after[module], "bias", None) is not None:
            assert after[module].bias.numel() == outputs_of(after[module]), module
    # the whole model
    found = stock.values(smaller, inputs)
    with stock.masked(model, sublayers, keep):
        assert stock.furthest(found, stock.values(model, inputs)) < _TOLERANCE
    assert stock.furthest(found, stock.values(model, inputs)) > 0.1
    reopened = load(stock.save(smaller, left, tmp_path / "saved"))
    assert type(reopened) is type(model)
    assert all(map(torch.equal, stock.values(reopened, inputs), found))
    assert sublayers_of(reopened) == left


@pytest.mark.parametrize("name", SHAPES)
def test_every_sublayer_alone_may_be_as_small_as_it_says(name: str) -> None:
    """What an emptied branch hands on is read by those that are not (T5's position bias)."""
    model, described = stock.dense(name)
    inputs, sublayers = stock.inputs_for(model), described.sublayers
    for one in sublayers:
        keep = {s.name: torch.arange(s.spec.least if s is one else s.units) for s in sublayers}
        smaller, _ = stock.cut(model, sublayers, keep)
        with stock.masked(model, sublayers, keep):
            assert stock.furthest(stock.values(smaller, inputs), stock.values(model, inputs)) < _TOLERANCE, one.name


def test_what_norms_over_all_heads_is_left_whole_and_said() -> None:
    _, found = stock.dense("olmo2")
    assert [s.spec.kind for s in found.sublayers] == ["ffn", "ffn"]
    assert "have a part in all of its columns at once" in found.left["model.layers.0.self_attn.o_proj"]


def test_t5_keeps_whole_the_first_block_of_each_stack_whose_table_others_read() -> None:
    _, found = stock.dense("t5")
    assert sorted(name for name in found.left if "attention" in name) == [
        "decoder.0.attention",
        "decoder.0.cross-attention",
        "encoder.0.attention",
    ]
    attention = [s.name for s in found.sublayers if s.spec.mixes_tokens]
    assert sorted(attention) == [
        "decoder.1.attention",
        "decoder.1.cross-attention",
        "encoder.1.attention",
        "encoder.2.attention",
    ]


# What a model would be without what it is here for.
WITHOUT: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 64},
    "gemma2": {"sliding_window": 64},
    "gemma3": {"sliding_window": 64},
    "modernbert": {"local_attention": 64},
    "phi": {"partial_rotary_factor": 1.0},
    "stablelm": {"partial_rotary_factor": 1.0},
    "gpt-neox": {"rotary_pct": 1.0},
    "deberta": {"pos_att_type": []},
    "deberta-v2": {"pos_att_type": []},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_the_models_here_have_it(name: str) -> None:
    """The weights are the same ones: what differs is how the model uses them."""
    model, other = stock.build(name), stock.build(name, **WITHOUT[name])
    other.load_state_dict(model.state_dict(), strict=False)
    inputs = stock.inputs_for(model)
    assert stock.furthest(stock.values(other, inputs), stock.values(model, inputs)) > 1e-3
