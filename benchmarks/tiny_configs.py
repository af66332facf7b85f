"""Tiny random models of any transformers model type, and a batch for each."""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn

LAYERS, WIDTH, HEADS, GROUPS, HEAD, NEURONS, WORDS = 2, 32, 4, 2, 8, 64, 120
if os.environ.get("OTHER"):
    # no two sizes are alike
    LAYERS, WIDTH, HEADS, GROUPS, HEAD, NEURONS = 4, 48, 6, 3, 12, 100

# Attribute names that transformers' configs have in common, and what they become.
SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embed_dim",
            "embedding_size",
            "word_embed_proj_dim",
            "encoder_hidden_size",
            "decoder_hidden_size",
            "projection_dim",
            "text_embed_dim",
            "input_embedding_size",
            "adapter_hidden_size",
            "lm_hidden_size",
            "hidden_dim_size",
            "vision_embed_dim",
            "out_hidden_size",
            "hidden_size_per_layer_input",
            "embedding_dim",
            "decoder_dim",
            "attention_hidden_size",
            "width",
            "projection_hidden_size",
            "projection_size",
            "num_mel_features",
            "classifier_proj_size",
            "out_features_dim",
        ),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
            "depth",
            "encoder_num_layers",
            "decoder_num_layers",
            "num_blocks",
            "num_hidden_groups_",
            "text_num_layers",
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "encoder_num_attention_heads",
            "decoder_num_attention_heads",
            "swa_num_attention_heads",
            "num_query_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(
        (
            "num_key_value_heads",
            "n_head_kv",
            "num_kv_heads",
            "kv_n_heads",
            "encoder_num_key_value_heads",
            "decoder_num_key_value_heads",
            "swa_num_key_value_heads",
            "multi_query_group_num",
        ),
        GROUPS,
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "kv_channels",
            "attention_head_dim",
            "attention_head_size",
            "d_head",
            "v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "global_head_dim",
        ),
        HEAD,
    ),
    **dict.fromkeys(("qk_head_dim",), 2 * HEAD),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "d_inner",
            "ffn_hidden_size",
            "mlp_hidden_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "feed_forward_size",
            "intermediate_dim",
            "mlp_dim",
            "encoder_intermediate_size",
            "ffn_intermediate_size",
            "intermediate_size_mlp",
            "dense_intermediate_size",
            "block_ff_dim",
        ),
        NEURONS,
    ),
    **dict.fromkeys(("vocab_size", "text_vocab_size", "audio_vocab_size"), WORDS),
    **dict.fromkeys(("vocab_size_per_layer_input", "character_vocab_size"), WORDS),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_target_positions",
            "max_source_positions_",
            "max_sequence_length",
            "max_seq_len",
            "seq_length",
            "max_length_",
            "block_size_",
        ),
        64,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("image_size", "img_size", "input_size_"), 32),
    **dict.fromkeys(("patch_size",), 8),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_"), 8),
    **dict.fromkeys(("num_conv_pos_embeddings",), 4),
    **dict.fromkeys(("num_conv_pos_embedding_groups",), 2),
    **dict.fromkeys(("linear_num_value_heads",), HEADS),
    **dict.fromkeys(("linear_num_key_heads",), GROUPS),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), HEAD),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), HEADS),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "chunk_size_", "mamba_chunk_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_d_ssm",), WIDTH),
}
# Special cases, by model type (of any config or sub-config).
BY_TYPE: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": WIDTH, "hidden_dim": NEURONS},
    "flaubert": {"emb_dim": 32, "hidden_dim": 64},
    "xlm": {"emb_dim": 32},
    "whisper": {"max_source_positions": 8, "num_mel_bins": 8},
    "esm": {"token_dropout": False, "position_embedding_type": "rotary"},
    "wav2vec2": {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    "nomic_bert": {"head_dim": 8},
    "albert": {"embedding_size": 16},
    "lilt": {"hidden_size": 48},
    "modernbert": {"pad_token_id": 0},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "mpt": {"max_seq_len": 64, "n_heads": 4, "n_layers": 2, "d_model": 32},
    "ctrl": {"dff": 64},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "gptj": {"rotary_dim": 4},
    "funnel": {"block_sizes": [1, 1], "d_model": 32, "num_decoder_layers": 1},
    "longformer": {"attention_window": [8, 8]},
    "led": {"attention_window": [8, 8]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "donut-swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "data2vec-audio": {
        "conv_dim": [16, 16],
        "conv_stride": [5, 4],
        "conv_kernel": [10, 8],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 2,
    },
    "segformer": {
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "patch_sizes": [3, 3, 3, 3],
        "image_size": 32,
    },
    "glm4": {},
    "longt5": {"local_radius": 4, "encoder_attention_type": "local"},
    "vilt": {"image_size": 32},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {
        "intermediate_size": [64, 64],
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 32},
    "siglip2_vision_model": {"num_patches": 16},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": ["mamba", "attention"]},
    "convnext": {"image_size": 64},
    "convnextv2": {"image_size": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dpt": {"is_hybrid": False},
}
for _name in ("wav2vec2-conformer", "hubert", "unispeech", "unispeech-sat", "wavlm", "sew", "wav2vec2-bert", "sew-d"):
    BY_TYPE[_name] = {**BY_TYPE["wav2vec2"]}


def _tiny_dict(config: Any) -> dict[str, Any]:
    """Overrides for one config, recursing into its sub-configs."""
    from transformers import PreTrainedConfig

    found: dict[str, Any] = {}
    names = set(vars(config)) | set(config.attribute_map)
    layers = [vars(config).get(n) for n in SIZES if SIZES[n] == LAYERS and isinstance(vars(config).get(n), int)]
    special = BY_TYPE.get(config.model_type, {})
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found[name] = tiny_config(value)
        elif name in special:
            found[name] = copy.deepcopy(special[name])
        elif name in SIZES and ((isinstance(value, int) and not isinstance(value, bool)) or value is None):
            if value is None and name not in ("head_dim", "num_key_value_heads", "vocab_size"):
                continue
            found[name] = SIZES[name]
        elif name in SIZES and isinstance(value, list | tuple) and len(value) and isinstance(value[0], int):
            found[name] = [min(SIZES[name], v) for v in value]
        elif name.endswith("token_id") and isinstance(value, int) and value >= WORDS:
            found[name] = WORDS - 1
        elif name in ("layer_types", "mlp_layer_types", "attn_types") and isinstance(value, list):
            found[name] = _few(value)
        elif isinstance(value, list) and layers and len(value) in layers and len(value) > LAYERS:
            found[name] = value[:LAYERS]
        elif name == "eos_token_id" and isinstance(value, list):
            found[name] = [WORDS - 1]
    found |= copy.deepcopy(special)
    groups = found.get("num_key_value_heads")
    old = vars(config)
    if groups and old.get("num_key_value_heads") == old.get("num_attention_heads"):
        found["num_key_value_heads"] = HEADS
    del names
    return found


def build(cls: Any, model_type: str) -> nn.Module:
    """The tiny model that an auto class opens for a model type."""
    from transformers import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING[model_type]())
    chosen = cls._model_mapping[type(config)]
    chosen = chosen[0] if isinstance(chosen, list | tuple) else chosen
    torch.manual_seed(0)
    return randomise(chosen._from_config(config))


def _few(value: list[Any]) -> list[Any]:
    """Two layers, of different types where there are such."""
    kinds = list(dict.fromkeys(value))
    return kinds[:LAYERS] if len(kinds) >= LAYERS else value[:LAYERS]


def tiny_config(config: Any) -> Any:
    """A small config of the same class."""
    changes = _tiny_dict(config)
    raw = config.to_dict()
    for key, value in changes.items():
        raw[key] = value.to_dict() if hasattr(value, "to_dict") else value
    raw.pop("transformers_version", None)
    raw.pop("dtype", None)
    for key in ("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"):
        raw.pop(key, None)
    if "pad_token_id" in raw or hasattr(config, "pad_token_id"):
        raw["pad_token_id"] = 0
    if isinstance(getattr(config, "eos_token_id", None), int):
        raw["eos_token_id"] = 2
    for key in ("pooler_hidden_size", "decoder_hidden_size"):
        if raw.get(key):
            raw[key] = WIDTH
    for key in ("rope_parameters", "rope_scaling"):
        scaling = raw.get(key)
        if isinstance(scaling, dict) and scaling.get("rope_type") in ("longrope", "yarn"):
            raw[key] = {"rope_type": "default", "rope_theta": 10000.0}
        if isinstance(scaling, dict) and "mrope_section" in scaling:
            scaling["mrope_section"] = [1, 1, 2]
    return type(config).from_dict(raw)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for every unit to matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if (parameter.ndim >= 2 and "norm" not in name.lower()) or name.endswith("bias"):
            parameter.copy_(0.25 * normal(parameter))
        else:
            base = parameter if float(parameter.float().abs().mean()) > 0.1 else torch.ones_like(parameter)
            parameter.copy_(base + 0.1 * normal(parameter))
    return model.eval()


def batch_for(model: nn.Module, *, rows: int = 2, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Inputs that a model's forward takes, by their names."""
    generator = torch.Generator().manual_seed(seed)
    names = inspect.signature(model.forward).parameters
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    found: dict[str, Tensor] = {}
    ids, mask = _tokens(rows, length, generator)
    ids[torch.arange(rows), mask.sum(dim=1) - 1] = 2
    ids[mask == 0] = 0
    wants = [n for n in ("input_ids", "pixel_values", "input_features", "input_values") if n in names]
    if main not in wants and main in names:
        wants.append(main)
    if "input_ids" in wants and not ({"pixel_values"} & set(wants) and main == "pixel_values"):
        found["input_ids"] = ids
        if "attention_mask" in names:
            found["attention_mask"] = mask
    if "pixel_values" in wants and ("input_ids" not in found or _needs_pixels(model)):
        found["pixel_values"] = _pixels(config, rows, generator)
    if "input_ids" not in found and "pixel_values" not in found:
        found |= _audio(model, config, wants, rows, generator)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        found["decoder_input_ids"] = ids.clone()
        if "decoder_attention_mask" in names:
            found["decoder_attention_mask"] = mask.clone()
    if "bbox" in names and "input_ids" in found:
        found["bbox"] = torch.randint(0, 30, (rows, length, 2), generator=generator).repeat(1, 1, 2)
        found["bbox"][..., 2:] += 5
    return found


def _needs_pixels(model: nn.Module) -> bool:
    """Whether a model takes a text and an image together."""
    names = inspect.signature(model.forward).parameters
    return (
        getattr(model.config, "model_type", "")
        in (
            "clip",
            "siglip",
            "siglip2",
            "chinese_clip",
            "altclip",
            "clipseg",
            "flava",
            "groupvit",
            "metaclip_2",
            "align",
            "blip",
            "bridgetower",
            "vilt",
            "owlvit",
            "owlv2",
            "x_clip",
            "vision-text-dual-encoder",
            "dinov3",
            "visual_bert",
            "metaclip2",
            "siglip2",
        )
        and "pixel_values" in names
    )


def _tokens(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of different lengths."""
    ids = torch.randint(10, 90, (rows, length), generator=generator)
    mask = (torch.arange(length)[None, :] < (length - 2 * torch.arange(rows))[:, None].clamp(min=2)).long()
    return ids, mask


def _pixels(config: Any, rows: int, generator: torch.Generator) -> Tensor:
    """Images of the size that a config or its vision part states."""
    own = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    size = getattr(own, "image_size", 32)
    size = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(own, "num_channels", 3)
    return torch.randn(rows, channels if isinstance(channels, int) else 3, *size, generator=generator)


def _audio(model: nn.Module, config: Any, wants: list[str], rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Sounds or spectrograms."""
    if "input_values" in wants and config.model_type not in ("audio-spectrogram-transformer", "speecht5"):
        return {"input_values": torch.randn(rows, 400, generator=generator)}
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
    if config.model_type == "whisper":
        return {"input_features": torch.randn(rows, bins, 16, generator=generator)}
    if config.model_type == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(rows, config.max_length, bins, generator=generator)}
    name = next((n for n in wants if n.startswith("input_")), "input_features")
    return {name: torch.randn(rows, 16, bins, generator=generator)}
