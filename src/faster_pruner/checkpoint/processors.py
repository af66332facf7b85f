"""What turns raw data into a model's inputs: a tokenizer, an image processor or a feature extractor."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedModel

from faster_pruner.checkpoint.quiet import FROM_A_CONFIG, quiet_transformers
from faster_pruner.checkpoint.screening import first_lines
from faster_pruner.errors import CheckpointError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, FeatureExtractionMixin, PreTrainedTokenizerBase

    Processor = PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin


@dataclass(frozen=True)
class _Kind:
    """One kind of processor.

    Attributes:
        name: what it is called.
        auto: transformers' auto class that opens it.
    """

    name: str
    auto: Any


_FEATURES = _Kind("feature extractor", AutoFeatureExtractor)


def open_processor(place: str, model: PreTrainedModel) -> Processor:
    """The processor that a checkpoint's main input needs, from its files.

    Raises:
        CheckpointError: there are no files of it, or they do not fit the model.
        UnsupportedModelError: the model takes neither text, images nor sound.
        OptionError: the package that opens images is missing.
    """
    main = model.main_input_name
    kind = _BY_MAIN_INPUT.get(main)
    if kind is None:
        raise UnsupportedModelError(
            f"a {type(model).__name__} takes {main!r}; models of text, images and sound are supported "
            f"({', '.join(_BY_MAIN_INPUT)}); others can be pruned in memory, on batches of your own (prune_model)"
        )
    if kind.auto is AutoImageProcessor and find_spec("PIL") is None:
        raise OptionError("images need Pillow, which is not installed; install faster-pruner[vision]")
    try:
        with quiet_transformers():
            # code that a folder brings is never run, and never asked for on the terminal
            found = kind.auto.from_pretrained(place, config=model.config, trust_remote_code=False)
    except (OSError, *FROM_A_CONFIG) as error:
        raise CheckpointError(f"{place!r} has no {kind.name}: {first_lines(error)}") from error
    if kind.auto is AutoTokenizer:
        _check_tokenizer(place, found, model)
    return found


def _check_tokenizer(place: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise CheckpointError for one without words, which transformers makes up where there is none, or too many."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(f"{place!r} has no tokenizer files; save the tokenizer beside the model")
    try:
        words = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # models that hash characters have no table of tokens
        words = None
    if isinstance(words, int) and len(tokenizer) > words:
        raise CheckpointError(
            f"{place!r}: the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for "
            f"{words}; save the tokenizer that belongs to it, or resize the embeddings and fine-tune"
        )


# By the name of the model's main input.
_BY_MAIN_INPUT = {
    "input_ids": _Kind("tokenizer", AutoTokenizer),
    "pixel_values": _Kind("image processor", AutoImageProcessor),
    "input_values": _FEATURES,
    "input_features": _FEATURES,
}
