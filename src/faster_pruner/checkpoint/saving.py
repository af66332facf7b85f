"""Save a pruned checkpoint and prove that it is what was in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.batches import Batch
from faster_pruner.capture import inference
from faster_pruner.checkpoint.opening import (
    AUTO_CLASSES,
    CONFIG,
    FORMAT,
    METADATA_KEY,
    load,
    quiet_transformers,
    stock_class_of,
)
from faster_pruner.checkpoint.remote import MODULE, remote_code
from faster_pruner.errors import CheckpointError, OutputError, VerificationError
from faster_pruner.families import FamilySpec, base_model, family_of, resolve


def describe_sizes(model: PreTrainedModel, family: FamilySpec) -> dict[str, dict[str, int]]:
    """Unit counts per layer in the shape of transformers' `per_layer_config`."""
    layers: dict[str, dict[str, int]] = {}
    for sublayer in resolve(model, family):
        layers.setdefault(str(sublayer.layer), {})[sublayer.spec.config_key] = sublayer.units
    return layers


def mark_as_pruned(model: PreTrainedModel, family: FamilySpec) -> None:
    """Put the sizes into the model's config, so that every later `save_pretrained` keeps them.

    Sizes that the stock config can express (the same in every layer, see `SublayerSpec.stock`) go there as well.
    """
    sizes = describe_sizes(model, family)
    for spec in family.sublayers:
        counts = {layer[spec.config_key] for layer in sizes.values()}
        if spec.stock and len(counts) == 1:
            setattr(model.config, spec.config_key, counts.pop())
    setattr(model.config, METADATA_KEY, {"format": FORMAT, "per_layer_config": sizes})


def opens_with_stock_class(model: PreTrainedModel, family: FamilySpec) -> bool:
    """Whether plain transformers builds a model of these sizes from its config (see `mark_as_pruned`)."""
    return all(
        layer[spec.config_key] == getattr(model.config, spec.config_key)
        for layer in describe_sizes(model, family).values()
        for spec in family.sublayers
    )


def write_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype
) -> None:
    """Write model, config and tokenizer into an existing folder, weights in `dtype`.

    Where plain transformers cannot open the result, the config also gets the sizes in the shape of transformers' own
    `per_layer_config` (so that it refuses loudly) and an `auto_map` to a generated file (see `remote`).

    Raises:
        OutputError: the disk fills up.
    """
    stored: Any = copy.deepcopy(model).cpu()
    stored = stored.to(dtype)
    family = family_of(str(model.config.model_type))
    try:
        with quiet_transformers():
            stored.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        path = folder / CONFIG
        config = json.loads(path.read_text())
        config.pop("auto_map", None)
        if not opens_with_stock_class(model, family):
            config["per_layer_config"] = config[METADATA_KEY]["per_layer_config"]
            config["auto_map"] = {auto_class_of(model).__name__: f"{MODULE}.{type(model).__name__}"}
            code = remote_code(family, type(model).__name__, base_model(model)[1])
            (folder / f"{MODULE}.py").write_text(code)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error}") from error


def auto_class_of(model: PreTrainedModel) -> Any:
    """The auto class that opens models of this class."""
    for auto in AUTO_CLASSES:
        if stock_class_of(auto, type(model.config)) is type(model):
            return auto
    raise CheckpointError(f"{type(model).__name__} belongs to no auto class that faster-pruner knows")


def verify(folder: Path, model: PreTrainedModel, batches: Sequence[Batch]) -> str:
    """Reopen a saved checkpoint and compare its logits with the model in memory, bit for bit.

    Returns:
        What was verified, in words.

    Raises:
        VerificationError: any logit differs.
    """
    device = next(model.parameters()).device
    reopened = load(folder, dtype=next(model.parameters()).dtype).to(device)  # pyright: ignore[reportArgumentType]
    rows = 0
    with inference(model), inference(reopened):
        for batch in batches:
            if not torch.equal(model(**batch.inputs).logits, reopened(**batch.inputs).logits):
                raise VerificationError(
                    "the saved checkpoint does not reproduce the pruned model's logits; nothing was written. "
                    "Please report this"
                )
            rows += batch.rows.numel()
    return f"logits of the reopened checkpoint are bit-equal on {rows} rows"


def weight_bytes(folder: Path) -> int:
    """Size of the weights files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
