"""Open a checkpoint, dense or pruned, as a stock transformers class; every value of a config is checked."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from faster_pruner.checkpoint.screening import (
    CONFIG,
    as_place,
    check_config,
    check_counts,
    check_place,
    first_lines,
    read_json,
    shapes_in,
)
from faster_pruner.checkpoint.sizes import METADATA_KEY, sized
from faster_pruner.checks import shown
from faster_pruner.errors import CheckpointError
from faster_pruner.model.classes import stock_class
from faster_pruner.model.precision import usual_torch
from faster_pruner.model.shrink import without_layer_sizes
from faster_pruner.model.spec import Sublayer, resolve
from faster_pruner.model.table import check_supported, family_of

_NOT_READ = (
    # how attention is computed is a choice of whoever opens a folder, and not every machine has every way
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    # an old name that transformers writes nowhere and cannot read
    "use_return_dict",
)
# Names that an error message lists.
_NAMED = 3
# What transformers raises, somewhere inside, for a config that makes no sense.
_FROM_A_CONFIG = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, ImportError),
    *(AssertionError, StrictDataclassError),
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint in memory.

    Attributes:
        model: a stock transformers class, float32.
        tokenizer: its tokenizer.
        sublayers: its sublayers at their present sizes.
        dtype: the dtype that the checkpoint is stored in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sublayers: list[Sublayer]
    dtype: torch.dtype


@contextmanager
def quiet_transformers() -> Generator[None]:
    """No progress bars or warnings of transformers: what matters is said by our own errors."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # torch's of matrices without a column, which the model under construction has for a moment
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(place: str) -> dict[str, Any]:
    """config.json of a local folder or hub id. Raises CheckpointError."""
    check_place(place)
    if Path(place).is_dir():
        config = read_json(Path(place) / CONFIG)
    else:
        try:
            with quiet_transformers():
                config, _ = PreTrainedConfig.get_config_dict(place)
        except (OSError, ValueError, HFValidationError) as error:
            raise CheckpointError(f"{place!r} has no readable {CONFIG}: {first_lines(error)}") from error
    if not config:
        raise CheckpointError(f"{place!r} has no readable {CONFIG}: it says nothing")
    check_config(place, config)
    return config


@usual_torch()
def load(place: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Open a pruned (or dense) checkpoint as a stock transformers class with smaller matrices.

    Args:
        place: local folder or hub id.
        dtype: of the weights in memory; by default the checkpoint's own, except that half precision becomes float32
            when no GPU is present.

    Raises:
        CheckpointError: the folder is missing, damaged, or its tensors do not fit its config.
        UnsupportedModelError: no family describes it.
    """
    where = as_place(place)
    config = read_config(where)
    stored = _stored_dtype(config)
    if dtype is None:
        dtype = stored if torch.cuda.is_available() else torch.float32
    return _load(where, config, dtype)[0]


def open_checkpoint(place: str | Path, *, device: torch.device) -> Opened:
    """Open a checkpoint for pruning or evaluation: float32, on `device`, with its tokenizer.

    Raises:
        CheckpointError, UnsupportedModelError: see `load`; also NaN or infinite weights, or no tokenizer.
    """
    place = as_place(place)
    config = read_config(place)
    model, sublayers = _load(place, config, torch.float32)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{place!r}: tensor {name!r} has NaN or infinite values; nothing sensible can be computed"
            )
    tokenizer = _open_tokenizer(place, model.config)
    words: Any = model.get_input_embeddings()
    if len(tokenizer) > words.num_embeddings:
        raise CheckpointError(
            f"{place!r}: the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for "
            f"{words.num_embeddings}; save the tokenizer that belongs to it, or resize the embeddings and fine-tune"
        )
    placed: Any = model
    return Opened(placed.to(device), tokenizer, sublayers, _stored_dtype(config))


def _open_tokenizer(place: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. transformers makes up one without words where there is none: that is refused."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place, config=config)
    except (OSError, *_FROM_A_CONFIG) as error:
        raise CheckpointError(f"{place!r} has no tokenizer: {first_lines(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(f"{place!r} has no tokenizer files; save the tokenizer beside the model")
    return tokenizer


def _stored_dtype(config: dict[str, Any]) -> torch.dtype:
    """The dtype that a config states, float32 when it states none that we know."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    known = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float64": torch.float64,
    }
    return known.get(name, torch.float32)


def _load(place: str, raw: dict[str, Any], dtype: torch.dtype) -> tuple[PreTrainedModel, list[Sublayer]]:
    """Open a checkpoint, dense or pruned, without its tokenizer."""
    model_type = str(raw.get("model_type", ""))
    check_supported(model_type)
    try:
        with quiet_transformers():
            config = AutoConfig.for_model(model_type).from_dict({k: v for k, v in raw.items() if k not in _NOT_READ})
        stock = _stock_class(model_type, raw)
        plain = without_layer_sizes(config)
    except _FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {first_lines(error)}") from error
    shapes = shapes_in(Path(place)) if Path(place).is_dir() else None
    check_counts(place, plain, shapes, pruned=raw.get(METADATA_KEY) is not None)
    return _open_weights(place, config, stock, dtype)


def _stock_class(model_type: str, raw: dict[str, Any]) -> type[PreTrainedModel]:
    """The transformers class named by `architectures`, if transformers itself lists it for this model type."""
    wanted = raw.get("architectures") or []
    names = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else []
    found = next(filter(None, (stock_class(name, model_type) for name in names)), None)
    if found is None:
        raise CheckpointError(
            f"{CONFIG} names the architecture {str(wanted)[:60]}, which is not a class that transformers has for "
            f"{model_type}"
        )
    return found


def _open_weights(
    place: str, config: PreTrainedConfig, stock: type[PreTrainedModel], dtype: torch.dtype
) -> tuple[PreTrainedModel, list[Sublayer]]:
    """The model with its weights, and its sublayers; transformers' errors as one line of ours."""
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_transformers():
            # misfits are in what it says of the loading, with both shapes
            (model, info), sublayers = from_pretrained_with_sizes(
                place, config, stock, ignore_mismatched_sizes=True, **options
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place!r} has no readable safetensors weights: {first_lines(error)}") from error
    except _FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {first_lines(error)}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{place!r}: the tensors do not fit {CONFIG} ({first_lines(error)})") from error
    _check_loading(place, stock.__name__, info)
    return model.eval(), sublayers


def _check_loading(place: str, name: str, info: dict[str, Any]) -> None:
    """Raise CheckpointError when tensors of the file and of the model are not the same ones."""
    if info["mismatched_keys"]:
        key, there, here = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{place!r}: the tensors do not fit {CONFIG}: {key} is {list(there)} in the file, but {list(here)} by "
            f"{CONFIG}{_and_more(info['mismatched_keys'], 1)}; a checkpoint that another tool has pruned is not "
            "supported"
        )
    if info["missing_keys"]:
        raise CheckpointError(
            f"{place!r} lacks weights for {_listed(info['missing_keys'])}; give a fine-tuned {name} checkpoint"
        )
    if info["unexpected_keys"]:
        raise CheckpointError(
            f"{place!r} has weights that a {name} of this {CONFIG} has no place for: "
            f"{_listed(info['unexpected_keys'])}; give the {CONFIG} that was saved with them"
        )


def _listed(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(shown(name)[1:-1] for name in sorted(names)[:_NAMED]) + _and_more(names, _NAMED)


def _and_more(names: Collection[object], listed: int) -> str:
    return f" (and {len(names) - listed} more)" if len(names) > listed else ""


def from_pretrained_with_sizes(
    place: Any, config: PreTrainedConfig, stock: type[PreTrainedModel], *args: Any, **kwargs: Any
) -> tuple[Any, list[Sublayer]]:
    """`stock.from_pretrained` for a config that may carry our sizes: what it returns, and the sublayers.

    Its constructor shrinks; what comes back is of the stock class.

    Raises:
        CheckpointError: the sizes are not possible ones.
        UnsupportedModelError: no family describes the model.
    """
    found: list[Sublayer] = []
    loaded: Any = _shrinking(stock, found).from_pretrained(place, *args, config=without_layer_sizes(config), **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.__class__ = stock
    _own_memory(model)
    return loaded, found


def _shrinking(stock: type[PreTrainedModel], found: list[Sublayer]) -> Any:
    """A subclass of `stock` whose constructor shrinks to the sizes in the config; its sublayers go into `found`."""

    class Shrinking(stock):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            found[:] = sized(self, resolve(self, family_of(config)))

    Shrinking.__name__ = Shrinking.__qualname__ = stock.__name__
    return Shrinking


def from_config_with_sizes(config: PreTrainedConfig, stock: type[PreTrainedModel], **kwargs: Any) -> Any:
    """A new model with random weights for a config that may carry our sizes."""
    model = _shrinking(stock, [])._from_config(without_layer_sizes(config), **kwargs)
    model.__class__ = stock
    return model


@torch.no_grad()
def _own_memory(model: PreTrainedModel) -> None:
    """Move weights out of the mapped file into memory of their own.

    A view into the file is aligned to 8 bytes only, and matrix products round differently there than on torch's aligned
    allocations: the same weights would give values that differ in the last bit.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.is_meta:
            tensor.data = tensor.data.clone()
