"""Open a checkpoint, dense or pruned, as a stock transformers class; every value of a config is checked."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from faster_pruner.checkpoint.sizes import sized
from faster_pruner.errors import CheckpointError
from faster_pruner.model.classes import stock_class
from faster_pruner.model.shrink import without_layer_sizes
from faster_pruner.model.spec import Sublayer, resolve
from faster_pruner.model.table import check_supported, family_of

CONFIG = "config.json"
# What transformers raises, somewhere inside, for a config that makes no sense.
_FROM_A_CONFIG = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StrictDataclassError)


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
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_place(place: str) -> None:
    """Raise CheckpointError when `place` is a local path that holds no checkpoint."""
    path = Path(place)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise CheckpointError(f"{place!r} has no {CONFIG}; give a folder saved by save_pretrained, or a hub id")
    elif path.exists() or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise CheckpointError(f"model folder {place!r} does not exist or is not a folder")


def read_config(place: str) -> dict[str, Any]:
    """config.json of a local folder or hub id. Raises CheckpointError."""
    _check_place(place)
    try:
        config, _ = PreTrainedConfig.get_config_dict(place)
    except (OSError, ValueError, HFValidationError) as error:
        raise CheckpointError(f"{place!r} has no readable {CONFIG}: {_first_line(error)}") from error
    if not config:
        raise CheckpointError(f"{place!r} is neither a local folder nor a model on the hub that can be reached")
    return config


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
    config = read_config(str(place))
    stored = _stored_dtype(config)
    if dtype is None:
        dtype = stored if torch.cuda.is_available() else torch.float32
    return _load(str(place), config, dtype)[0]


def open_checkpoint(place: str, *, device: torch.device) -> Opened:
    """Open a checkpoint for pruning or evaluation: float32, on `device`, with its tokenizer.

    Raises:
        CheckpointError, UnsupportedModelError: see `load`; also NaN or infinite weights, or no tokenizer.
    """
    config = read_config(place)
    model, sublayers = _load(place, config, torch.float32)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{place!r}: tensor {name!r} has NaN or infinite values; nothing sensible can be computed"
            )
    tokenizer = _open_tokenizer(place)
    placed: Any = model
    return Opened(placed.to(device), tokenizer, sublayers, _stored_dtype(config))


def _open_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. transformers makes up one without words where there is none: that is refused."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{place!r} has no tokenizer: {_first_line(error)}") from error
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
    if raw.get("pruned_heads"):
        raise CheckpointError(
            f"{place!r} lists pruned_heads, which transformers 5 cannot load; start from the unpruned checkpoint"
        )
    model_type = str(raw.get("model_type", ""))
    check_supported(model_type)
    try:
        config = AutoConfig.for_model(model_type).from_dict(raw)
        stock = _stock_class(model_type, raw)
    except _FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {_first_line(error)}") from error
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
            (model, info), sublayers = from_pretrained_with_sizes(place, config, stock, **options)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place!r} has no readable safetensors weights: {_first_line(error)}") from error
    except _FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {_first_line(error)}") from error
    except RuntimeError as error:
        mismatch = (line.strip() for line in str(error).splitlines() if "mismatch" in line)
        raise CheckpointError(
            f"{place!r}: the tensors do not fit {CONFIG} ({next(mismatch, _first_line(error))}); "
            "a checkpoint that another tool has pruned is not supported"
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{place!r} lacks weights for {missing}; give a fine-tuned {stock.__name__} checkpoint")
    return model.eval(), sublayers


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


def _first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
