"""Layers that stay on the CPU while the model computes elsewhere."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import accelerator
import stock_models
from faster_pruner.model.passes import device_of, inference, training
from faster_pruner.model.recompute import Recomputed
from faster_pruner.model.staging import fetching, stage, stage_like

pytestmark = pytest.mark.skipif(bool(accelerator.why_not()), reason=str(accelerator.why_not()))


@pytest.fixture(autouse=True)
def device() -> accelerator.Device:
    return accelerator.start()


class Layer(nn.Module):
    """One with a matrix, a parameter and a buffer of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.rand(width))
        self.register_buffer("shift", torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.matrix(x)) + self.shift


class Layers(nn.Module):
    """Layers between a head and embeddings that are one tensor."""

    def __init__(self, count: int = 4, width: int = 8, words: int = 10) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.ModuleList([Layer(width) for _ in range(count)])
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


THERE = torch.device("privateuseone", 0)
IDS = torch.arange(6).view(2, 3)
PATHS = [f"layers.{i}" for i in range(4)]


def staged(model: nn.Module) -> nn.Module:
    """A model with its layers at home."""
    stage(model, PATHS, THERE)
    return model


def test_what_is_outside_of_the_layers_moves_and_stays_one() -> None:
    model: Any = staged(Layers())
    assert model.head.weight is model.words.weight
    assert model.head.weight.device == THERE
    assert {p.device.type for p in model.layers.parameters()} == {"cpu"}
    assert {b.device for b in model.buffers()} == {THERE}
    assert device_of(model) == THERE
    # whoever knows nothing of it gets an error, not another result
    with pytest.raises(RuntimeError, match="same device"):
        model(IDS.to(THERE))


def test_values_are_those_of_the_whole_model_there() -> None:
    torch.manual_seed(0)
    whole, other = Layers(), Layers()
    other.load_state_dict(whole.state_dict())
    stage(whole, [], THERE)
    with inference(staged(other)):
        assert torch.equal(other(IDS.to(THERE)), whole(IDS.to(THERE)))
        homes = {p.device.type for p in other.layers.parameters()}
    assert homes == {"cpu"}
    assert "forward" not in vars(other.layers[0].matrix)


def test_what_is_written_between_calls_is_seen() -> None:
    model: Any = staged(Layers())
    with inference(model):
        before = model(IDS.to(THERE)).cpu()
        model.layers[1].matrix.weight.mul_(2)
        after = model(IDS.to(THERE)).cpu()
        model.layers[1].matrix.weight.div_(2)
        assert torch.equal(model(IDS.to(THERE)).cpu(), before)
    assert not torch.equal(before, after)


def test_gradients_come_home() -> None:
    torch.manual_seed(0)
    whole, other = Layers(), Layers()
    other.load_state_dict(whole.state_dict())
    staged(other)
    for model, ids in ((whole, IDS), (other, IDS.to(THERE))):
        with training(model) as trained:
            model(ids).square().mean().backward()
            found = [None if p.grad is None else p.grad.clone() for p in trained]
            model.found = found
    for one, two, parameter in zip(whole.found, other.found, other.parameters(), strict=True):
        assert two.device == parameter.device
        torch.testing.assert_close(one, two.cpu())


def test_calls_of_one_module_may_overlap() -> None:
    """A suspended forward goes on after another one has come and gone."""
    model: Any = staged(Layers())
    layer: Any = model.layers[0]
    seen: list[torch.device] = []

    def inside(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not seen:
            seen.append(layer.scale.device)
            layer(args[0])
            seen.append(layer.scale.device)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(fetching(model, THERE))
        stack.callback(layer.matrix.register_forward_pre_hook(inside).remove)
        layer(torch.rand(2, 3, 8).to(THERE))
        assert layer.scale.device.type == "cpu"
    assert seen == [THERE, THERE]


def test_a_module_that_fails_gets_its_weights_back() -> None:
    model: Any = staged(Layers())
    with inference(model), pytest.raises(RuntimeError):
        model.layers[2](torch.rand(2, 3, 5).to(THERE))
    assert model.layers[2].scale.device.type == "cpu"


@pytest.mark.parametrize("backward", [False, True])
def test_one_layer_is_there_at_a_time(backward: bool, device: accelerator.Device) -> None:
    model: Any = staged(Layers(count=12, width=256))
    layer = sum(p.nbytes for p in model.layers[0].parameters())
    gc.collect()
    held = device.memory_allocated()
    device.reset_peak_memory_stats()
    with ExitStack() as stack:
        if backward:
            stack.enter_context(training(model))
            model.layers.requires_grad_(False)
            Recomputed().attach(stack, model.layers)
            model(IDS[:, :1].to(THERE)).sum().backward()
        else:
            stack.enter_context(inference(model))
            model(IDS[:, :1].to(THERE))
    # the copies that are kept, and those that a graph holds
    assert layer <= device.max_memory_allocated() - held < (3 if backward else 2) * layer
    stack.close()
    model.zero_grad()
    gc.collect()
    assert device.memory_allocated() == held


@pytest.mark.parametrize("name", list(stock_models.MODELS))
def test_models_of_transformers_compute_the_same(name: str) -> None:
    """Their modules fetch what they read; none looks at the weights of another one."""
    model, found = stock_models.dense(name)
    whole, other = (stock_models.copy.deepcopy(model) for _ in range(2))
    inputs = {key: value.to(THERE) for key, value in stock_models.inputs_for(model).items()}
    stage(whole, [], THERE)
    stage(other, [s.prefix.removesuffix(".") for s in found.sublayers], THERE)
    with inference(whole), inference(other):
        expected, values = stock_models.values(whole, inputs), stock_models.values(other, inputs)
    assert all(torch.equal(one, two) for one, two in zip(expected, values, strict=True))
    third: Any = stock_models.copy.deepcopy(model)
    stage_like(third, other, THERE)
    assert {n: p.device for n, p in third.named_parameters()} == {n: p.device for n, p in other.named_parameters()}
