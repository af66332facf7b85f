"""Layers that are run again in the backward: the same gradients, nothing kept but what they were given."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faster_pruner.model.recompute import Recomputed

WIDTH, LAYERS = 8, 3


class Layer(nn.Module):
    """With a second input that comes by name, and a count of its runs; one kind changes what it is given."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.in_place, self.runs = in_place, 0

    def forward(self, hidden: Tensor, *, scale: Tensor, note: str = "") -> tuple[Tensor, str]:
        self.runs += 1
        branch = self.second(torch.tanh(self.first(hidden)) * scale)
        return (hidden.add_(branch) if self.in_place else hidden + branch), note


class Model(nn.Module):
    """Some layers, one after the other."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(in_place=in_place) for _ in range(LAYERS))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden, scale = x * 1.5, torch.linspace(0.5, 2, 16)
        for layer in self.layers:
            hidden, note = layer(hidden, scale=scale, note="as it is")
            assert note == "as it is"
        return hidden.square().sum()


@contextmanager
def recomputed(model: Model) -> Generator[Recomputed]:
    """All layers are run twice."""
    with ExitStack() as stack:
        found = Recomputed()
        found.attach(stack, model.layers)
        yield found


def gradient(model: Model, x: Tensor) -> Tensor:
    """dL/dx."""
    own = x.clone().requires_grad_()
    model(own).backward()
    assert own.grad is not None
    return own.grad


def runs(model: Model) -> list[Any]:
    """How often each layer ran."""
    return [layer.runs for layer in model.layers]


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_are_the_same_bits(in_place: bool) -> None:
    plain, model, x = Model(in_place=in_place), Model(in_place=in_place), torch.randn(2, 5, WIDTH)
    expected = gradient(plain, x)
    with recomputed(model):
        assert torch.equal(gradient(model, x), expected)
        # once to try, and once as usual, where a layer changes what it is given; else forwards and again
        assert runs(model) == [2] * LAYERS
        assert torch.equal(gradient(model, x), expected)
        assert runs(model) == [3 if in_place else 4] * LAYERS
    assert all("forward" not in vars(layer) for layer in model.layers)
    assert torch.equal(gradient(model, x), expected)
    assert runs(model) == [4 if in_place else 5] * LAYERS


def test_only_what_a_layer_is_given_is_kept() -> None:
    model, x = Model(), torch.randn(2, 5, WIDTH, requires_grad=True)
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), recomputed(model):
        model(x)
    assert kept.count(torch.Size([2, 5, 16])) == 0
    assert kept.count(x.shape) == LAYERS + 1


def test_hooks_of_a_layer_run_before_both_runs_of_it() -> None:
    model, seen = Model(), list[bool]()
    with recomputed(model) as layers:

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(layers.present is not None and layers.present.again)

        handle = model.layers[1].register_forward_pre_hook(hook, with_kwargs=True)
        gradient(model, torch.randn(2, 5, WIDTH))
        handle.remove()
    assert seen == [False, True]


def test_without_gradients_a_layer_runs_once() -> None:
    model = Model()
    with recomputed(model), torch.no_grad():
        model(torch.randn(2, 5, WIDTH))
        model(torch.randn(2, 5, WIDTH))
    assert runs(model) == [2] * LAYERS
