"""Costs against what torch counts and what models really have."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from faster_pruner.costs.cost import Bytes, Cost, Macs, Parameters, total
from faster_pruner.model.shrink import shrink
from faster_pruner.model.spec import (
    Family,
    FollowerSpec,
    ProducerSpec,
    Stack,
    Sublayer,
    SublayerSpec,
    UnitSize,
    base_prefix,
    parts_by_name,
    resolve,
    with_parts,
)
from faster_pruner.model.table import FAMILIES

LENGTH = 7

# By stack layer: what is left of attention and of the feed-forward network.
SIZES: dict[str, dict[str, int]] = {
    "whole": {},
    "uneven": {"layers.0.attention": 1, "layers.0.ffn": 17, "layers.1.attention": 2, "layers.1.ffn": 40},
    "emptied": {"layers.0.attention": 0, "layers.1.ffn": 0, "layers.1.attention": 2},
    "nothing": {f"layers.{layer}.{kind}": 0 for layer in range(2) for kind in ("attention", "ffn")},
}


def resized(model: nn.Module, sublayers: list[Sublayer], sizes: dict[str, int]) -> list[Sublayer]:
    """The sublayers after the model has been shrunk, in place, to its last units."""
    parts = {
        name: shrink(model, own, torch.arange(own.units)[own.units - sizes.get(name, own.units) :])
        for name, own in parts_by_name(sublayers).items()
    }
    return with_parts(sublayers, parts)


@pytest.fixture(params=list(SIZES))
def sizes(request: pytest.FixtureRequest) -> dict[str, int]:
    return SIZES[request.param]


@torch.no_grad()
@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_macs_are_what_torch_counts(model_type: str, sizes: dict[str, int]) -> None:
    model, family = tiny.make_model(model_type), FAMILIES[model_type]
    sublayers = resized(model, resolve(model, family), sizes)
    layers = model.get_submodule(base_prefix(model) + family.stacks[0].layers)
    hidden = torch.randn(3, LENGTH, 24)
    with FlopCounterMode(display=False) as counter:
        for layer in layers.children():
            layer(hidden)
    assert counter.get_total_flops() == 2 * 3 * total(Macs({"layers": LENGTH}), sublayers)
    assert Macs({"layers": LENGTH}).fixed(model, sublayers) == 0


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_parameters_are_what_the_model_has(model_type: str, sizes: dict[str, int]) -> None:
    model = tiny.make_model(model_type)
    dense = resolve(model, FAMILIES[model_type])
    fixed = Parameters().fixed(model, dense)
    sublayers = resized(model, dense, sizes)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert Parameters().fixed(model, sublayers) == fixed
    assert total(Parameters(), sublayers) + fixed == everything
    own = 0
    for sublayer in sublayers:
        own += sublayer.weight(model).numel()
        for producer in sublayer.parts.producers if sublayer.units else ():
            own += sum(parameter.numel() for parameter in model.get_submodule(producer.path).parameters())
    assert total(Parameters(), sublayers) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_those_of_the_weights_file(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.make_model("bert").to(dtype)
    sublayers = resolve(model, FAMILIES["bert"])
    model.save_pretrained(tmp_path)
    stored = (tmp_path / "model.safetensors").stat().st_size
    cost = Bytes(dtype.itemsize)
    # names of dtypes and the padding differ by a few bytes
    assert 0 <= total(cost, sublayers) + cost.fixed(model, sublayers) - stored < 8 + 2 * len(model.state_dict())


class MultiQuery(nn.Module):
    """Attention whose heads share one key and one value; what it reads is wider than what it puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 3, 4
        self.qkv, self.out = nn.Linear(14, 12 + 2 * 4), nn.Linear(12, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([self.heads * self.head_dim, self.head_dim, self.head_dim], dim=-1)
        q = q.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        mixed = (q @ k[:, None].transpose(-1, -2)).softmax(dim=-1) @ v[:, None].expand_as(q)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiQuery()


class Model(nn.Module):
    """Two layers, and something that is no part of any."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(10, 2)


MULTI_QUERY = Family(
    stacks=(
        Stack(
            layers="layers",
            sublayers=(
                SublayerSpec(
                    kind="attention",
                    projection="attention.out",
                    producers=(ProducerSpec(module="attention.qkv", blocks=("columns", "fixed", "fixed")),),
                    stream="attention",
                    unit_size=UnitSize(module="attention", attribute="head_dim"),
                    mixes_tokens=True,
                    followers=(FollowerSpec(module="attention", name="heads"),),
                ),
            ),
        ),
    )
)


@torch.no_grad()
@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_features_that_belong_to_no_unit(keep: int) -> None:
    """A shared key and value cost the same for one head as for three, and nothing for none."""
    model = Model()
    dense = resolve(model, MULTI_QUERY)
    fixed = Parameters().fixed(model, dense)
    sublayers = resized(model, dense, {"layers.0.attention": keep, "layers.1.attention": 3})
    assert total(Parameters(), sublayers) + fixed == sum(parameter.numel() for parameter in model.parameters())
    if keep:
        with FlopCounterMode(display=False) as counter:
            model.get_submodule("layers.0.attention")(torch.randn(2, LENGTH, 14))
        assert counter.get_total_flops() == 2 * 2 * total(Macs({"layers": LENGTH}), sublayers[:1])


@pytest.mark.parametrize("cost", [Macs({"layers": 12.5}), Parameters(), Bytes(2)], ids=lambda cost: cost.name)
def test_the_cost_of_every_size_is_that_of_a_model_of_that_size(cost: Cost) -> None:
    model = Model()
    for sublayer in (*resolve(model, MULTI_QUERY), *resolve(tiny.make_model("bert"), FAMILIES["bert"])):
        keeps = torch.arange(sublayer.units + 1)
        costs = cost.of(sublayer, keeps)
        assert costs.dtype is torch.float64
        assert float(costs[0]) == 0.0
        assert bool((costs.diff() > 0).all())
    sublayers = resolve(model, MULTI_QUERY)
    costs = cost.of(sublayers[1], torch.tensor([3, 0, 2]))
    for keep, expected in zip((3, 0, 2), costs.tolist(), strict=True):
        smaller = resized(copy.deepcopy(model), sublayers, {"layers.1.attention": keep})
        assert total(cost, smaller) - total(cost, smaller[:1]) == expected


def test_each_stack_has_its_own_length() -> None:
    """MACs count a row's tokens as the stack sees them: words here, patches there."""
    model = nn.Module()
    model.words, model.patches = nn.ModuleList([Layer()]), nn.ModuleList([Layer(), Layer()])
    stack = MULTI_QUERY.stacks[0]
    family = Family(stacks=tuple(replace(stack, name=name, layers=name) for name in ("words", "patches")))
    sublayers = resolve(model, family)
    linear, mixing = 14 * 20 + 12 * 10, 2 * 12
    expected = 5 * (linear + mixing * 5) + 2 * 10 * (linear + mixing * 10)
    assert total(Macs({"words": 5.0, "patches": 10.0}), sublayers) == expected
