"""Save a pruned checkpoint and prove that it is what was in memory."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.checkpoint.companions import NONE, Companions
from faster_pruner.checkpoint.opening import load
from faster_pruner.checkpoint.processors import open_processor
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.remote import MODULE, remote_code
from faster_pruner.checkpoint.screening import CONFIG
from faster_pruner.checkpoint.sizes import build_stock, mark_as_pruned, opens_with_stock_class
from faster_pruner.data.batches import Batch
from faster_pruner.errors import CheckpointError, FasterPrunerError, OutputError, VerificationError
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.classes import auto_classes_of
from faster_pruner.model.describe import family_of_all
from faster_pruner.model.passes import all_tensors_in, device_of, inference
from faster_pruner.model.precision import copy_of
from faster_pruner.model.spec import Sublayer, resolve
from faster_pruner.model.staging import stage_like

if TYPE_CHECKING:
    from faster_pruner.checkpoint.processors import Processor

# Most bytes of one weights file.
_SHARD = "5GB"


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    processor: Processor | None,
    *,
    dtype: torch.dtype,
    companions: Companions = NONE,
) -> None:
    """Write model, config, processor and companion files into an existing folder, weights in `dtype`.

    Where plain transformers cannot open the result, the config also gets the sizes in the shape of transformers' own
    `per_layer_config` (so that it refuses loudly) and an `auto_map` to a generated file (see `remote`).

    Args:
        folder: that takes the files.
        model: a pruned transformers model; its config is marked with its sizes.
        sublayers: of the model, at their present sizes; none of a dense model, whose config is then left unmarked.
        processor: that goes with it, if any.
        dtype: of the weights in the file.
        companions: of the dense checkpoint; where they hold all of the processor's files, it writes none of its own.

    Raises:
        OutputError: the disk fills up.
    """
    if sublayers:
        mark_as_pruned(model, sublayers)
    stored: Any = copy_of(model, dtype=dtype, device=torch.device("cpu"))
    try:
        with _named("the model"):
            stored.save_pretrained(folder, max_shard_size=_SHARD)
        companions.write(folder)
        if processor is not None and not (companions.whole and _is_there(processor, folder, stored)):
            with _named(_called(processor)):
                processor.save_pretrained(folder)
            companions.write(folder)
        path = folder / CONFIG
        config = json.loads(path.read_text())
        config.pop("auto_map", None)
        # where a model lay on this machine is nobody else's business
        config.pop("_name_or_path", None)
        config |= _labels_left_out(model.config, config)
        if not opens_with_stock_class(model, sublayers):
            name = type(model).__name__
            config["auto_map"] = dict.fromkeys(auto_classes_of(name, config["model_type"]), f"{MODULE}.{name}")
            stock = build_stock(model)
            (folder / f"{MODULE}.py").write_text(remote_code(name, resolve(stock, family_of_all(sublayers))))
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error}") from error


def _labels_left_out(config: Any, written: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the classes that a config has and its file has not.

    transformers leaves two classes without names out, also where the config's own class has another number by default
    (BART has three): what it wrote would not open.
    """
    if "id2label" in written or getattr(config, "id2label", None) is None:
        return {}
    try:
        by_default: Any = type(config)()
    except Exception:  # a config of parts that must be given, which raises what it likes
        return {}
    if by_default.num_labels == config.num_labels:
        return {}
    return {"id2label": {str(i): name for i, name in config.id2label.items()}, "label2id": dict(config.label2id)}


def check_savable(model: nn.Module, processor: Processor | None) -> None:
    """Before any work: config, generation config and processor can be written. Raises CheckpointError, OutputError."""
    given: Any = model
    with temporary_folder() as folder:
        with _named("config.json"):
            given.config.save_pretrained(folder)
        if getattr(given, "generation_config", None) is not None and given.can_generate():
            with _named("generation_config.json"):
                given.generation_config.save_pretrained(folder)
        if processor is not None:
            with _named(_called(processor)):
                processor.save_pretrained(folder)


def _is_there(processor: Processor, folder: Path, model: PreTrainedModel) -> bool:
    """Whether a folder has all files of a processor; some read a file of a name that nobody else has."""
    try:
        found = open_processor(str(folder), model)
    except FasterPrunerError:
        return False
    if isinstance(found, PreTrainedTokenizerBase) and isinstance(processor, PreTrainedTokenizerBase):
        return found.get_vocab() == processor.get_vocab()
    return type(found) is type(processor)


def _called(processor: Processor) -> str:
    """What a person calls it."""
    return "the tokenizer" if isinstance(processor, PreTrainedTokenizerBase) else "the processor"


@contextmanager
def _named(what: str) -> Generator[None]:
    """What cannot be saved, as an error of ours: transformers raises whatever it comes across."""
    try:
        with quiet_transformers():
            yield
    except OSError as error:
        raise OutputError(f"cannot write {what}: {error.strerror or error}") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what} of this model cannot be saved: {reason}; mend it there, then prune") from error


def verify(folder: Path, model: nn.Module, batches: Sequence[Batch]) -> str:
    """Reopen a saved checkpoint and compare everything that it returns with the model in memory, bit for bit.

    Returns:
        What was verified, in words.

    Raises:
        VerificationError: any value differs.
    """
    parameter = next(model.parameters())
    reopened: Any = load(folder, dtype=parameter.dtype)
    stage_like(reopened, model, device_of(model))
    config: Any = model.config
    if config._attn_implementation != reopened.config._attn_implementation:
        # how attention is computed is a choice of whoever opens a folder, not a part of it
        reopened.set_attn_implementation(config._attn_implementation)
    rows = 0
    with inference(model), inference(reopened):
        for batch in batches:
            before, after = all_tensors_in(model(**batch.inputs)), all_tensors_in(reopened(**batch.inputs))
            if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
                raise VerificationError(
                    "the saved checkpoint does not reproduce what the pruned model returns; nothing was written. "
                    "Please report this"
                )
            rows += batch.rows.numel()
    return f"what the reopened checkpoint returns is bit-equal on {rows} rows"


def weight_bytes(folder: Path) -> int:
    """Size of the weights files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round all floating-point tensors that are saved to what `dtype` can hold, keeping their own dtype.

    What is computed from the config (frequencies of rotary positions) is in no file, and is exact in every dtype.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype).to(tensor.dtype))
