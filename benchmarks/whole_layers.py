"""Descent of whole layers, attention and feed-forward together, where `method.descent` fits one sublayer at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.data.batches import Batch
from faster_pruner.model.passes import inference, without_cache

# Rows per step.
_ROWS_PER_STEP = 64


class _Reached(Exception):
    """The forward got where it should."""


def first_calls(model: nn.Module, layer: nn.Module, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """What the first layer is called with, per batch: its hidden states by `hidden_states`, and the rest by name."""
    found: list[dict[str, Any]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(module.forward).parameters)
        found.append({**dict(zip(names, args, strict=False)), **kwargs})
        raise _Reached

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    # keys and values of one call would go on into the next
    with inference(model), without_cache(model):
        for batch in batches:
            with suppress(_Reached):
                model(**batch.inputs)
    handle.remove()
    return found


def called_with(layer: nn.Module, call: dict[str, Any], hidden: Tensor) -> Tensor:
    """What a layer makes of hidden states [B, S, d]."""
    returned = layer(**{**call, "hidden_states": hidden})
    return returned[0] if isinstance(returned, tuple) else returned


@dataclass(frozen=True, kw_only=True)
class LayerDescent:
    """Layer by layer, all parameters of a layer are fitted by gradient descent to the dense layer's output.

    Attributes:
        epochs: over the calibration rows.
        rate: at the start; it falls to zero.
        span: layers that are fitted together, to the output of the last of them.
        rows_per_step: of one gradient.
    """

    epochs: int = 3
    rate: float = 1e-3
    span: int = 1
    rows_per_step: int = _ROWS_PER_STEP


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Two models whose layers correspond.

    Attributes:
        model: that is fitted, in place.
        layers: its layers.
        dense: what it should be like.
        wanted: the dense model's layers.
        first_alone: of the last layer only the first token is read (a classifier's CLS).
    """

    model: nn.Module
    layers: Sequence[nn.Module]
    dense: nn.Module
    wanted: Sequence[nn.Module]
    first_alone: bool


def descend_layers(stacks: Stacks, batches: Sequence[Batch], options: LayerDescent, seed: int) -> None:
    """Fit all layers of a model that was recovered, from the first to the last."""
    layers, wanted = stacks.layers, stacks.wanted
    calls, aims = first_calls(stacks.model, layers[0], batches), first_calls(stacks.dense, wanted[0], batches)
    hidden, aim = [call["hidden_states"] for call in calls], [call["hidden_states"] for call in aims]
    masks = [batch.inputs["attention_mask"].bool() for batch in batches]
    for start in range(0, len(layers), options.span):
        stop = min(len(layers), start + options.span)
        with inference(stacks.dense):
            for layer in wanted[start:stop]:
                aim = [called_with(layer, call, x) for call, x in zip(aims, aim, strict=True)]
        read = masks
        if stacks.first_alone and stop == len(layers):
            read = [torch.zeros_like(m).index_fill_(1, torch.tensor([0]), value=True) for m in masks]
        _descend(layers[start:stop], calls, list(zip(hidden, aim, read, strict=True)), options, seed)
        with inference(stacks.model):
            for layer in layers[start:stop]:
                hidden = [called_with(layer, call, x) for call, x in zip(calls, hidden, strict=True)]


def _descend(
    layers: Sequence[nn.Module],
    calls: Sequence[dict[str, Any]],
    states: Sequence[tuple[Tensor, Tensor, Tensor]],
    options: LayerDescent,
    seed: int,
) -> None:
    """Adam with a rate that falls to zero; `states` are input, aim and tokens read of each batch."""
    size = options.rows_per_step
    pieces = [(i, slice(at, at + size)) for i, (x, _, _) in enumerate(states) for at in range(0, len(x), size)]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=options.rate)
    steps = options.epochs * len(pieces)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for _ in range(options.epochs):
            for at in torch.randperm(len(pieces), generator=generator).tolist():
                i, rows = pieces[at]
                x, wanted, read = states[i]
                # every layer takes the slice of what belongs to rows
                call = {
                    name: v[rows] if isinstance(v, Tensor) and len(v) == len(x) else v for name, v in calls[i].items()
                }
                x = x[rows]
                for layer in layers:
                    x = called_with(layer, call, x)
                loss = (x - wanted[rows])[read[rows]].square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
