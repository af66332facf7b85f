"""The sizes of a model in its config: written when it is pruned, checked when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from faster_pruner.errors import CheckpointError
from faster_pruner.model.shrink import resize, without_layer_sizes
from faster_pruner.model.spec import Sublayer, parts_by_name, resolve, with_parts
from faster_pruner.model.table import family_of

METADATA_KEY = "faster_pruner"
LAYERS_KEY = "per_layer_config"
FORMAT = 2
# Sizes by layer and config field, as faster-pruner 0.1 wrote them for models of one stack.
_FIRST_FORMAT = 1


def sublayers_of(model: nn.Module) -> list[Sublayer]:
    """The sublayers of any model in memory at their present sizes, dense or pruned by faster-pruner.

    Raises:
        UnsupportedModelError: no family describes it.
        CheckpointError: its config states sizes that it cannot have.
    """
    config: Any = model.config
    if getattr(config, METADATA_KEY, None) is None:
        return resolve(model, family_of(config))
    stock = build_stock(model)
    return sized(stock, resolve(stock, family_of(config)))


def build_stock(model: nn.Module) -> nn.Module:
    """A model of the same stock class at the sizes that its config states for all layers alike; without weights."""
    # a class that came with a checkpoint shrinks in its constructor
    own = next(each for each in type(model).__mro__ if not each.__module__.startswith("transformers_modules"))
    build: Any = own
    with torch.device("meta"):
        return build(without_layer_sizes(model.config))


def sized(model: nn.Module, sublayers: Sequence[Sublayer]) -> list[Sublayer]:
    """Shrink a model that its stock class has just built to the sizes in its config; every value is checked.

    Raises:
        CheckpointError: sizes that it cannot have, or of an unknown format.
    """
    metadata = getattr(model.config, METADATA_KEY, None)
    if metadata is None:
        return list(sublayers)
    try:
        parts = resize(model, parts_by_name(sublayers), _sizes_in(metadata, sublayers))
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from error
    return with_parts(sublayers, parts)


def _sizes_in(metadata: Any, sublayers: Sequence[Sublayer]) -> Any:
    """Units by name of sublayer, not checked yet. Raises ValueError when the metadata have no such thing."""
    form = metadata.get("format") if isinstance(metadata, dict) else None
    if form == FORMAT and type(form) is int:
        return metadata.get("sizes")
    if form != _FIRST_FORMAT or type(form) is not int:
        raise ValueError(f"{METADATA_KEY!r} is of format {str(form)[:40]}; known are {_FIRST_FORMAT} and {FORMAT}")
    layers = metadata.get(LAYERS_KEY)
    if not isinstance(layers, dict) or not all(isinstance(each, dict) for each in layers.values()):
        raise ValueError(f"{METADATA_KEY}.{LAYERS_KEY} is not a mapping of mappings")
    names = {(str(s.layer), s.spec.config[0]): s.name for s in sublayers}
    return {
        names.get((layer, field), f"{str(layer)[:40]} {str(field)[:40]}"): units
        for layer, fields in layers.items()
        for field, units in fields.items()
    }


def mark_as_pruned(model: nn.Module, sublayers: Sequence[Sublayer]) -> None:
    """Put the sizes into the model's config, so that every later `save_pretrained` keeps them.

    Sizes that the stock config can express (the same in every layer, see `SublayerSpec.stock`) go there as well.
    """
    for group in _by_kind(sublayers).values():
        units = {s.units for s in group}
        config = _config_of(model, group[0])
        field = group[0].spec.config[:1]
        # no stock class builds a layer without a unit
        if group[0].spec.stock and len(units) == 1 and 0 not in units and field:
            setattr(config, field[0], units.pop())
    config: Any = model.config
    setattr(config, METADATA_KEY, {"format": FORMAT, "sizes": {s.name: s.units for s in sublayers}})
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "is_heterogeneous"))]
    for part in parts:
        vars(part).pop(LAYERS_KEY, None)
    if not opens_with_stock_class(model, sublayers):
        for part, layers in _layer_sizes(model, sublayers):
            # a plain entry: it means nothing to the model in memory, and is written by every save_pretrained
            vars(part)[LAYERS_KEY] = layers


def opens_with_stock_class(model: nn.Module, sublayers: Sequence[Sublayer]) -> bool:
    """Whether plain transformers builds a model of these sizes from its config (see `mark_as_pruned`)."""
    return all(s.units == _stated(model, s) for s in sublayers)


def _stated(model: nn.Module, sublayer: Sublayer) -> int | None:
    """Units that the stock config states for a sublayer."""
    field = sublayer.spec.config[0] if sublayer.spec.config else ""
    value = getattr(_config_of(model, sublayer), field, None) if field else None
    return value if isinstance(value, int) else None


def _layer_sizes(model: nn.Module, sublayers: Sequence[Sublayer]) -> list[tuple[Any, dict[str, dict[str, int]]]]:
    """Per config that has layers: it, and its fields by layer in the shape of transformers' `per_layer_config`."""
    found: dict[int, tuple[Any, dict[str, dict[str, int]]]] = {}
    for s in sublayers:
        config = _config_of(model, s)
        layers = found.setdefault(id(config), (config, {}))[1]
        for field in s.spec.config[:1]:
            layers.setdefault(str(s.layer), {})[field] = s.units
    return list(found.values())


def _config_of(model: nn.Module, sublayer: Sublayer) -> Any:
    """The config of the stack that a sublayer belongs to."""
    return getattr(model.config, sublayer.stack.config) if sublayer.stack.config else model.config


def _by_kind(sublayers: Sequence[Sublayer]) -> dict[tuple[str, str], list[Sublayer]]:
    """Sublayers of one kind together."""
    groups: dict[tuple[str, str], list[Sublayer]] = {}
    for s in sublayers:
        groups.setdefault(s.alike, []).append(s)
    return groups
