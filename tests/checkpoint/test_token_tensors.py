"""Which tensors have an entry per token, and which ids a config names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    ElectraConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    ViTConfig,
)

from badness import bad_input
from faster_pruner.checkpoint.tokens import ids_in, named_ids, select_tokens, token_tensors, with_new_ids
from faster_pruner.errors import UnsupportedModelError

# The vocabulary is as long as everything else is wide: shapes alone would tell nothing.
_SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
}
FOUND: list[tuple[PreTrainedConfig, Any, dict[str, int]]] = [
    (BertConfig(**_SIZES), AutoModel, {"embeddings.word_embeddings.weight": 0}),
    (
        BertConfig(**_SIZES),
        AutoModelForMaskedLM,
        {
            "bert.embeddings.word_embeddings.weight": 0,
            "cls.predictions.bias": 0,
            "cls.predictions.decoder.weight": 0,
            "cls.predictions.decoder.bias": 0,
        },
    ),
    (
        ElectraConfig(**_SIZES, embedding_size=24),
        AutoModelForMaskedLM,
        {
            "electra.embeddings.word_embeddings.weight": 0,
            "generator_lm_head.weight": 0,
            "generator_lm_head.bias": 0,
        },
    ),
    (
        LlamaConfig(**_SIZES, bos_token_id=2, eos_token_id=3),
        AutoModelForCausalLM,
        {"model.embed_tokens.weight": 0, "lm_head.weight": 0},
    ),
    (
        BartConfig(
            **{key: _SIZES[key] for key in ("vocab_size", "max_position_embeddings", "pad_token_id")},
            **{
                f"{side}_{key}": value
                for side in ("encoder", "decoder")
                for key, value in (("layers", 1), ("attention_heads", 3), ("ffn_dim", 24))
            },
            d_model=24,
            forced_eos_token_id=2,
        ),
        AutoModelForSeq2SeqLM,
        {
            "final_logits_bias": 1,
            "lm_head.weight": 0,
            **{f"model.{name}.weight": 0 for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")},
        },
    ),
]


@pytest.mark.parametrize(("config", "auto", "places"), FOUND, ids=[type(c).__name__ + a.__name__ for c, a, _ in FOUND])
def test_what_grows_with_the_vocabulary_is_found(config: PreTrainedConfig, auto: Any, places: dict[str, int]) -> None:
    model = auto.from_config(config)
    found = token_tensors(model)
    assert dict(found.places) == places
    assert found.rows == model.config.vocab_size == 24
    kept = [0, 1, 2, 3, 7, 20]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    select_tokens(model, found, kept)
    for name, tensor in model.state_dict().items():
        wanted = before[name]
        if name in places:
            wanted = wanted[kept] if places[name] == 0 else wanted[:, kept]
            assert list(tensor.shape) == found.shapes_with(len(kept))[name]
        assert torch.equal(tensor, wanted)
    assert model.config.vocab_size == 6
    assert tied == (
        model.get_output_embeddings() is not None
        and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


def test_ids_that_a_config_names_follow() -> None:
    config = LlamaConfig(**_SIZES, bos_token_id=2, eos_token_id=[3, 9])
    model: Any = AutoModelForCausalLM.from_config(config)
    assert named_ids(model, token_tensors(model)) == {1, 2, 3, 9}
    select_tokens(model, token_tensors(model), [1, 2, 3, 5, 9])
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, [2, 4])
    assert model.generation_config.eos_token_id == [2, 4]


def test_positions_that_are_counted_from_padding_keep_all_below_it() -> None:
    model = AutoModel.from_config(RobertaConfig(**{**_SIZES, "pad_token_id": 5}, bos_token_id=0, eos_token_id=2))
    assert named_ids(model, token_tensors(model)) == {0, 1, 2, 3, 4, 5}
    model = AutoModel.from_config(BertConfig(**{**_SIZES, "pad_token_id": 5}))
    assert named_ids(model, token_tensors(model)) == {5}


def test_settings_in_files() -> None:
    settings = {"eos_token_id": [4, 90], "bad_words_ids": [[4], [7, 4]], "max_length": 4, "pad_token_id": None}
    assert ids_in(settings) == {4, 7, 90}
    assert with_new_ids(settings, {4: 0, 7: 1}) == {
        "eos_token_id": [0, 90],
        "bad_words_ids": [[0], [1, 0]],
        "max_length": 4,
        "pad_token_id": None,
    }
    bad_input("forced_decoder_ids")
    with pytest.raises(UnsupportedModelError, match="forced_decoder_ids"):
        ids_in({"forced_decoder_ids": [[1, 5]]})


def test_models_without_a_table_of_tokens_are_refused() -> None:
    bad_input("a model of images")
    image = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=24)
    with pytest.raises(UnsupportedModelError, match="no single table of tokens"):
        token_tensors(AutoModel.from_config(image))
    model: Any = AutoModel.from_config(BertConfig(**_SIZES))
    model.config.vocab_size = 30
    bad_input("a vocab_size that is not so")
    with pytest.raises(UnsupportedModelError, match="vocab_size 30, 24 rows"):
        token_tensors(model)
