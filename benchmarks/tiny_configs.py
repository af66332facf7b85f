"""Tiny random models of any transformers model type; `tiny_batches` has a batch for each."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_sizes import BY_TYPE, EVEN_IF_NONE, HEADS, LAYERS, RESNET, SIZES, WIDTH, WORDS

# Fields that are worked out anew from others.
_DERIVED = ("transformers_version", "dtype", "stage_names", "out_features", "_out_features", "_out_indices")
# Ways of rotating that ask for more than a tiny model has.
_LONG = ("longrope", "yarn")


def build(cls: Any, model_type: str) -> nn.Module:
    """The tiny model that an auto class opens for a model type."""
    from transformers import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING[model_type]())
    chosen = cls._model_mapping[type(config)]
    chosen = chosen[0] if isinstance(chosen, list | tuple) else chosen
    torch.manual_seed(0)
    return randomise(chosen._from_config(_own_config(chosen, config)))


def _own_config(cls: Any, config: Any) -> Any:
    """The part of a config that a class is built from, where an auto class maps the whole to a class for a part."""
    wanted = cls.config_class
    if wanted is None or isinstance(config, wanted):
        return config
    return next((part for part in vars(config).values() if isinstance(part, wanted)), config)


def tiny_config(config: Any, special: dict[str, Any] | None = None) -> Any:
    """A small config of the same class, with some fields as they are said."""
    raw = config.to_dict()
    for key, value in _changes(config).items():
        raw[key] = value.to_dict() if hasattr(value, "to_dict") else value
    for key in _DERIVED:
        raw.pop(key, None)
    if "pad_token_id" in raw or hasattr(config, "pad_token_id"):
        raw["pad_token_id"] = 0
    if isinstance(getattr(config, "eos_token_id", None), int):
        raw["eos_token_id"] = 2
    for key in ("pooler_hidden_size", "decoder_hidden_size"):
        if raw.get(key):
            raw[key] = WIDTH
    raw |= special or {}
    _set_stages(raw)
    _set_layers(raw)
    for key in ("rope_parameters", "rope_scaling"):
        if key not in BY_TYPE.get(config.model_type, {}):
            raw[key] = _rotation(config, raw, raw.get(key))
            if raw[key] is None:
                raw.pop(key)
    return type(config).from_dict(raw)


def _changes(config: Any) -> dict[str, Any]:
    """Overrides for one config, recursing into its sub-configs."""
    from transformers import PreTrainedConfig

    found: dict[str, Any] = {}
    fields = vars(config)
    layers = [fields.get(n) for n in SIZES if SIZES[n] == LAYERS and isinstance(fields.get(n), int)]
    special = BY_TYPE.get(config.model_type, {})
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            found[name] = {**RESNET} if value.model_type == "timm_backbone" else tiny_config(value, special.get(name))
        elif name not in special:
            found |= _change(name, value, layers)
    if found.get("num_key_value_heads") and fields.get("num_key_value_heads") == fields.get("num_attention_heads"):
        found["num_key_value_heads"] = HEADS
    return found | {name: copy.deepcopy(value) for name, value in special.items() if not _is_part(fields.get(name))}


def _is_part(value: Any) -> bool:
    """Whether a field is a config itself."""
    return hasattr(value, "model_type")


def _change(name: str, value: Any, layers: list[Any]) -> dict[str, Any]:
    """What becomes of one field, by its name; nothing where it stays."""
    several = isinstance(value, list | tuple) and len(value) > 0
    if name in SIZES:
        if several and all(isinstance(each, int) for each in value):
            return {name: [min(SIZES[name], each) for each in value]}
        number = isinstance(value, int) and not isinstance(value, bool)
        return {name: SIZES[name]} if number or (value is None and name in EVEN_IF_NONE) else {}
    if name.endswith("token_id") and isinstance(value, int) and value >= WORDS:
        return {name: WORDS - 1}
    if name == "eos_token_id" and several:
        return {name: [WORDS - 1]}
    if name == "depths" and several and not isinstance(value[0], list):
        return {name: [1] * (LAYERS if len(value) in layers else len(value))}
    if several and (name.endswith("_types") or name.endswith("block_type")) and isinstance(value[0], str):
        return {name: _few(list(value))}
    if several and len(value) in layers and len(value) > LAYERS:
        return {name: list(value[:LAYERS])}
    return {}


def _few(value: list[str]) -> list[str]:
    """As many layers as there will be, of different types where there are such, one of attention among them."""
    kinds = sorted(dict.fromkeys(value), key=lambda kind: "attention" not in kind or "linear" in kind)
    firsts = [value.index(kind) for kind in kinds][:LAYERS]
    others = [index for index in range(len(value)) if index not in firsts]
    return [value[index] for index in sorted([*firsts, *others[: LAYERS - len(firsts)]])]


def _set_stages(raw: dict[str, Any]) -> None:
    """What a backbone hands on: as many stages as before, of those that there still are."""
    before = raw.pop("out_indices", None)
    if not before or not isinstance(before, list | tuple) or "backbone_config" in raw:
        return
    stages = raw.get("depths") or raw.get("hidden_sizes")
    if isinstance(stages, list):
        raw["out_indices"] = [index for index in before if index <= len(stages)]
    elif max(before) > 0 and isinstance(raw.get("num_hidden_layers"), int):
        raw["num_hidden_layers"] = max(LAYERS, len(before))
        raw["out_indices"] = list(range(raw["num_hidden_layers"] - len(before) + 1, raw["num_hidden_layers"] + 1))


def _set_layers(raw: dict[str, Any]) -> None:
    """Settings of single layers: those of the last one that has any, for the last one that there is."""
    single = raw.get("per_layer_config")
    if single and isinstance(single, dict):
        own = list(single.values())[-1]
        small = {key: SIZES.get(key, value) for key, value in own.items()}
        if "num_key_value_heads" in own and own["num_key_value_heads"] == own.get("num_attention_heads"):
            small["num_key_value_heads"] = HEADS
        raw["per_layer_config"] = {LAYERS - 1: small}


def _rotation(config: Any, raw: dict[str, Any], value: Any) -> Any:
    """The parameters of rotary positions, with sections that fill a head of the size that there is."""
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(each, dict) for each in value.values()):
        return {key: _rotation(config, raw, each) for key, each in value.items()}
    if value.get("rope_type") in _LONG:
        value = {"rope_type": "default", "rope_theta": 10000.0}
    if "mrope_section" in value or "mrope_section" in _modelling(type(config)):
        if not value:
            return value
        size = raw.get("head_dim") or raw.get("hidden_size", WIDTH) // raw.get("num_attention_heads", HEADS)
        pairs = int(size * (value.get("partial_rotary_factor") or 1)) // 2
        first = max(1, pairs // 4)
        value = {**value, "mrope_section": [first, first, pairs - 2 * first]}
    return value


@cache
def _modelling(cls: type) -> str:
    """The source of the models of a config."""
    path = Path(inspect.getfile(cls))
    path = path.with_name(path.name.replace("configuration_", "modeling_"))
    return path.read_text() if path.is_file() else ""


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
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # transformers may set it to zero when it loads
            module.weight[module.padding_idx] = 0
    return model.eval()
