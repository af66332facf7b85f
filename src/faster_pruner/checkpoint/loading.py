"""transformers' own loading, for models whose config says that they are smaller than their class builds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from faster_pruner.checkpoint.screening import CONFIG
from faster_pruner.checkpoint.sizes import building_stock, family_in, is_pruned, sized, without_layer_sizes
from faster_pruner.errors import CheckpointError, OptionError, UnsupportedModelError
from faster_pruner.host.mapped import are_in_files, settled
from faster_pruner.host.temporary import temporary_folder
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
    build = _shrinking(stock, found)
    given = {"config": without_layer_sizes(config), **kwargs}
    if are_in_files():
        loaded = _into_files(build, place, *args, **given)
    else:
        loaded = build.from_pretrained(place, *args, **given)
        _own_memory(_model_in(loaded))
    _model_in(loaded).__class__ = stock
    return loaded, found


def _model_in(loaded: Any) -> Any:
    """The model in what `from_pretrained` returns."""
    return loaded[0] if isinstance(loaded, tuple) else loaded


def _into_files(build: Any, place: Any, *args: Any, **given: Any) -> Any:
    """What `from_pretrained` returns, its weights in files, one read after the other.

    Raises:
        OptionError: accelerate is missing.
    """
    try:
        from accelerate.hooks import remove_hook_from_submodules
        from transformers.integrations.accelerate import load_offloaded_parameter
    except ImportError as error:
        raise OptionError(
            "weights are kept in files with accelerate, which is not installed; install faster-pruner[large]",
            option="weights",
        ) from error
    with temporary_folder() as folder:
        # what has to be put together from several tensors of the checkpoint goes through the folder
        loaded: Any = build.from_pretrained(place, *args, device_map={"": "disk"}, offload_folder=str(folder), **given)
        model = _model_in(loaded)
        read: dict[int, nn.Parameter] = {}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in read:
                    whole = names[id(parameter)]
                    tensor = load_offloaded_parameter(model, whole) if parameter.is_meta else parameter
                    read[id(parameter)] = nn.Parameter(settled(tensor.detach()), parameter.requires_grad)
                setattr(module, name, read[id(parameter)])
    remove_hook_from_submodules(model)
    vars(model).pop("hf_device_map", None)
    return loaded


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
