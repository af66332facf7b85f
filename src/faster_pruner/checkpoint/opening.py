"""Open a checkpoint, dense or pruned, as a stock transformers class; every value of a config is checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version

from faster_pruner.checkpoint.layout import Layout, read_layout
from faster_pruner.checkpoint.loading import from_pretrained_with_sizes
from faster_pruner.checkpoint.processors import open_processor
from faster_pruner.checkpoint.quiet import FROM_A_CONFIG, quiet_transformers
from faster_pruner.checkpoint.reranker import scoring_of
from faster_pruner.checkpoint.screening import (
    CONFIG,
    as_place,
    check_config,
    check_counts,
    check_place,
    first_lines,
    read_json,
    shapes_in,
    with_floats,
)
from faster_pruner.checkpoint.sentence import fitted, head_of, read_head
from faster_pruner.checkpoint.sizes import METADATA_KEY, without_layer_sizes
from faster_pruner.checks import shown
from faster_pruner.errors import CheckpointError, DataError, UnsupportedModelError
from faster_pruner.host.mapped import home
from faster_pruner.model.classes import auto_classes_of, stock_class
from faster_pruner.model.describe import Description, by_unit, describe, described
from faster_pruner.model.head import Head
from faster_pruner.model.limits import longest_row, made_up_inputs
from faster_pruner.model.precision import usual_torch
from faster_pruner.model.scoring import Scoring
from faster_pruner.model.shrink import Constant
from faster_pruner.model.spec import Sublayer
from faster_pruner.model.staging import stage
from faster_pruner.options import AttentionUnit

if TYPE_CHECKING:
    from faster_pruner.checkpoint.processors import Processor

_NOT_READ = (
    # how attention is computed is a choice of whoever opens a folder, and not every machine has every way
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    # an old name that transformers writes nowhere and cannot read
    "use_return_dict",
)
# The auto class of models without a head of their own.
_BARE = "AutoModel"
# What such models make of the first token for a head, and nobody reads where texts are pooled otherwise.
_POOLER = "pooler"
# What a model is looked at on.
_ROWS_TO_LOOK_AT, _TOKENS_TO_LOOK_AT = 3, 10
# Names that an error message lists.
_NAMED = 3


@dataclass(frozen=True)
class OpenedModel:
    """The model of a checkpoint, in memory.

    Attributes:
        model: a stock transformers class, float32; on `device`, or on the CPU where weights are kept in files.
        dtype: the dtype that the checkpoint is stored in.
        known: its sublayers at their present sizes, where the table or the checkpoint itself says what they are.
        device: where it is to compute.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    known: list[Sublayer]
    device: torch.device

    def describe(self, attention_unit: AttentionUnit = "group") -> Description:
        """What of the model can be pruned; a model that nothing is known of is looked at, on made-up inputs.

        Args:
            attention_unit: as in `Method`.

        Raises:
            UnsupportedModelError: nothing can be proved.
        """
        if self.known:
            return by_unit(described(self.model.config, self.known), attention_unit)
        length = min(_TOKENS_TO_LOOK_AT, longest_row(self.model))
        try:
            made_up = made_up_inputs(self.model, _ROWS_TO_LOOK_AT, length, padded=True)
            return describe(self.model, made_up, attention_unit)
        except DataError as error:
            raise UnsupportedModelError(
                f"{error}; where it needs other inputs than these made-up ones, prune it in memory on batches of your "
                "own"
            ) from error


@dataclass(frozen=True)
class Opened(OpenedModel):
    """A checkpoint in memory.

    Attributes:
        processor: its tokenizer, image processor or feature extractor.
        head: what makes one vector of what the model returns, of a folder of sentence-transformers; None elsewhere.
        scoring: how the score of the model is used, of a folder of a CrossEncoder; None elsewhere.
    """

    processor: Processor
    head: Head | None = None
    scoring: Scoring | None = None


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
        UnsupportedModelError: transformers has no classes for it.
    """
    where, layout = located(as_place(place))
    config = read_config(where)
    stored = _stored_dtype(config)
    if dtype is None:
        dtype = stored if torch.cuda.is_available() else torch.float32
    return _load(where, config, dtype, bare=_embeds(layout))[0]


def located(place: str) -> tuple[str, Layout | None]:
    """Where config, weights and processor of a checkpoint are, and how it is laid out by sentence-transformers, if so.

    Raises:
        CheckpointError: there is no such place, or its list of modules cannot be used.
    """
    try:
        if not Path(place).is_dir():
            check_place(place)
        layout = read_layout(place)
    except OSError as error:
        raise CheckpointError(f"model folder {shown(place)} cannot be read: {error.strerror}") from error
    return (str(layout.transformer) if layout is not None and layout.inner else place), layout


def check_there(place: str) -> None:
    """Raise CheckpointError when there is no checkpoint at a place, however it is laid out."""
    check_place(located(place)[0])


def _embeds(layout: Layout | None) -> bool:
    return layout is not None and layout.embeds


def open_checkpoint(
    place: str | Path, *, device: torch.device, pooling: str | None = None, dims: Sequence[int] = ()
) -> Opened:
    """Open a checkpoint for pruning or evaluation: float32, on `device`, with its processor and its head.

    Args:
        place: local folder or hub id.
        device: where the model goes.
        pooling: how an encoder without a head makes one vector of many.
        dims: lengths of prefixes of it that are embeddings, too.

    Raises:
        CheckpointError, UnsupportedModelError: see `open_model`; also no processor, or a head that cannot be opened, or
            settings of a CrossEncoder that cannot be kept to.
        OptionError: an unknown pooling, or a package that is missing.
    """
    where, layout = located(as_place(place))
    opened = _open_model(where, layout, device)
    processor = open_processor(where, opened.model)
    head, kind = None, str(getattr(opened.model.config, "model_type", ""))
    if _BARE not in auto_classes_of(type(opened.model).__name__, kind):
        scoring = scoring_of(where, opened.model.config)
        return Opened(**vars(opened), processor=processor, scoring=scoring)
    if layout is not None and layout.embeds:
        head = fitted(read_head(layout, dims=dims), processor)
    elif pooling is not None:
        head = head_of(opened.model, pooling, dims=dims)
    return Opened(**vars(opened), processor=processor, head=head)


def open_model(place: str | Path, *, device: torch.device) -> OpenedModel:
    """Open the model of a checkpoint: float32, on `device`.

    Raises:
        CheckpointError, UnsupportedModelError: see `load`; also NaN or infinite weights.
    """
    return _open_model(*located(as_place(place)), device)


def _open_model(place: str, layout: Layout | None, device: torch.device) -> OpenedModel:
    """Open the model that lies at a place. Raises as `open_model` does."""
    config = read_config(place)
    model, sublayers = _load(place, config, torch.float32, bare=_embeds(layout))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{place!r}: tensor {name!r} has NaN or infinite values; nothing sensible can be computed"
            )
    stage(model, [], home(device))
    return OpenedModel(model, _stored_dtype(config), sublayers, device)


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


def _load(place: str, raw: dict[str, Any], dtype: torch.dtype, *, bare: bool) -> tuple[PreTrainedModel, list[Sublayer]]:
    """Open a checkpoint, dense or pruned, without its processor; without the head of its model where that is `bare`."""
    model_type = str(raw.get("model_type", ""))
    _check_known(place, raw)
    try:
        with quiet_transformers():
            stated = {key: with_floats(value) for key, value in raw.items() if key not in _NOT_READ}
            config = AutoConfig.for_model(model_type).from_dict(stated)
        stock = _bare_class(place, config, raw) if bare else _stock_class(model_type, raw)
        plain = without_layer_sizes(config)
    except FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {first_lines(error)}") from error
    shapes = shapes_in(Path(place)) if Path(place).is_dir() else None
    check_counts(place, plain, shapes, pruned=raw.get(METADATA_KEY) is not None)
    return _open_weights(place, config, stock, dtype, bare=bare)


def _check_known(place: str, raw: dict[str, Any]) -> None:
    """Raise UnsupportedModelError when transformers itself has no classes for a model."""
    model_type = str(raw.get("model_type", ""))
    if model_type in CONFIG_MAPPING:
        return
    brings = " (its folder brings code of its own, which is never run)" if raw.get("auto_map") else ""
    raise UnsupportedModelError(
        f"{place!r}: model_type {model_type[:60]!r} is not supported: transformers {transformers_version} has no such "
        f"model{brings}; open it with the code that it needs, and prune it in memory (prune_model)"
    )


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


def _bare_class(place: str, config: PreTrainedConfig, raw: dict[str, Any]) -> type[PreTrainedModel]:
    """The class without a head, as sentence-transformers opens a checkpoint whatever its config names.

    Raises:
        UnsupportedModelError: there is none, or it is more than sentence-transformers opens.
    """
    listed: Any = MODEL_MAPPING.get(type(config), None)
    classes: tuple[Any, ...] = listed if isinstance(listed, tuple) else () if listed is None else (listed,)
    if not classes or config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{place!r} makes embeddings with a part of a {config.model_type} (sentence-transformers opens its encoder "
            "alone); only whole models are supported"
        )
    named = raw.get("architectures") or []
    return next((each for each in classes if each.__name__ in named), classes[0])


def _open_weights(
    place: str, config: PreTrainedConfig, stock: type[PreTrainedModel], dtype: torch.dtype, *, bare: bool
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
    except FROM_A_CONFIG as error:
        raise CheckpointError(f"{place!r}: {CONFIG} is not usable: {first_lines(error)}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{place!r}: the tensors do not fit {CONFIG} ({first_lines(error)})") from error
    if bare:
        info = _without_heads(model, info)
    nothing = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Constant)]
    _check_loading(place, stock.__name__, info, nothing, labels=getattr(model.config, "num_labels", None))
    return model.eval(), sublayers


@torch.no_grad()
def _without_heads(model: PreTrainedModel, info: dict[str, Any]) -> dict[str, Any]:
    """What transformers says of the loading, but for a head in the file, and for a pooler that is not in it.

    No embedding depends on such a pooler. It is all zeros then: random numbers would be others every time.
    """
    own = {model.base_model_prefix, *(name for name, _ in model.named_children())}
    poolers = {key for key in info["missing_keys"] if _POOLER in key.split(".")}
    for key in poolers:
        model.get_parameter(key).zero_()
    return {
        **info,
        "missing_keys": set(info["missing_keys"]) - poolers,
        "unexpected_keys": {key for key in info["unexpected_keys"] if key.split(".")[0] in own},
    }


def _check_loading(
    place: str, name: str, info: dict[str, Any], nothing: Collection[str], *, labels: int | None
) -> None:
    """Raise CheckpointError when tensors of the file and of the model are not the same ones.

    Args:
        place: of the checkpoint.
        name: of its class.
        info: what transformers says of the loading.
        nothing: tensors that hold nothing, which folders of the first versions do not have.
        labels: that its config has.
    """
    if info["mismatched_keys"]:
        key, there, here = min(info["mismatched_keys"])
        if all(has[1:] == wants[1:] and wants[0] == labels for _, has, wants in info["mismatched_keys"]):
            raise CheckpointError(
                f"{place!r}: {key} is {list(there)} in the file, but {list(here)} by {CONFIG}: the one has {there[0]} "
                f'labels, the other {labels}; let {CONFIG} say "num_labels": {there[0]}, or the names as "id2label" '
                f"(transformers writes neither for two labels without names, also where a {name} has more by default)"
            )
        raise CheckpointError(
            f"{place!r}: the tensors do not fit {CONFIG}: {key} is {list(there)} in the file, but {list(here)} by "
            f"{CONFIG}{_and_more(info['mismatched_keys'], 1)}; a checkpoint that another tool has pruned is not "
            "supported"
        )
    lacking = {key for key in info["missing_keys"] if key not in nothing}
    if lacking:
        raise CheckpointError(f"{place!r} lacks weights for {_listed(lacking)}; give a fine-tuned {name} checkpoint")
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
