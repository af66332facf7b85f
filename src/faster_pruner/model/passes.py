"""What every pass over a model has in common. Everything that it changes is put back when it ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.errors import DataError, FasterPrunerError
from faster_pruner.host.spill import Shelf
from faster_pruner.model.staging import fetching
from faster_pruner.options import Arithmetic

# Feed-forward layers may run over a row in pieces of this length; each piece would call every module again.
_CHUNKS = "chunk_size_feed_forward"
# Letters of what a model's code says that an error shows.
_LONGEST_REASON = 200


@dataclass(frozen=True, kw_only=True)
class PassSetting:
    """How passes over the calibration set are run.

    Attributes:
        precision: of the forwards.
        shelf: where hidden states go; by default they stay in memory.
    """

    precision: Arithmetic = "float32"
    shelf: Shelf = field(default_factory=lambda: Shelf(sys.maxsize))


# What every pass needs of what a model returns, whatever its config says: names to read values by, and no attention
# matrices, which fused attention cannot give. (Hidden states stay: an objective may read them.)
_RETURNED = {"return_dict": True, "output_attentions": False}


@contextmanager
def _configured(model: nn.Module, values: Mapping[str, bool]) -> Generator[None]:
    """Other values in the configs of a model and its parts, where they have them."""
    found = {id(own): own for module in model.modules() if (own := getattr(module, "config", None)) is not None}
    before = [(own, key, getattr(own, key)) for own in found.values() for key in values if hasattr(own, key)]
    changed = [(own, key, value) for own, key, value in before if value != values[key]]
    try:
        for own, key, _ in changed:
            setattr(own, key, values[key])
        yield
    finally:
        for own, key, value in changed:
            setattr(own, key, value)


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode, every module called once per forward, and values returned by name."""
    with _configured(model, _RETURNED), _calling_once(model), fetching(model, device_of(model)):
        yield


@contextmanager
def without_cache(model: nn.Module) -> Generator[None]:
    """A model that keeps no keys and values: a layer that is called again would add to them, and of suspended forwards
    they are as large as hidden states of a layer or two, for every layer.
    """
    with _configured(model, {"use_cache": False}):
        yield


@contextmanager
def _calling_once(model: nn.Module) -> Generator[None]:
    """Eval mode, and every module called once per forward."""
    flags = [(module, module.training) for module in model.modules()]
    chunked = [(module, getattr(module, _CHUNKS)) for module, _ in flags if getattr(module, _CHUNKS, 0)]
    model.eval()
    for module, _ in chunked:
        setattr(module, _CHUNKS, 0)
    try:
        yield
    finally:
        for module, size in chunked:
            setattr(module, _CHUNKS, size)
        for module, training in flags:
            module.training = training


@contextmanager
def inference(model: nn.Module) -> Generator[None]:
    """Eval mode without gradients."""
    with _evaluating(model), torch.no_grad():
        yield


@contextmanager
def asking_as_before(model: nn.Module) -> Generator[None]:
    """Which parameters ask for a gradient may be changed inside."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _differentiating(model: nn.Module) -> Generator[None]:
    """Eval mode with gradients; which parameters ask for one may be changed inside."""
    with asking_as_before(model), _evaluating(model), torch.enable_grad():
        yield


@contextmanager
def activation_gradients_only(model: nn.Module) -> Generator[None]:
    """Eval mode in which no parameter asks for a gradient."""
    with _differentiating(model):
        model.requires_grad_(False)
        yield


@contextmanager
def training(model: nn.Module) -> Generator[list[nn.Parameter]]:
    """Eval mode (nothing is dropped out) with gradients: the parameters that can be trained, which ask for theirs."""
    with _differentiating(model):
        trained = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        for parameter in trained:
            parameter.requires_grad_(True)
        try:
            yield trained
        finally:
            for parameter in trained:
                parameter.grad = None


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor that a module is given, however it is passed."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def by_row(x: Tensor, rows: int) -> Tensor:
    """[B, S, n]: the tokens of B rows, of x whose first dimensions hold them row after row.

    Some models put all tokens into one dimension, others an image's windows into the first one.
    """
    return x if x.ndim == 3 and x.shape[0] == rows else x.reshape(rows, math.prod(x.shape[:-1]) // rows, x.shape[-1])


def called(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What a model returns. Raises DataError where its own code stumbles over what it is given."""
    try:
        return model(**inputs)
    except (FasterPrunerError, torch.OutOfMemoryError):
        raise
    except (AssertionError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
        reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") or type(error).__name__
        unpadded = getattr(getattr(model, "config", None), "pad_token_id", 0) is None and "padding" in reason
        hint = "; put a pad_token_id into its config" if unpadded else ""
        raise DataError(f"a {type(model).__name__} cannot be run on {shapes}: {reason}{hint}") from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: on the GPU that any of its weights are on; all others are fetched (`staging`)."""
    devices = [parameter.device for parameter in model.parameters()]
    return next((device for device in devices if device.type != "cpu"), devices[0])


def all_tensors_in(value: Any) -> list[Tensor]:
    """All tensors in what a module returns, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping | SimpleNamespace):
        value = list(value.values() if isinstance(value, Mapping) else vars(value).values())
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in all_tensors_in(each)]
    return []


def tensors_in(value: Any) -> list[Tensor]:
    """The floating-point ones among them."""
    return [tensor for tensor in all_tensors_in(value) if tensor.is_floating_point()]


def masked_by(mask: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A pre-hook that multiplies the input's columns by a mask [n]."""

    def masked(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (args[0] * mask.to(args[0]), *args[1:])

    return masked
