"""Open a checkpoint, dense or pruned, as a stock transformers class; every value of a config is checked."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from faster_pruner import surgery
from faster_pruner.errors import CheckpointError
from faster_pruner.families import FamilySpec, family_of

METADATA_KEY = "faster_pruner"
FORMAT = 1
CONFIG = "config.json"

AUTO_CLASSES = (
    transformers.AutoModelForSequenceClassification,
    transformers.AutoModelForTokenClassification,
    transformers.AutoModelForQuestionAnswering,
    transformers.AutoModelForMultipleChoice,
    transformers.AutoModelForMaskedLM,
    transformers.AutoModel,
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint in memory.

    Attributes:
        model: a stock transformers class, float32.
        tokenizer: its tokenizer.
        family: its row of the family table.
        dtype: the dtype that the checkpoint is stored in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: FamilySpec
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
        raise CheckpointError(f"{place!r} has no readable {CONFIG}: {str(error).splitlines()[0]}") from error
    if not config:
        raise CheckpointError(f"{place!r} is neither a local folder nor a model on the hub that can be reached")
    return config


def load(place: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Open a pruned (or dense) checkpoint as a stock transformers class with smaller Linears.

    Args:
        place: local folder or hub id.
        dtype: of the weights in memory; by default the checkpoint's own, except that half precision becomes float32
            when no GPU is present.

    Raises:
        CheckpointError: the folder is missing, damaged, or its tensors do not fit its config.
        UnsupportedModelError: its `model_type` has no row in the family table.
    """
    config = read_config(str(place))
    stored = _stored_dtype(config)
    if dtype is None:
        dtype = stored if torch.cuda.is_available() else torch.float32
    return _load(str(place), config, dtype)


def open_checkpoint(place: str, *, device: torch.device) -> Opened:
    """Open a checkpoint for pruning or evaluation: float32, on `device`, with its tokenizer.

    Raises:
        CheckpointError, UnsupportedModelError: see `load`; also NaN or infinite weights, or no tokenizer.
    """
    config = read_config(place)
    model = _load(place, config, torch.float32)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{place!r}: tensor {name!r} has NaN or infinite values; nothing sensible can be computed"
            )
    tokenizer = _open_tokenizer(place)
    placed: Any = model
    return Opened(placed.to(device), tokenizer, family_of(str(model.config.model_type)), _stored_dtype(config))


def _open_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. transformers makes up one without words where there is none: that is refused."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{place!r} has no tokenizer: {str(error).splitlines()[0]}") from error
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


def _load(place: str, raw: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """Open a checkpoint, dense or pruned, without its tokenizer."""
    raw = {key: value for key, value in raw.items() if key != "per_layer_config"}
    model_type = str(raw.get("model_type", ""))
    family = family_of(model_type)
    if raw.get("pruned_heads"):
        raise CheckpointError(
            f"{place!r} lists pruned_heads, which transformers 5 cannot load; start from the unpruned checkpoint"
        )
    try:
        config = AutoConfig.for_model(model_type).from_dict(raw)
        stock = _stock_class(config, raw)
        units = _units_from_metadata(raw, family, config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {str(error).splitlines()[0]}") from error
    return _open_weights(place, config, stock, family=family, units=units, dtype=dtype)


def _stock_class(config: PreTrainedConfig, raw: dict[str, Any]) -> type[PreTrainedModel]:
    """The transformers class named by `architectures`, looked up among those registered for this config; never
    imported by name.
    """
    wanted = raw.get("architectures") or []
    for auto in AUTO_CLASSES:
        found = stock_class_of(auto, type(config))
        if found is not None and found.__name__ in wanted:
            return found
    raise CheckpointError(
        f"{CONFIG} names the architecture {wanted!r}, which is not a supported {config.model_type} class; "
        "a fine-tuned ...ForSequenceClassification checkpoint is expected"
    )


def stock_class_of(auto: Any, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """The transformers class that `auto` has for a config class, None when it has none."""
    found = auto._model_mapping.get(config_class, None)
    # the module `auto` may have put its stand-in there
    return getattr(found, "stock_class", found)


def _units_from_metadata(raw: dict[str, Any], family: FamilySpec, config: PreTrainedConfig) -> dict[str, int]:
    """Unit count per sublayer name from our metadata, every value checked; empty for a dense checkpoint."""
    metadata = raw.get(METADATA_KEY)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{CONFIG}: {METADATA_KEY!r} is not of format {FORMAT}; update faster-pruner")
    layers = metadata.get("per_layer_config")
    if not isinstance(layers, dict):
        raise CheckpointError(f"{CONFIG}: {METADATA_KEY}.per_layer_config is missing")
    known = {spec.config_key: spec for spec in family.sublayers}
    units: dict[str, int] = {}
    for layer, sizes in layers.items():
        if not (
            isinstance(layer, str) and len(layer) < 6 and layer.isdecimal() and int(layer) < config.num_hidden_layers
        ):
            raise CheckpointError(f"{CONFIG}: {str(layer)[:40]!r} is not one of the {config.num_hidden_layers} layers")
        if not isinstance(sizes, dict):
            raise CheckpointError(f"{CONFIG}: sizes of layer {layer} are not a mapping")
        for key, count in sizes.items():
            spec = known.get(key)
            full = int(getattr(config, key)) if spec is not None else 0
            if spec is None or type(count) is not int or not 0 <= count <= full:
                raise CheckpointError(f"{CONFIG}: layer {layer} cannot have {str(key)[:40]!r} = {str(count)[:40]}")
            units[f"layers.{int(layer)}.{spec.kind}"] = count
    return units


def _open_weights(
    place: str,
    config: PreTrainedConfig,
    stock: type[PreTrainedModel],
    *,
    family: FamilySpec,
    units: dict[str, int],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model with its weights; transformers' errors as one line of ours."""
    try:
        with quiet_transformers():
            model, info = _resized_from_pretrained(
                stock, family, units, place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place!r} has no readable safetensors weights: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "mismatch" in line),
            str(error).splitlines()[0],
        )
        raise CheckpointError(
            f"{place!r}: the tensors do not fit {CONFIG} ({reason}); "
            "a checkpoint that another tool has pruned is not supported"
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{place!r} lacks weights for {missing}; give a fine-tuned {stock.__name__} checkpoint")
    return model.eval()


def from_pretrained_with_sizes(
    place: Any, config: PreTrainedConfig, stock: type[PreTrainedModel], *args: Any, **kwargs: Any
) -> Any:
    """`stock.from_pretrained` for a config that carries our sizes; arguments and result are transformers' own.

    Raises:
        CheckpointError: the sizes are not possible ones.
    """
    family = family_of(str(config.model_type))
    units = _units_from_metadata({METADATA_KEY: getattr(config, METADATA_KEY)}, family, config)
    return _resized_from_pretrained(stock, family, units, place, *args, config=config, **kwargs)


def _resized_from_pretrained(
    stock: type[PreTrainedModel], family: FamilySpec, units: dict[str, int], *args: Any, **kwargs: Any
) -> Any:
    """Transformers' own loading, of a class whose constructor resizes its Linears; the result is of the stock class."""

    class Resized(stock):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            surgery.resize(self, family, units)

    Resized.__name__ = Resized.__qualname__ = stock.__name__
    loaded: Any = Resized.from_pretrained(*args, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.__class__ = stock
    _own_memory(model)
    return loaded


@torch.no_grad()
def _own_memory(model: PreTrainedModel) -> None:
    """Move weights out of the mapped file into memory of their own.

    A view into the file is aligned to 8 bytes only, and matrix products round differently there than on torch's aligned
    allocations: the same weights would give logits that differ in the last bit.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.is_meta:
            tensor.data = tensor.data.clone()
