"""Tiny folders of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    XLMRobertaConfig,
)

import tiny

_SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": tiny.CONFIGS["bert"],
    "xlm-roberta": XLMRobertaConfig(num_attention_heads=3, type_vocab_size=1, **_SIZES),
    "modernbert": ModernBertConfig(
        num_attention_heads=3,
        local_attention=8,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        **_SIZES,
    ),
    "qwen3": Qwen3Config(bos_token_id=2, eos_token_id=3, **_DECODER),
    "llama": LlamaConfig(bos_token_id=2, eos_token_id=3, **_DECODER),
}


def make_encoder(model_type: str = "bert", *, auto: Any = AutoModel) -> PreTrainedModel:
    """A random model whose weights are large enough for every unit to matter."""
    torch.manual_seed(0)
    model = auto.from_config(CONFIGS[model_type]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0.0, 0.25)
    return model


def save_folder(
    place: Path,
    model: PreTrainedModel | None = None,
    *,
    pooling: str = "mean",
    include_prompt: bool = True,
    padding_side: str = "right",
    dense: bool = False,
    prompts: dict[str, str] | None = None,
) -> Path:
    """A folder as sentence-transformers writes it, of a tiny BERT unless another model is given."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    given = make_encoder() if model is None else model
    own = place.with_name(f"{place.name}-encoder")
    given.save_pretrained(own)
    tokenizer = tiny.make_tokenizer()
    tokenizer.padding_side = padding_side
    tokenizer.save_pretrained(own)
    layers: list[Any] = [modules.Transformer(str(own)), modules.Pooling(24, pooling, include_prompt)]  # pyright: ignore[reportArgumentType]
    layers += [modules.Dense(24, 16)] if dense else []
    default = "query" if prompts and "query" in prompts else None
    made = SentenceTransformer(
        modules=[*layers, modules.Normalize()], device="cpu", prompts=prompts, default_prompt_name=default
    )
    made.save_pretrained(str(place))
    if isinstance(model, PreTrainedModel) and type(model) is not type(made[0].model):
        # with its head, as its author saved it
        given.save_pretrained(place)
    return place


def into_folder(place: Path, name: str = "0_Transformer") -> Path:
    """Move the transformer into a folder of its own, as the first versions had it."""
    modules = json.loads((place / "modules.json").read_text())
    kept = {"modules.json", "config_sentence_transformers.json", "README.md", *(each["path"] for each in modules)}
    moved = [each for each in place.iterdir() if each.name not in kept]
    (place / name).mkdir()
    for each in moved:
        each.rename(place / name / each.name)
    modules[0]["path"] = name
    (place / "modules.json").write_text(json.dumps(modules))
    return place


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in torch.randint(0, 90, (n,), generator=generator).tolist()) for n in lengths]


def save_texts(file: Path, texts: list[str]) -> Path:
    """One JSON object per line."""
    tiny.write_jsonl(file, [{"text": text} for text in texts])
    return file
