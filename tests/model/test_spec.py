"""Reading the sizes of a model, and refusing one that is not what its family says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import cases
import tiny
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.shrink import Block
from faster_pruner.model.spec import (
    Family,
    FollowerSpec,
    ProducerSpec,
    Stack,
    SublayerSpec,
    UnitSize,
    base_prefix,
    resolve,
    set_matrix,
)
from faster_pruner.model.table import FAMILIES, family_of
from made_up import MADE_UP


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sublayers_have_the_sizes_of_the_config(family: str) -> None:
    model = tiny.make_model(family)
    assert [(s.name, s.units, s.unit_size, s.columns, s.width) for s in resolve(model, family_of(model.config))] == [
        ("layers.0.attention", 3, 8, 24, 24),
        ("layers.0.ffn", 40, 1, 40, 24),
        ("layers.1.attention", 3, 8, 24, 24),
        ("layers.1.ffn", 40, 1, 40, 24),
    ]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_without_a_head_has_the_same_sublayers(family: str) -> None:
    model = tiny.make_model(family)
    prefix = base_prefix(model)
    base = model.get_submodule(prefix.removesuffix("."))
    assert base_prefix(base) == ""
    with_head, without = resolve(model, FAMILIES[family]), resolve(base, FAMILIES[family])
    assert [s.name for s in with_head] == [s.name for s in without]
    assert [s.parts.projection for s in with_head] == [prefix + s.parts.projection for s in without]


# What the made-up families are there for: features per unit (or in all, where fixed) of the producers' blocks.
BLOCKS: dict[str, list[list[Block]]] = {
    "towers": [[Block(features=4)] * 3],
    "grouped": [[Block(features=8)], [Block(features=4)], [Block(features=4)]],
    "parallel": [[Block(features=4), Block(features=4, fixed=True), Block(features=4, fixed=True)]],
    "transposed": [[Block(features=4)] * 3],
}


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_of_made_up_families(name: str) -> None:
    first = cases.make(name).sublayers[0]
    assert first.units == 3
    assert [list(producer.blocks) for producer in first.parts.producers] == BLOCKS[name]


def test_stacks_kinds_and_places_have_names() -> None:
    assert [s.name for s in cases.make("encoder-decoder").sublayers] == [
        *(f"encoder.{i}.{kind}" for i in range(2) for kind in ("attention", "ffn")),
        *(f"decoder.{i}.{kind}" for i in range(2) for kind in ("attention", "cross-attention", "ffn")),
    ]


def test_models_without_a_row_are_looked_at_elsewhere() -> None:
    class Config:
        model_type = "t5"

    assert family_of(Config()) is None
    assert family_of(object()) is None


def with_first(**changes: Any) -> Family:
    """The made-up family of grouped queries with changes to its attention."""
    (stack,) = MADE_UP["grouped"].family.stacks
    attention, ffn = stack.sublayers
    return Family(stacks=(replace(stack, sublayers=(replace(attention, **changes), ffn)),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection": "attention.nothing"}, "nothing"),
        ({"projection": "norm1"}, "1 dimensions, 2 are expected"),
        ({"unit_size": UnitSize(module="attention", attribute="nothing")}, "nothing"),
        ({"unit_size": UnitSize(module="attention", attribute="o.bias")}, "NoneType"),
        ({"unit_size": UnitSize(module="attention", attribute="queries", counts="columns")}, "6 does not divide by 4"),
        ({"unit_size": UnitSize(module="attention", attribute="training", counts="units")}, "24 does not divide by 0"),
        ({"producers": (ProducerSpec(module="attention.k", blocks=("equal", "columns")),)}, "12 output features"),
        ({"producers": (ProducerSpec(module="attention.q", blocks=()),)}, "24 output features"),
        ({"producers": (ProducerSpec(module="attention.k", blocks=("columns",)),)}, "12 output features"),
        ({"producers": (ProducerSpec(module="attention.q", blocks=("equal",) * 5),)}, "24 does not divide by 5"),
        ({"followers": (FollowerSpec(module="attention", name="nothing"),)}, "nothing"),
        ({"followers": (FollowerSpec(module="attention.o", name="weight", axis=2),)}, "range"),
        ({"followers": (FollowerSpec(module="norm1", name="eps"),)}, "NoneType"),
    ],
)
def test_a_model_that_is_not_what_its_family_says(changes: dict[str, Any], message: str) -> None:
    model = cases.make("grouped").model
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        resolve(model, with_first(**changes))
    assert str(caught.value).startswith("layers.0.attention is not what its family says")


def test_a_model_without_the_layers() -> None:
    family = Family(stacks=(Stack(layers="encoder.layer", sublayers=()),))
    with pytest.raises(UnsupportedModelError, match=r"OneStack has no layers at 'encoder\.layer'"):
        resolve(cases.make("grouped").model, family)


def test_a_weight_of_more_dimensions_is_refused() -> None:
    layer = nn.Module()
    layer.add_module("up", nn.Conv1d(4, 4, 1))
    layer.add_module("down", nn.Conv1d(4, 4, 1))
    model = nn.Module()
    model.add_module("layers", nn.ModuleList([layer]))
    spec = SublayerSpec(kind="ffn", projection="down", producers=(ProducerSpec(module="up"),), stream="up")
    with pytest.raises(UnsupportedModelError, match="3 dimensions"):
        resolve(model, Family(stacks=(Stack(layers="layers", sublayers=(spec,)),)))


@pytest.mark.parametrize("name", cases.NAMES)
def test_weights_are_read_and_written_the_right_way_round(name: str) -> None:
    case = cases.make(name)
    for s in case.sublayers:
        x = torch.randn(5, s.columns)
        projection = s.projection(case.model)
        bias = getattr(projection, "bias", None)
        offset = torch.zeros(s.width) if bias is None else bias
        assert torch.allclose(projection(x), x @ s.weight(case.model).T + offset, atol=1e-5)
        weight, new = torch.randn(s.width, s.columns), torch.randn(s.width)
        set_matrix(projection, weight, new, transposed=s.parts.transposed)
        assert torch.allclose(projection(x), x @ weight.T + (0.0 if bias is None else new), atol=1e-5)
        assert torch.equal(s.weight(case.model), weight)
