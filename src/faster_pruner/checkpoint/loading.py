"""transformers' own loading, for models whose config says that they are smaller than their class builds them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from faster_pruner.checkpoint.screening import CONFIG
from faster_pruner.checkpoint.sizes import building_stock, family_in, is_pruned, sized, without_layer_sizes
from faster_pruner.errors import CheckpointError, UnsupportedModelError
from faster_pruner.model.spec import Sublayer, resolve


def from_pretrained_with_sizes(
    place: Any, config: PreTrainedConfig, stock: type[PreTrainedModel], *args: Any, **kwargs: Any
) -> tuple[Any, list[Sublayer]]:
    """`stock.from_pretrained` for a config that may carry our sizes: what it returns, and the sublayers.

    Its constructor shrinks; what comes back is of the stock class.

    Raises:
        CheckpointError: the sizes are not possible ones, or nothing says what they are the sizes of.
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
            with building_stock(config) as mark:
                super().__init__(config, *args, **kwargs)
                mark(self)
            found[:] = _at_their_sizes(self, self.config)

    Shrinking.__name__ = Shrinking.__qualname__ = stock.__name__
    # transformers renames tensors of old checkpoints for classes of its own only
    Shrinking.__module__ = stock.__module__
    return Shrinking


def _at_their_sizes(model: Any, config: PreTrainedConfig) -> list[Sublayer]:
    """Shrink a model that has just been built; its sublayers, none for a dense one that has to be looked at first."""
    family = family_in(config)
    if family is not None:
        try:
            return sized(model, resolve(model, family))
        except UnsupportedModelError as error:
            # a class of its own says so, or what the checkpoint states is not so
            raise CheckpointError(f"{CONFIG}: {error}") from error
    if is_pruned(config):
        raise CheckpointError(f"{CONFIG} states sizes, but neither it nor the table says of which parts of the model")
    return []


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
