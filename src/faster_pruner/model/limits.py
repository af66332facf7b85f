"""What a model can be given: the longest row, and made-up inputs of any shape."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.model.passes import device_of

# Tokens of a row for a model that states no limit of its own.
_WITHOUT_A_LIMIT = 512
# Side of an image, samples of a sound and frames of a spectrogram for models that state none.
_IMAGE, _SAMPLES, _FRAMES = 224, 8000, 64
# Tokens of an image or a sound for a model that does not state how many it makes: a ViT's at 224 x 224.
_USUAL_TOKENS = 197


def longest_row(model: nn.Module) -> int:
    """Most tokens of a row that the model has a position for.

    A table of position embeddings that keeps a row for padding (RoBERTa's and its relatives') counts positions from
    behind that row, so it places that many tokens fewer.
    """
    stated = getattr(model.config, "max_position_embeddings", None)
    longest = stated if isinstance(stated, int) and stated > 0 else _WITHOUT_A_LIMIT
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            longest = min(longest, module.num_embeddings - (0 if padding is None else padding + 1))
    return longest


def main_input(model: nn.Module) -> str:
    """Name of what a model is about: `input_ids` for text, `pixel_values` for images."""
    return str(getattr(model, "main_input_name", "input_ids"))


def shapes_for(model: nn.Module, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(batch, tokens) pairs as far as the model takes them: texts up to its longest, images and sounds as they are."""
    if main_input(model) == "input_ids":
        longest = longest_row(model)
        found = [(batch, min(tokens, longest)) for batch, tokens in wanted]
    else:
        found = [(batch, _row_tokens(model)) for batch, _ in wanted]
    return list(dict.fromkeys(found))


def _row_tokens(model: nn.Module) -> int:
    """Tokens that a model makes of what `made_up_inputs` gives it, which is no text."""
    config, main = model.config, main_input(model)
    return image_tokens(config) if main == "pixel_values" else sound_tokens(config, _sound_shape(model, config, main))


def image_tokens(config: Any) -> int:
    """Tokens that a model makes of an image, about: its patches and one that stands for all."""
    _, height, width = _image_shape(config)
    own = getattr(config, "vision_config", None) or config
    patch = getattr(own, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) and patch else patch
    if type(patch) is not int or not 0 < patch <= min(height, width):
        return _USUAL_TOKENS
    return (height // patch) * (width // patch) + 1


def image_channels(config: Any) -> int:
    """Channels of the images that a model sees."""
    return _image_shape(config)[0]


def sound_tokens(config: Any, shape: Sequence[int]) -> int:
    """Tokens that a model makes of a sound, about.

    Args:
        config: of the model.
        shape: of a row, [samples] or [frames, bins].
    """
    ratio, patch = getattr(config, "inputs_to_logits_ratio", None), getattr(config, "patch_size", None)
    strides = getattr(config, "time_stride", None), getattr(config, "frequency_stride", None)
    if len(shape) == 1 and type(ratio) is int and ratio > 0:
        return max(1, shape[0] // ratio)
    if len(shape) == 2 and type(patch) is int and all(type(each) is int and each > 0 for each in strides):
        # patches that may overlap, and two tokens that stand for all
        counts = [(side - patch) // stride + 1 for side, stride in zip(shape, strides, strict=True) if stride]
        return max(1, math.prod(counts)) + 2
    return _USUAL_TOKENS


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Tensors that a model of one kind of input is called with."""
    main = main_input(model)
    if main != "input_ids":
        return (main,)
    types = int(getattr(model.config, "type_vocab_size", 0) or 0)
    return ("input_ids", "attention_mask", "token_type_ids") if types > 1 else ("input_ids", "attention_mask")


def made_up_inputs(
    model: nn.Module, batch: int, sequence: int, *, seed: int = 0, padded: bool = False
) -> dict[str, Tensor]:
    """Random inputs on the model's device, of every kind that it needs; the same for the same shape and seed.

    Args:
        model: of text, images or sound.
        batch: rows.
        sequence: tokens per row; images have the size that the model's config states, sound is as long as it needs.
        seed: of what is random.
        padded: the second half of the last row of text is padding.
    """
    generator = torch.Generator().manual_seed((seed + batch) * 100_003 + sequence)
    names = inspect.signature(model.forward).parameters
    main = main_input(model)
    config: Any = model.config
    towers = "pixel_values" in names and hasattr(config, "vision_config") and hasattr(config, "text_config")
    found: dict[str, Tensor] = {}
    if main == "pixel_values" or towers:
        found["pixel_values"] = torch.randn(batch, *_image_shape(config), generator=generator)
    if main in ("input_values", "input_features"):
        found[main] = torch.randn(batch, *_sound_shape(model, config, main), generator=generator)
    if not found or (towers and "input_ids" in names):
        found |= _text(config, batch, sequence, generator, padded=padded)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        # a classifier reads the last end of sentence, which every row needs
        found["decoder_input_ids"] = found.get("input_ids", _ids(config, batch, sequence, generator))
    device = device_of(model)
    return {key: value.to(device) for key, value in found.items()}


def _text(config: Any, batch: int, sequence: int, generator: torch.Generator, *, padded: bool) -> dict[str, Tensor]:
    """Token ids and their mask."""
    ids = _ids(config, batch, sequence, generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[-1, max(1, sequence // 2) :] = 0
    pad, end = _special(config, "pad_token_id"), _special(config, "eos_token_id")
    if end is not None and getattr(config, "is_encoder_decoder", False):
        ids[torch.arange(batch), mask.sum(dim=1) - 1] = end
    if pad is not None:
        ids = torch.where(mask == 0, pad, ids)
    return {"input_ids": ids, "attention_mask": mask}


def _special(config: Any, name: str) -> int | None:
    """The id of a special token, if the config states one that can be."""
    value = getattr(config.get_text_config(), name, None) if hasattr(config, "get_text_config") else None
    value = getattr(config, name, None) if value is None else value
    return value if isinstance(value, int) and value >= 0 else None


def _ids(config: Any, batch: int, sequence: int, generator: torch.Generator) -> Tensor:
    """[B, S] ids of words: no token that means something to the model's code (padding, an image, an end)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    words = int(getattr(text, "vocab_size", 0) or getattr(config, "vocab_size", 0) or 2)
    ids = torch.randint(0, words, (batch, sequence), generator=generator)
    stated = [value for own in {id(config): config, id(text): text}.values() for value in _stated_ids(own)]
    taken = {value for value in stated if 0 <= value < words}
    plain = next((word for word in range(words - 1, -1, -1) if word not in taken), 0)
    for value in taken:
        ids = torch.where(ids == value, plain, ids)
    return ids


def _stated_ids(config: Any) -> list[int]:
    """Ids of special tokens that a config states."""
    return [v for k, v in vars(config).items() if k.endswith(("_token_id", "_token_index")) and type(v) is int]


def _image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of what a model of images sees."""
    own = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    size = getattr(own, "image_size", None) or _IMAGE
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    channels = getattr(own, "num_channels", 3)
    return (channels if isinstance(channels, int) else 3), height, width


def _sound_shape(model: nn.Module, config: Any, main: str) -> tuple[int, ...]:
    """What a model of sound hears: samples, or frames of a spectrogram in the order that its config implies."""
    bins = int(getattr(config, "num_mel_bins", 0) or getattr(config, "feature_size", 0) or 80)
    if main == "input_values":
        longest = getattr(config, "max_length", None)
        spectrogram = hasattr(config, "num_mel_bins") and hasattr(config, "frequency_stride")
        return (int(longest or _FRAMES), bins) if spectrogram else (_SAMPLES,)
    positions = getattr(config, "max_source_positions", None)
    if isinstance(positions, int) and any(isinstance(each, nn.Conv1d) for each in model.modules()):
        # Whisper and its relatives take exactly as much as they have positions for, halved by a convolution
        return (bins, 2 * positions)
    return (_FRAMES, bins)
