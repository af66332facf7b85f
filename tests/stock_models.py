"""Tiny random models of transformers' own classes, each with something that people's models have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from faster_pruner.checkpoint.saving import write_checkpoint
from faster_pruner.model.describe import Description, describe
from faster_pruner.model.shrink import shrink
from faster_pruner.model.spec import Sublayer
from faster_pruner.options import AttentionUnit

WORDS, LENGTH, ROWS = 64, 9, 3
_USUAL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
_IMAGES = {"image_size": 16, "patch_size": 8, "num_channels": 3}
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48, "bias": True}
_SPANS = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_SOUNDS = {
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
_CODING = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "d_ff": 48,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Stock:
    """One model.

    Attributes:
        type: model type.
        cls: name of its class.
        sizes: fields of its config.
    """

    type: str
    cls: str
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])


MODELS: dict[str, Stock] = {
    "gpt2": Stock("gpt2", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}),
    "gpt-neox": Stock("gpt_neox", "GPTNeoXForCausalLM", {**_USUAL, "rotary_pct": 0.5}),
    "mpt": Stock("mpt", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": WORDS}),
    "falcon-one-key": Stock("falcon", "FalconForCausalLM", {**_FALCON, "multi_query": True}),
    "falcon-groups": Stock(
        "falcon", "FalconForCausalLM", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "phi3": Stock("phi3", "Phi3ForCausalLM", _GROUPED),
    "modernbert": Stock(
        "modernbert",
        "ModernBertForMaskedLM",
        {
            **_USUAL,
            "local_attention": 4,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "t5": Stock("t5", "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "qwen2": Stock("qwen2", "Qwen2ForCausalLM", _GROUPED),
    "qwen3": Stock("qwen3", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "gemma3": Stock("gemma3_text", "Gemma3ForCausalLM", {**_GROUPED, "head_dim": 8, **_WINDOWS}),
    "olmo2": Stock("olmo2", "Olmo2ForCausalLM", _GROUPED),
    "llama": Stock("llama", "LlamaForCausalLM", _GROUPED),
    "phi": Stock("phi", "PhiForCausalLM", {**_USUAL, "partial_rotary_factor": 0.5}),
    "stablelm": Stock("stablelm", "StableLmForCausalLM", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "mistral": Stock("mistral", "MistralForCausalLM", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma2": Stock("gemma2", "Gemma2ForCausalLM", {**_GROUPED, "head_dim": 8, **_WINDOWS}),
    "dinov2": Stock(
        "dinov2",
        "Dinov2ForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, **_IMAGES},
    ),
    "beit": Stock(
        "beit",
        "BeitForImageClassification",
        {**_USUAL, **_IMAGES, "layer_scale_init_value": 0.5, "use_relative_position_bias": True},
    ),
    "deberta": Stock("deberta", "DebertaForSequenceClassification", {**_USUAL, **_SPANS, "max_relative_positions": 16}),
    "deberta-v2": Stock(
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        {**_USUAL, **_SPANS, "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "mpnet": Stock("mpnet", "MPNetForSequenceClassification", _USUAL),
    "wav2vec2": Stock("wav2vec2", "Wav2Vec2ForSequenceClassification", {**_USUAL, **_SOUNDS, "layerdrop": 0.5}),
    "bart": Stock(
        "bart",
        "BartForSequenceClassification",
        {**_CODING, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
    ),
    "bert": Stock("bert", "BertForSequenceClassification", _USUAL),
    "roberta": Stock("roberta", "RobertaForSequenceClassification", {**_USUAL, "type_vocab_size": 1}),
    "electra": Stock("electra", "ElectraForSequenceClassification", {**_USUAL, "embedding_size": 32}),
}


def build(name: str, *, attention: str | None = None, cls: str = "", **changes: Any) -> Any:
    """A model in eval mode whose every parameter matters.

    Args:
        name: of a model.
        attention: how it computes attention; its own choice by default.
        cls: name of another class for it.
        changes: other fields of its config.
    """
    stock = MODELS[name]
    words: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    seen = stock.cls.endswith("ImageClassification")
    config = AutoConfig.for_model(stock.type, **{**({} if seen else words), **stock.sizes, **changes})
    chosen = {} if attention is None else {"attn_implementation": attention}
    torch.manual_seed(0)
    return randomise(getattr(transformers, cls or stock.cls)._from_config(config, **chosen))


@torch.no_grad()
def randomise(model: Any, *, seed: int = 0) -> Any:
    """Weights large enough for every unit to matter; biases and scales that are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(0.25 * noise)
        else:
            parameter.add_(0.1 * noise)
    return model.eval()


def inputs_for(model: Any, *, seed: int = 0, length: int = LENGTH) -> dict[str, Tensor]:
    """A batch; of text, with a row that is padded."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(ROWS, 3, 16, 16, generator=generator)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(ROWS, 400, generator=generator)}
    ids = torch.randint(3, WORDS, (ROWS, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length - 4 :] = 0
    # classes of a decoder are read where the text ends
    ids[torch.arange(ROWS), mask.sum(dim=1) - 1] = 2
    ids[mask == 0] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder and "Classification" not in type(model).__name__:
        found |= {"decoder_input_ids": ids[:, :6], "decoder_attention_mask": mask[:, :6]}
    return found


@cache
def dense(name: str, attention_unit: AttentionUnit = "group") -> tuple[Any, Description]:
    """A model as it is built by default, and what of it can be pruned; all tests share it and leave it as it is."""
    model = build(name)
    return model, describe(model, inputs_for(model), attention_unit)


def some(sublayers: Sequence[Sublayer]) -> dict[str, Tensor]:
    """All but the first unit where there are few, every second one where there are many; half of those in layer 1.

    Where units stay in equal groups, of each group.
    """
    found: dict[str, Tensor] = {}
    for s in sublayers:
        size = s.units // s.parts.groups
        keep = torch.arange(1, size, 2 if size > 8 else 1)
        keep = keep[(keep.numel() // 2) :] if s.layer == 1 else keep
        found[s.name] = (torch.arange(s.parts.groups)[:, None] * size + keep).flatten()
    return found


def least(sublayers: Sequence[Sublayer]) -> dict[str, Tensor]:
    """As few units as there may be."""
    return {s.name: s.parts.first(s.spec.least) for s in sublayers}


def cut(model: Any, sublayers: Sequence[Sublayer], keep: Mapping[str, Tensor]) -> tuple[Any, list[Sublayer]]:
    """A copy with only those units, and its sublayers."""
    smaller = copy.deepcopy(model)
    return smaller, [s.resized(shrink(smaller, s.parts, keep[s.name])) for s in sublayers]


@contextmanager
def masked(model: Any, sublayers: Sequence[Sublayer], keep: Mapping[str, Tensor]) -> Iterator[Any]:
    """The whole model, with zeros in the columns of the units that go."""

    def hook(columns: Tensor) -> Callable[..., Any]:
        return lambda module, args: (args[0] * columns.to(args[0]), *args[1:])

    with ExitStack() as stack:
        for s in sublayers:
            columns = torch.zeros(s.units).index_fill(0, keep[s.name], 1.0).repeat_interleave(s.unit_size)
            stack.callback(s.projection(model).register_forward_pre_hook(hook(columns)).remove)
        yield model


def values(model: Any, inputs: Mapping[str, Tensor], **options: Any) -> list[Tensor]:
    """Every tensor that a model returns; no key or value of a cache, whose heads go."""
    with torch.no_grad():
        return list(_tensors(model(**inputs, **options)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def furthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, by the size of the values."""
    assert [f.shape for f in found] == [e.shape for e in expected]
    assert expected
    return max(float((f - e).abs().max() / e.abs().max().clamp(min=1.0)) for f, e in zip(found, expected, strict=True))


def save(model: nn.Module, sublayers: Sequence[Sublayer], folder: Path) -> Path:
    """Write it as a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, model, sublayers, None, dtype=torch.float32)
    return folder
