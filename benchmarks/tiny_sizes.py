"""How small the tiny models of `tiny_configs` are: by the names of config fields, and by model type."""

from __future__ import annotations

import os
from typing import Any

LAYERS, WIDTH, HEADS, GROUPS, HEAD, NEURONS, WORDS = 2, 32, 4, 2, 8, 64, 120
if os.environ.get("OTHER"):
    # no two sizes are alike
    LAYERS, WIDTH, HEADS, GROUPS, HEAD, NEURONS = 4, 48, 6, 3, 12, 100

# What config fields become, by the names that transformers' configs have in common.
_NAMES: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim encoder_hidden_size "
        "decoder_hidden_size projection_dim text_embed_dim input_embedding_size adapter_hidden_size lm_hidden_size "
        "hidden_dim_size vision_embed_dim out_hidden_size hidden_size_per_layer_input embedding_dim decoder_dim "
        "attention_hidden_size width projection_hidden_size projection_size num_mel_features classifier_proj_size "
        "out_features_dim condition_dim audio_hidden_size text_hidden_size mamba_d_ssm upsample_groups output_dim",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers depth encoder_num_layers decoder_num_layers num_blocks text_num_layers",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads encoder_num_attention_heads "
        "decoder_num_attention_heads swa_num_attention_heads num_query_heads linear_num_value_heads mamba_n_heads "
        "mamba_num_heads linear_num_heads",
    ),
    (
        GROUPS,
        "num_key_value_heads n_head_kv num_kv_heads kv_n_heads encoder_num_key_value_heads "
        "decoder_num_key_value_heads swa_num_key_value_heads multi_query_group_num linear_num_key_heads",
    ),
    (
        HEAD,
        "head_dim d_kv kv_channels attention_head_dim attention_head_size d_head v_head_dim qk_nope_head_dim "
        "qk_rope_head_dim global_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head "
        "mamba_head_dim",
    ),
    (2 * HEAD, "qk_head_dim"),
    (16, "q_lora_rank kv_lora_rank context_size"),
    (
        NEURONS,
        "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner ffn_hidden_size "
        "mlp_hidden_size moe_intermediate_size shared_expert_intermediate_size feed_forward_size intermediate_dim "
        "mlp_dim encoder_intermediate_size ffn_intermediate_size intermediate_size_mlp dense_intermediate_size "
        "block_ff_dim",
    ),
    (
        WORDS,
        "vocab_size text_vocab_size audio_vocab_size vocab_size_per_layer_input character_vocab_size",
    ),
    (
        64,
        "max_position_embeddings n_positions n_ctx max_target_positions max_sequence_length max_seq_len seq_length",
    ),
    (
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts num_conv_pos_embeddings num_frames "
        "frames_per_clip "
        "num_queries num_object_queries num_latents",
    ),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k num_conv_pos_embedding_groups tubelet_size"),
    (1, "mamba_n_groups n_groups n_group topk_group num_expert_group num_codebooks"),
    (32, "image_size img_size crop_size max_source_positions"),
    (8, "patch_size sliding_window local_attention"),
    (8, "mamba_d_state mamba_state_size state_size ssm_state_size mamba_chunk_size"),
    (8, "prediction_length context_length"),
)
SIZES: dict[str, int] = {name: value for value, names in _NAMES for name in names.split()}
# Fields that are set where a config says nothing.
EVEN_IF_NONE = ("head_dim", "num_key_value_heads", "vocab_size", "prediction_length")

_CONVOLUTIONS = {
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4}
_SWIN_4 = {"embed_dim": 16, "depths": [1] * 4, "num_heads": [2, 4, 8, 16], "window_size": 2, "hidden_size": 128}
# What keeps the sizes of a mamba layer in step.
_MAMBA = {"mamba_expand": 1, "mamba_d_head": WIDTH // HEADS}
_SEVERAL_STAGES = {
    "embed_dim": [8, 16, 32],
    "num_heads": [1, 2, 4],
    "depth": [1, 2, 3],
}
_SERIES = {"lags_sequence": [1], "num_time_features": 1, "context_length": 8, "prediction_length": 4, "feature_size": 4}
# A small backbone in the place of one of timm's.
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

# Special cases, by model type (of any config or sub-config).
BY_TYPE: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": WIDTH, "hidden_dim": NEURONS},
    "flaubert": {"emb_dim": 32, "hidden_dim": 64},
    "xlm": {"emb_dim": 32},
    "whisper": {"max_source_positions": 8, "num_mel_bins": 8},
    "esm": {"token_dropout": False, "position_embedding_type": "rotary"},
    "wav2vec2": _CONVOLUTIONS,
    "data2vec-audio": {**_CONVOLUTIONS, "num_conv_pos_embeddings": 2},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": 4},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [WIDTH // 2, WIDTH // 2]},
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
    "mpt": {"max_seq_len": 64, "n_heads": HEADS, "n_layers": LAYERS, "d_model": WIDTH},
    "ctrl": {"dff": 64},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "gptj": {"rotary_dim": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_model": WIDTH, "num_decoder_layers": 1},
    "longformer": {"attention_window": [8] * LAYERS},
    "led": {"attention_window": [8] * LAYERS},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "segformer": {
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "patch_sizes": [3, 3, 3, 3],
        "image_size": 32,
    },
    "longt5": {"local_radius": 4, "encoder_attention_type": "local"},
    "vilt": {"image_size": 32},
    "deepseek_v2": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "gemma3n_text": {
        "intermediate_size": [NEURONS] * LAYERS,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": (WIDTH - 20) // 2, "input_size": 32},
    "siglip2_vision_model": {"num_patches": 16},
    "mistral4": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "convnext": {"image_size": 64},
    "convnextv2": {"image_size": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "dpt": {"is_hybrid": False},
    "bamba": {**_MAMBA, "attn_layer_indices": [LAYERS - 1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "mamba2": {"expand": 1, "head_dim": WIDTH // HEADS},
    "zaya": {"num_experts_per_tok": 1},
    "cvt": _SEVERAL_STAGES,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 8},
    "bridgetower": {"hidden_size": 64, "text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 64}},
    "wavtokenizer_encoder": {"codebook_dim": WIDTH},
    "wavtokenizer": {"codebook_dim": WIDTH},
    "patchtsmixer": {"context_length": 32, "num_input_channels": 2},
    "patchtst": {"context_length": 32, "num_input_channels": 2},
    "sam_vision_model": {"image_size": 32, "global_attn_indexes": [1], "window_size": 2, "output_channels": 32},
    "speecht5": {**_CONVOLUTIONS},
    "dots1": {"n_routed_experts": 4, "num_local_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": NEURONS},
    "time_series_transformer": _SERIES,
    "informer": _SERIES,
    "autoformer": {**_SERIES, "label_length": 4, "context_length": 16},
    "bros": {
        "hidden_size": 64,
        "dim_bbox_sinusoid_emb_2d": 16,
        "dim_bbox_sinusoid_emb_1d": 2,
        "dim_bbox_projection": 64 // HEADS,
    },
    "mobilevitv2": {"patch_size": 2},
    "swin2sr": {**_SWIN, "patch_size": 1},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "attention_hidden_size": 2 * WIDTH},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_headdim": WIDTH // 4},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "perceiver": {"d_latents": WIDTH, "num_self_attends_per_block": 2, "num_cross_attention_heads": 4},
    "lw_detr_vit": {"num_windows": 4, "window_block_indices": [0]},
    "molmo2_adapter": {"vision_feature_layer": [-1, -2]},
    "encodec": {"codebook_dim": WIDTH, "num_filters": 4},
    "granite_speech5_encoder": {"input_dim": 80},
    "vjepa2": {"pred_hidden_size": WIDTH, "pred_num_attention_heads": HEADS, "pred_num_hidden_layers": LAYERS},
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 1, 1, 1],
        "global_attention_blocks": [2],
        "image_size": [64, 64],
    },
    "sam2_vision_model": {"backbone_channel_list": [128, 64, 32, 16]},
    "maskformer": {"backbone_config": _SWIN_4},
    "mask2former": {"backbone_config": _SWIN_4},
    "oneformer": {"backbone_config": _SWIN_4},
    "sam_prompt_encoder": {"image_embedding_size": 4},
    "sam_hq_prompt_encoder": {"image_embedding_size": 4},
    "hrm_text": {"num_layers_per_stack": LAYERS, "num_hidden_layers": LAYERS * 8},
    "moonshine": {"encoder_num_key_value_heads": HEADS, "decoder_num_key_value_heads": HEADS},
    "audio-spectrogram-transformer": {
        "max_length": 32,
        "num_mel_bins": 16,
        "patch_size": 8,
        "time_stride": 8,
        "frequency_stride": 8,
    },
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4},
    "pvt": {"depths": [1, 1, 1, 1]},
}
for _name in ("wav2vec2-conformer", "hubert", "unispeech", "unispeech-sat", "wavlm", "sew", "wav2vec2-bert", "sew-d"):
    BY_TYPE[_name] = {**_CONVOLUTIONS}
BY_TYPE["sam_hq_vision_model"] = BY_TYPE["sam_vision_model"]
for _name in ("swin", "swinv2", "donut-swin", "maskformer-swin"):
    BY_TYPE[_name] = {**_SWIN}
