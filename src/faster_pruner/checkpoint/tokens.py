"""Where a model's config names tokens by their ids, and which of its tensors have a row or a column per token."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from faster_pruner.checkpoint.quiet import FROM_A_CONFIG, quiet_transformers
from faster_pruner.checkpoint.screening import first_lines
from faster_pruner.checkpoint.sizes import build_stock
from faster_pruner.errors import UnsupportedModelError

# Settings that are ids of tokens, or lists of them.
_IDS = re.compile(r"(?:.*_)?token_ids?|.*_token_index|(?:begin_)?suppress_tokens|(?:bad|force)_words_ids")
# Settings that hold ids among other numbers.
_MIXED = ("sequence_bias", "forced_decoder_ids", "lang_to_id", "task_to_id", "alignment_heads")


@dataclass(frozen=True)
class TokenTensors:
    """What of a model belongs to tokens.

    Attributes:
        rows: of the embeddings.
        places: by the name of a parameter or buffer, its dimension with one entry per token.
        shapes: of the same.
    """

    rows: int
    places: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    def shapes_with(self, rows: int) -> dict[str, list[int]]:
        """Shapes with another number of tokens."""
        return {
            name: [rows if i == self.places[name] else size for i, size in enumerate(shape)]
            for name, shape in self.shapes.items()
        }


def token_tensors(model: Any) -> TokenTensors:
    """Those of a model: it is built, without weights, for one token more, and what grows belongs to tokens.

    Raises:
        UnsupportedModelError: it has no vocabulary, or one that its tensors follow in another way.
    """
    try:
        words: Any = model.config.get_text_config().vocab_size
        rows: Any = model.get_input_embeddings().num_embeddings
    except (AttributeError, ValueError, NotImplementedError):
        words = rows = None
    if type(words) is not int or words != rows:
        raise UnsupportedModelError(
            f"a {type(model).__name__} has no single table of tokens that its config states the length of "
            f"(vocab_size {words}, {rows} rows); only such vocabularies can be pruned"
        )
    before, after = _shapes(model, words), _shapes(model, words + 1)
    places: dict[str, int] = {}
    for name, shape in before.items():
        grown = [i for i, size in enumerate(shape) if after[name][i] != size]
        if len(grown) > 1 or any((shape[i], after[name][i]) != (words, words + 1) for i in grown):
            raise UnsupportedModelError(
                f"{name} of a {type(model).__name__} is {list(shape)} for {words} tokens and {list(after[name])} for "
                "one more; only vocabularies with one row or column per token can be pruned"
            )
        if grown:
            places[name] = grown[0]
    if not places:
        raise UnsupportedModelError(f"nothing in a {type(model).__name__} depends on its vocab_size of {words}")
    return TokenTensors(words, places, {name: before[name] for name in places})


def _shapes(model: nn.Module, words: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model like this one with so many tokens."""
    try:
        with quiet_transformers(), _vocabulary_of(model.config, words):
            stock = build_stock(model)
    except FROM_A_CONFIG as error:
        raise UnsupportedModelError(
            f"a {type(model).__name__} of {words} tokens cannot be built from its config: {first_lines(error)}"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in _tensors(stock)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, also those that are tied to another one."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@contextmanager
def _vocabulary_of(config: Any, words: int) -> Generator[None]:
    """A config that states another number of tokens, for a while."""
    before = config.get_text_config().vocab_size
    set_vocabulary(config, words)
    try:
        yield
    finally:
        set_vocabulary(config, before)


def set_vocabulary(config: Any, words: int) -> None:
    """Let a config state another number of tokens, wherever it states it."""
    before = config.get_text_config().vocab_size
    for each in _configs(config):
        if getattr(each, "vocab_size", None) == before:
            each.vocab_size = words


def _configs(config: Any) -> list[Any]:
    """A config and those of its parts."""
    found = [config]
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            found += _configs(value)
    return found


@torch.no_grad()
def select_tokens(model: nn.Module, tokens: TokenTensors, kept: Sequence[int]) -> None:
    """Leave only some tokens' rows and columns in a model; what is tied stays tied.

    Its config states the new number, and names tokens by their new ids. What the model's code keeps of its config when
    it is built (an index of padding) does not follow: save it and open it again.

    Args:
        model: that is changed.
        tokens: its tensors with an entry per token.
        kept: ids of those that stay, in their new order.
    """
    made: dict[int, Tensor] = {}
    index = torch.tensor(kept)
    for name, dimension in tokens.places.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        tensor: Tensor = getattr(owner, leaf)
        if id(tensor) not in made:
            chosen = tensor.index_select(dimension, index.to(tensor.device))
            made[id(tensor)] = nn.Parameter(chosen) if isinstance(tensor, nn.Parameter) else chosen
        setattr(owner, leaf, made[id(tensor)])
        for attribute in ("num_embeddings", "out_features"):
            if getattr(owner, attribute, None) == tokens.rows:
                setattr(owner, attribute, len(kept))
    ids = {old: new for new, old in enumerate(kept)}
    settings: Any = model.config
    set_vocabulary(settings, len(kept))
    for each in [*_configs(settings), getattr(model, "generation_config", None)]:
        for key, value in ({} if each is None else dict(vars(each))).items():
            if _IDS.fullmatch(key) and (new := _renumbered(value, ids)) != value:
                setattr(each, key, new)


def with_new_ids(settings: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """Settings that name tokens, as a file holds them, with new ids by old ones."""
    return {key: _renumbered(value, ids) if _IDS.fullmatch(key) else value for key, value in settings.items()}


def _renumbered(value: Any, ids: Mapping[int, int]) -> Any:
    """An id, or lists of ids; a number that is no token's stays."""
    if isinstance(value, list | tuple):
        return [_renumbered(each, ids) for each in cast("list[Any]", value)]
    return ids.get(value, value) if type(value) is int else value


def ids_in(settings: Mapping[str, Any]) -> set[int]:
    """Ids of tokens that settings name. Raises UnsupportedModelError for those that hold them among other numbers."""
    mixed = [key for key in _MIXED if settings.get(key)]
    if mixed:
        raise UnsupportedModelError(
            f"the settings name tokens in {', '.join(mixed)}, which cannot be given new ids; remove that from the "
            "config or generation config"
        )
    found: set[int] = set()

    def collect(value: Any) -> None:
        if isinstance(value, list | tuple):
            for each in cast("list[Any]", value):
                collect(each)
        elif type(value) is int:
            found.add(value)

    for key, value in settings.items():
        if _IDS.fullmatch(key):
            collect(value)
    return found


def named_ids(model: Any, tokens: TokenTensors) -> set[int]:
    """Ids of tokens that a model's config names, as far as they have a row, and those that its code counts from.

    Where positions are counted from the id of padding (RoBERTa and its relatives), that id must stay what it is: so do
    all below it.
    """
    found: set[int] = set()
    for each in [*_configs(model.config), getattr(model, "generation_config", None)]:
        found |= set[int]() if each is None else ids_in(vars(each))
    tables = {name.rpartition(".")[0] for name in tokens.places}
    for name, module in model.named_modules(remove_duplicate=False):
        padding = getattr(module, "padding_idx", None)
        # what has parts of its own only passes it on
        if type(padding) is int and name not in tables and not any(True for _ in module.children()):
            found |= set(range(padding + 1))
    return {i for i in found if 0 <= i < tokens.rows}
