"""Budgets: what they accept, and what they mean for one model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from faster_pruner.costs.budget import (
    Bound,
    Budget,
    Limit,
    as_any_budget,
    as_budget,
    bounds_of,
    in_amounts,
    spendings,
)
from faster_pruner.costs.cost import Bytes, Macs, Parameters, total
from faster_pruner.errors import BudgetError, OptionError
from faster_pruner.model.spec import Sublayer, resolve
from faster_pruner.model.table import FAMILIES

LENGTHS = {"layers": 9.0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.make_model("bert")


@pytest.fixture(scope="module")
def sublayers(model: nn.Module) -> list[Sublayer]:
    return resolve(model, FAMILIES["bert"])


@dataclass(frozen=True)
class Milliseconds:
    """A user's own cost: a table of steps, and something for the rest of the model."""

    name: str = "milliseconds"

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        return torch.ceil(keeps.double() / 4) * 0.5

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """Embeddings and head."""
        return 2.0


def bounds(model: nn.Module, sublayers: list[Sublayer], budget: Budget) -> list[Bound]:
    return bounds_of(budget, model, sublayers, LENGTHS, bytes_each=4)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"cost": "flops", "share": 0.5},
            OptionError,
            "cost 'flops' does not exist; choose one of: macs, parameters, by",
        ),
        (
            {"cost": "macs"},
            BudgetError,
            "a limit on macs is a share of the dense model or an amount: give one of the two",
        ),
        ({"cost": "bytes", "share": 0.5, "amount": 3.0}, BudgetError, "a limit on bytes .* give one of the two"),
        ({"cost": Milliseconds()}, BudgetError, "a limit on milliseconds is a share"),
        ({"cost": "macs", "share": 0.0}, BudgetError, "share of the encoder's MACs to keep is 0; it must be between 0"),
        ({"cost": "parameters", "share": 1.0}, BudgetError, "share of the parameters to keep is 1; .* 0.5 for half"),
        ({"cost": "macs", "share": math.nan}, BudgetError, "to keep is nan"),
        ({"cost": "bytes", "amount": 0.0}, BudgetError, "the limit on bytes is 0; it must be above 0"),
        ({"cost": "bytes", "amount": -3.0}, BudgetError, "the limit on bytes is -3"),
        ({"cost": "bytes", "amount": math.inf}, BudgetError, "the limit on bytes is inf"),
        ({"cost": Milliseconds(), "amount": math.nan}, BudgetError, "the limit on milliseconds is nan"),
    ],
)
def test_a_limit_is_checked_where_it_is_made(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Limit(**given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, BudgetError, "say what the pruned model may cost, for instance half of the MACs"),
        ({"macs": 1.5}, BudgetError, "encoder's MACs to keep is 1.5; it must be between 0 and 1"),
        ({"macs": 0.0}, BudgetError, "encoder's MACs to keep is 0"),
        ({"macs": 0.5, "allocation": "greedy"}, OptionError, "allocation 'greedy' does not exist; .* free, bucketed"),
        ({"macs": 0.5, "round_to": 0}, OptionError, "round_to is 0; it must be at least 1"),
        ({"macs": 0.5, "round_to": "fast"}, OptionError, "round_to 'fast' does not exist; choose one of: auto"),
    ],
)
def test_a_budget_is_checked_where_it_is_made(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Budget(**given)


def test_a_share_is_a_budget_and_limits_add_up() -> None:
    both = Budget(macs=0.5, limits=(Limit(cost="bytes", amount=1e6),), round_to="auto")
    assert as_budget(0.5) == Budget(macs=0.5)
    assert as_budget(both) is both
    assert both.all_limits == (Limit(cost="macs", share=0.5), Limit(cost="bytes", amount=1e6))
    assert Budget(limits=(Limit(cost=Milliseconds(), amount=7),)).to_dict() == {
        "macs": None,
        "limits": [{"cost": "milliseconds", "share": None, "amount": 7}],
        "allocation": "free",
        "round_to": None,
    }
    with pytest.raises(BudgetError, match="between 0 and 1"):
        as_budget(-0.5)


def test_all_of_the_macs_limits_nothing() -> None:
    """A budget like that is for whoever makes a model smaller in another way; nobody else takes it."""
    for share in (1, 1.0):
        assert not Budget(macs=share).prunes
        assert as_any_budget(share).all_limits == ()
        with pytest.raises(BudgetError, match="to keep is 1, which prunes nothing; it must be between 0 and 1"):
            as_budget(share)
    limit = Limit(cost="bytes", amount=1e6)
    both = Budget(macs=1.0, limits=(limit,))
    assert both.prunes
    assert as_budget(both).all_limits == (limit,)
    for wrong in (True, 1.0001, "1"):
        with pytest.raises(BudgetError, match="between 0 and 1"):
            Budget(macs=wrong)  # type: ignore[arg-type]


def test_shares_of_a_larger_model_as_amounts(model: nn.Module, sublayers: list[Sublayer]) -> None:
    """The other parts have become smaller meanwhile; what was asked for is a share of what they were."""
    larger = nn.ModuleList([model, nn.Linear(999, 1)])
    limits = (
        Limit(cost="parameters", share=0.7),
        Limit(cost="bytes", amount=5.0),
        Limit(cost=Milliseconds(), share=0.5),
    )
    found = in_amounts(Budget(macs=0.5, limits=limits), larger, sublayers, LENGTHS, bytes_each=4)
    everything = parameters_of(model) + 1000
    assert found.macs == 0.5
    assert [limit.share for limit in found.limits] == [None, None, None]
    assert [limit.amount for limit in found.limits] == pytest.approx([0.7 * everything, 5.0, 0.5 * (2 + 2 * 5.5)])
    keeps = {s.name: s.units for s in sublayers}
    macs, parameters, _, own = spendings(found, model, sublayers, keeps, LENGTHS, bytes_each=4, dense=larger)
    assert macs.asked == pytest.approx(0.5 * macs.dense)
    assert (parameters.dense, parameters.pruned) == (everything, parameters_of(model))
    assert parameters.asked == pytest.approx(0.7 * everything)
    assert own.dense == own.pruned == 13


def test_a_share_of_the_macs(model: nn.Module, sublayers: list[Sublayer]) -> None:
    (bound,) = bounds(model, sublayers, Budget(macs=0.3))
    assert bound.cost == Macs(LENGTHS)
    assert bound.whole == total(Macs(LENGTHS), sublayers)
    assert bound.most == pytest.approx(0.3 * bound.whole)
    assert bound.share == pytest.approx(0.3)


def test_a_share_of_the_parameters_is_one_of_the_whole_model(model: nn.Module, sublayers: list[Sublayer]) -> None:
    """What cannot be pruned counts, too, so that the sublayers have to give more."""
    everything, prunable = parameters_of(model), total(Parameters(), sublayers)
    (bound,) = bounds(model, sublayers, Budget(limits=(Limit(cost="parameters", share=0.7),)))
    assert bound.whole == prunable
    assert bound.most == pytest.approx(0.7 * everything - (everything - prunable))
    assert bound.share < 0.7
    (in_bytes,) = bounds(model, sublayers, Budget(limits=(Limit(cost="bytes", share=0.7),)))
    # of the file's table of contents .7 is allowed, too, and all of it stays
    contents = Bytes(4).fixed(model, sublayers) - 4 * Parameters().fixed(model, sublayers)
    assert contents > 0
    assert in_bytes.most == pytest.approx(4 * bound.most - 0.3 * contents)


def test_an_amount_is_one_of_the_whole_model(model: nn.Module, sublayers: list[Sublayer]) -> None:
    everything = parameters_of(model)
    contents = Bytes(4).fixed(model, sublayers) - 4 * Parameters().fixed(model, sublayers)
    limit = Limit(cost="bytes", amount=4.0 * (everything - 1000) + contents)
    (bound,) = bounds(model, sublayers, Budget(limits=(limit,)))
    assert bound.whole - bound.most == pytest.approx(4 * 1000)
    (own,) = bounds(model, sublayers, Budget(limits=(Limit(cost=Milliseconds(), amount=7.0),)))
    assert own.most == 5.0
    assert own.whole == 2 * (0.5 + 5.0)


def test_limits_that_bind_nothing_are_left_out(model: nn.Module, sublayers: list[Sublayer]) -> None:
    everything = parameters_of(model)
    loose = Limit(cost="parameters", amount=everything)
    tight = Limit(cost="parameters", amount=everything - 1)
    found = bounds(model, sublayers, Budget(macs=0.5, limits=(loose, Limit(cost=Milliseconds(), amount=1e9))))
    assert [bound.cost.name for bound in found] == ["macs"]
    found = bounds(model, sublayers, Budget(macs=0.5, limits=(loose, tight)))
    assert [bound.cost.name for bound in found] == ["macs", "parameters"]
    with pytest.raises(BudgetError, match="meets this budget as it is: there is nothing to prune"):
        bounds(model, sublayers, Budget(limits=(loose,)))


def test_a_limit_that_no_size_meets_is_refused(model: nn.Module, sublayers: list[Sublayer]) -> None:
    fixed = Parameters().fixed(model, sublayers)
    for limit in (Limit(cost="parameters", amount=fixed), Limit(cost="parameters", share=0.01)):
        with pytest.raises(BudgetError, match=rf"parameters: .* are asked for, but .* takes {fixed:.4g} already"):
            bounds(model, sublayers, Budget(macs=0.5, limits=(limit,)))
    with pytest.raises(BudgetError, match="milliseconds: 1.5 are asked for, but what cannot be pruned takes 2 already"):
        bounds(model, sublayers, Budget(limits=(Limit(cost=Milliseconds(), amount=1.5),)))


def test_steps_on_the_way_to_a_bound() -> None:
    """Two steps of equal ratio; the last one is the bound itself, to the last digit."""
    bound = Bound(cost=Parameters(), whole=1000.0, most=90.0)
    assert bound.power(0.5) == pytest.approx(300.0)
    assert bound.power(0.5) / bound.whole == pytest.approx(bound.most / bound.power(0.5))
    assert bound.power(1.0) == bound.most
