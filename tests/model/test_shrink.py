"""What stands in for what is gone, and followers that are arguments; sizes themselves are the contract's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faster_pruner.model.shrink import (
    Block,
    Constant,
    Emptied,
    Follower,
    KeptEntries,
    Nothing,
    Parts,
    Producer,
    resize,
    shrink,
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_is_the_bias_whatever_it_is_given(bias: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(4, 3, bias=bias).to(dtype)
    constant = Constant(3, linear.bias, like=linear.weight)
    expected = linear.bias if bias else torch.zeros(3, dtype=dtype)
    for shape in ((2, 5, 0), (2, 5, 4), (7, 1)):
        y = constant(torch.randn(shape))
        assert torch.equal(y, expected.expand(*shape[:-1], 3))
        assert y.dtype is dtype
        # memory of its own: the next module may write into it
        y.detach().add_(1.0)
    assert torch.equal(constant(torch.randn(1, 4))[0], expected)
    # in the place of the stock weight, with another shape: plain transformers cannot make one up
    assert constant.weight.shape == (1,)
    assert list(constant.state_dict()) == (["bias", "weight"] if bias else ["weight"])


def test_nothing_has_no_column() -> None:
    assert Nothing()(torch.randn(2, 3, 4)).shape == (2, 3, 0)
    assert list(Nothing().state_dict()) == []


def parts_that_return(returns: int, *followers: Follower) -> Parts:
    return Parts(projection="", units=1, unit_size=1, width=3, producers=(), returns=returns, followers=followers)


@pytest.mark.parametrize("returns", [0, 1, 2, 3])
@pytest.mark.parametrize("inside", ["", "dense", "out.dense"])
def test_an_emptied_branch_returns_the_shape_of_its_module(returns: int, inside: str) -> None:
    projection = Constant(3, nn.Parameter(torch.randn(3)), like=torch.zeros(1)) if inside else None
    emptied = Emptied(parts_that_return(returns), inside, projection)
    x = torch.randn(2, 5, 4)
    for found in (emptied(x, None, 3), emptied(hidden_states=x, attention_mask=None), emptied(None, x=x)):
        value = found[0] if returns else found
        assert isinstance(found, tuple) == bool(returns)
        assert not returns or (len(found) == returns and all(each is None for each in found[1:]))
        assert value.shape == (2, 5, 3 if inside else 0)
    assert list(emptied.state_dict()) == ([f"{inside}.bias", f"{inside}.weight"] if inside else [])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_emptied_branch_hands_on_what_its_module_hands_on(attention: str) -> None:
    """As T5's blocks do with the position bias that they all share; weights, where there are any, come after it."""
    follower = Follower(module="", name="bias", axis=1, argument=True, returned=1)
    config = SimpleNamespace(_attn_implementation=attention)
    emptied = Emptied(parts_that_return(3, follower), config=config)
    x, bias = torch.randn(2, 5, 4), torch.randn(1, 4, 5, 5)
    value, handed, weights = emptied(x, bias=bias)
    assert value.shape == (2, 5, 0)
    assert handed is bias
    assert weights.shape == (2, 0, 5, 5) if attention == "eager" else weights is None
    assert emptied(x, bias=None)[1] is None


def test_weights_that_are_asked_for_by_an_argument_are_a_value_more() -> None:
    """As MPNet's are, whose attention knows no config; others hand such an argument through to somebody else."""

    class Asked(nn.Module):
        def forward(self, x: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
            return (x, x) if output_attentions else (x,)

    class Unasked(nn.Module):
        def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return x, None

    x = torch.randn(2, 5, 4)
    emptied = Emptied.in_place_of(Asked(), parts_that_return(1))
    assert len(emptied(x)) == len(emptied(x, output_attentions=False)) == 1
    for found in (emptied(x, output_attentions=True), emptied(x, True)):
        assert found[1].shape == (2, 0, 5, 5)
    assert Emptied.in_place_of(Unasked(), parts_that_return(2))(x, output_attentions=True)[1] is None


class Scores(nn.Module):
    """Has no weights, and is given a bias with an entry per unit in one way or another."""

    def forward(self, x: Tensor, other: Any = None, bias: Tensor | None = None) -> Tensor:
        return x if bias is None else x + bias


class Tiny(nn.Module):
    """Four units of one column."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.scores, self.down = nn.Linear(3, 4), Scores(), nn.Linear(4, 3)


def parts() -> Parts:
    return Parts(
        projection="down",
        units=4,
        unit_size=1,
        width=3,
        producers=(Producer(path="up", blocks=(Block(features=1),), inputs=3, bias=True),),
        followers=(Follower(module="scores", name="bias", axis=1, argument=True),),
    )


def test_an_argument_keeps_the_entries_of_the_units_that_are_left() -> None:
    model = Tiny()
    bias = torch.arange(4.0)[None]
    once = shrink(model, parts(), torch.tensor([0, 2, 3]))
    x = torch.zeros(1, 3)
    for given in (
        model.scores(x, None, bias),
        model.scores(x, other=None, bias=bias),
        model.scores(x=x, bias=bias),
    ):
        assert given.tolist() == [[0.0, 2.0, 3.0]]
    assert torch.equal(model.scores(x), x)
    assert torch.equal(model.scores(x, None, None), x)
    assert torch.equal(model.scores(x, bias=None), x)
    shrink(model, once, torch.tensor([1, 2]))
    assert model.scores(torch.zeros(1, 2), bias=bias).tolist() == [[2.0, 3.0]]
    assert len(model.scores._forward_pre_hooks) == 1
    assert model.state_dict()[f"scores.{KeptEntries.buffer('bias')}"].tolist() == [2, 3]
    # the bias is others', too
    assert bias.tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_sizes_that_are_not_named_stay() -> None:
    model = Tiny()
    assert resize(model, {"ffn": parts()}, {}) == {"ffn": parts()}
    assert len(model.scores._forward_pre_hooks) == 0
    assert resize(model, {"ffn": parts()}, {"ffn": 1})["ffn"].columns == 1
    assert model.up.out_features == model.down.in_features == 1
