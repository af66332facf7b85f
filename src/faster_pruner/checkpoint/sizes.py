"""The sizes of a model in its config: written when it is pruned, checked when it is opened."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from faster_pruner.errors import CheckpointError, UnsupportedModelError
from faster_pruner.model.describe import family_of_all
from faster_pruner.model.literal import family_from_json, family_to_json
from faster_pruner.model.shrink import resize
from faster_pruner.model.spec import HEAD_SIZE, Family, Sublayer, parts_by_name, resolve, with_parts
from faster_pruner.model.table import family_of

METADATA_KEY = "faster_pruner"
# Present where no row of the table says where the sublayers are.
FAMILY_KEY = "family"
LAYERS_KEY = "per_layer_config"
FORMAT = 2
# Sizes by layer and config field, as faster-pruner 0.1 wrote them for models of one stack.
_FIRST_FORMAT = 1


def family_in(config: Any) -> Family | None:
    """The family of a model by its config: the one that it states, or the table's row; None where nobody says.

    Raises:
        CheckpointError: what it states is no family.
    """
    metadata = getattr(config, METADATA_KEY, None)
    if not isinstance(metadata, dict) or FAMILY_KEY not in metadata:
        return family_of(config)
    try:
        return family_from_json(metadata[FAMILY_KEY])
    except ValueError as error:
        raise CheckpointError(f"config.json: {METADATA_KEY}: {error}") from error


def is_pruned(config: Any) -> bool:
    """Whether a config says that faster-pruner has pruned its model."""
    return getattr(config, METADATA_KEY, None) is not None


def sublayers_of(model: nn.Module) -> list[Sublayer]:
    """The sublayers of a model in memory at their present sizes: a pruned one, or a dense one with a row in the table.

    Raises:
        UnsupportedModelError: no family describes it.
        CheckpointError: its config states sizes that it cannot have.
    """
    config: Any = model.config
    family = family_in(config)
    if family is None:
        raise UnsupportedModelError(
            f"nothing says where a {type(model).__name__} keeps its sublayers: it has to be looked at (describe)"
        )
    if not is_pruned(config):
        return resolve(model, family)
    stock = build_stock(model)
    return sized(stock, resolve(stock, family))


def without_layer_sizes(config: Any) -> Any:
    """A copy of a config from which the stock class builds its usual sizes; saved again, it still says the layers' own.

    transformers builds no model from a config with `per_layer_config`. As a plain entry of the object it means nothing
    to transformers but is written to every later config.json, so that what is saved anew is refused just as loudly.
    """
    config = copy.deepcopy(config)
    for part in (config, *vars(config).values()):
        if getattr(part, "is_heterogeneous", False):
            sizes = part.to_dict()["per_layer_config"]
            part.per_layer_config = None
            vars(part)["per_layer_config"] = sizes
    return config


def build_stock(model: nn.Module) -> nn.Module:
    """A model of the same stock class at the sizes that its config states for all layers alike; without weights."""
    # a class that came with a checkpoint shrinks in its constructor
    own = next(each for each in type(model).__mro__ if not each.__module__.startswith("transformers_modules"))
    build: Any = own
    config = without_layer_sizes(model.config)
    with torch.device("meta"), building_stock(config) as mark:
        stock = build(config)
        mark(stock)
        return stock


@contextmanager
def building_stock(config: Any) -> Generator[Callable[[nn.Module], None]]:
    """While a model is built, its config says nothing of its sizes; what is given marks the finished model with them.

    Some classes build others inside by auto classes, which would shrink those, too.
    """
    metadata = vars(config).pop(METADATA_KEY, None)

    def mark(model: nn.Module) -> None:
        for module in model.modules():
            own = getattr(module, "config", None)
            if metadata is not None and type(own) is type(config):
                setattr(own, METADATA_KEY, metadata)

    try:
        yield mark
    finally:
        if metadata is not None:
            setattr(config, METADATA_KEY, metadata)


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
        # what the config says goes for all layers, also those that stay whole; no stock class builds one without a unit
        layers = model.get_submodule(group[0].prefix.removesuffix(".").rpartition(".")[0])
        everywhere = all(s.spec.stock for s in group) and len(group) == len(list(layers.children()))
        if everywhere and len(units) == 1 and 0 not in units:
            stated = _fields(config, group[0])
            if group[0].spec.head_size:
                stated[HEAD_SIZE] = group[0].spec.head_size
            for field, value in stated.items():
                setattr(config, field, value)
    config: Any = model.config
    metadata: dict[str, Any] = {"format": FORMAT, "sizes": {s.name: s.units for s in sublayers}}
    if family_of(config) != (family := family_of_all(sublayers)):
        metadata[FAMILY_KEY] = family_to_json(family)
    setattr(config, METADATA_KEY, metadata)
    _state_layer_sizes(model, sublayers)


def _state_layer_sizes(model: nn.Module, sublayers: Sequence[Sublayer]) -> None:
    """Say what layers have in the shape of transformers' `per_layer_config`, so that plain transformers refuses it."""
    config: Any = model.config
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "is_heterogeneous"))]
    for part in parts:
        vars(part).pop(LAYERS_KEY, None)
    if opens_with_stock_class(model, sublayers):
        return
    for part, layers in _layer_sizes(model, sublayers):
        if readable := _readable(part, layers):
            # a plain entry: it means nothing to the model in memory, and is written by every save_pretrained
            vars(part)[LAYERS_KEY] = readable
    if not _builds(model):
        # a config makes others of all its entries, to which it means something
        for part in parts:
            vars(part).pop(LAYERS_KEY, None)


def _builds(model: nn.Module) -> bool:
    """Whether the stock class builds a model from the config."""
    try:
        build_stock(model)
    except Exception:  # whatever a model's own code raises
        return False
    return True


def opens_with_stock_class(model: nn.Module, sublayers: Sequence[Sublayer]) -> bool:
    """Whether plain transformers builds a model of these sizes from its config (see `mark_as_pruned`)."""
    return all(s.units == _stated(model, s) for s in sublayers)


def _fields(config: Any, sublayer: Sublayer) -> dict[str, int]:
    """Config fields that say how large a sublayer is, all of them in proportion where the stock class heeds them."""
    names = sublayer.spec.config if sublayer.spec.stock else sublayer.spec.config[:1]
    found = [getattr(config, name, None) for name in names]
    stated = [value for value in found if isinstance(value, int) and value > 0]
    if len(stated) < len(names):
        names = names[:1]
    return {name: (stated[place] // stated[0] if place else 1) * sublayer.units for place, name in enumerate(names)}


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
        if own := _fields(config, s):
            layers.setdefault(str(s.layer), {}).update(own)
    return list(found.values())


def _readable(config: Any, layers: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """What of `per_layer_config` the config's own class can be made with: some check fields that then have no value.

    Where nothing is left, plain transformers refuses the checkpoint for the shapes of its tensors.
    """
    names = list(dict.fromkeys(name for fields in layers.values() for name in fields))
    for chosen in (names, *([name] for name in names)):
        own = {layer: {name: fields[name] for name in chosen if name in fields} for layer, fields in layers.items()}
        own = {layer: fields for layer, fields in own.items() if fields}
        try:
            type(config)(**{**config.to_dict(), LAYERS_KEY: own})
        except Exception:  # whatever a config's own checks raise
            continue
        return own
    return {}


def _config_of(model: nn.Module, sublayer: Sublayer) -> Any:
    """The config of the stack that a sublayer belongs to."""
    return getattr(model.config, sublayer.stack.config) if sublayer.stack.config else model.config


def _by_kind(sublayers: Sequence[Sublayer]) -> dict[tuple[str, str], list[Sublayer]]:
    """Sublayers of one kind together."""
    groups: dict[tuple[str, str], list[Sublayer]] = {}
    for s in sublayers:
        groups.setdefault(s.alike, []).append(s)
    return groups
