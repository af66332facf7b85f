"""What a model can be given: the longest row, and made-up inputs of any shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.model.passes import device_of

# Tokens of a row for a model that states no limit of its own.
_WITHOUT_A_LIMIT = 512


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


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Tensors that a text model is called with."""
    types = int(getattr(model.config, "type_vocab_size", 0) or 0)
    return ("input_ids", "attention_mask", "token_type_ids") if types > 1 else ("input_ids", "attention_mask")


def made_up_inputs(
    model: nn.Module, batch: int, sequence: int, *, seed: int = 0, padded: bool = False
) -> dict[str, Tensor]:
    """Random token ids on the model's device; the same for the same shape and seed.

    Args:
        model: a text model.
        batch: rows.
        sequence: tokens per row.
        seed: of the ids.
        padded: the second half of the last row is padding.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed((seed + batch) * 100_003 + sequence)
    ids = torch.randint(0, int(config.vocab_size), (batch, sequence), generator=generator)
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int):
        ids = torch.where(ids == pad, (pad + 1) % int(config.vocab_size), ids)
    mask = torch.ones_like(ids)
    if padded:
        mask[-1, max(1, sequence // 2) :] = 0
    device = device_of(model)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
