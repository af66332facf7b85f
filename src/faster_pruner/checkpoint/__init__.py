"""Checkpoints: open one, save one, and prove that what was saved is what was in memory.

A pruned checkpoint is a Hugging Face folder (config.json, model.safetensors, tokenizer files) whose config carries

* ``faster_pruner``: ``{"format": 1, "per_layer_config": {"0": {"num_attention_heads": 7, ...}, ...}}``, which
  `load` reads;
* ``per_layer_config``: the same sizes in the shape that transformers itself uses for heterogeneous models, so that a
  stock ``from_pretrained`` refuses the folder loudly instead of re-initialising layers;
* ``auto_map``: a generated file that builds the stock class with these sizes (``trust_remote_code=True``, see
  `remote`).

Where the stock class can express the sizes, the last two are absent and plain transformers opens the folder.
Nothing is ever unpickled, and nothing that a config says becomes a path or code.
"""

from faster_pruner.checkpoint.auto import register
from faster_pruner.checkpoint.opening import METADATA_KEY, Opened, load, open_checkpoint, quiet_transformers
from faster_pruner.checkpoint.saving import (
    auto_class_of,
    mark_as_pruned,
    opens_with_stock_class,
    verify,
    weight_bytes,
    write_checkpoint,
)

__all__ = [
    "METADATA_KEY",
    "Opened",
    "auto_class_of",
    "load",
    "mark_as_pruned",
    "open_checkpoint",
    "opens_with_stock_class",
    "quiet_transformers",
    "register",
    "verify",
    "weight_bytes",
    "write_checkpoint",
]
