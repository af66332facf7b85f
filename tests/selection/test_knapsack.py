"""The knapsack against brute force."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor

import oracles
from faster_pruner.errors import BudgetError
from faster_pruner.selection import knapsack
from faster_pruner.selection.elimination import Curve, additive
from faster_pruner.selection.knapsack import Item, allocate, kept_units


def a_curve(units: int, step: int, seed: int) -> Curve:
    """A random curve with points every `step` units."""
    generator = torch.Generator().manual_seed(seed)
    removed = torch.tensor(sorted({*range(0, units, step), units}))
    gains = torch.rand(removed.numel() - 1, generator=generator).double()
    loss = torch.cat([torch.zeros(1).double(), gains.cumsum(0)])
    return Curve(order=torch.randperm(units, generator=generator), removed=removed, loss=loss)


def linear(*unit_costs: float) -> Callable[[Tensor], Tensor]:
    """Costs of so much per unit, one number per limit."""
    return lambda keeps: torch.tensor(unit_costs).double()[:, None] * keeps


def steps(units: int, limits: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Tables of whole costs that never fall: flat here, with a jump there, and something for no unit at all."""
    jumps = torch.randint(0, 5, (limits, units + 1), generator=generator)
    jumps *= torch.randint(0, 3, (limits, units + 1), generator=generator)
    table = jumps.cumsum(dim=1).double()
    return lambda keeps: table[:, keeps]


def item(curve: Curve, *unit_costs: float, least: int = 0, multiple: int = 1) -> Item:
    """One sublayer with linear costs."""
    return Item(curves=(curve,), costs=linear(*unit_costs), least=least, multiple=multiple)


def loss_of(items: Mapping[str, Item], keeps: Mapping[str, int]) -> float:
    """Total loss, interpolated between the points of the curves."""
    return sum(
        float(np.interp(each.units - keeps[name], curve.removed.numpy(), curve.loss.numpy()))
        for name, each in items.items()
        for curve in each.curves
    )


def spent(items: Mapping[str, Item], keeps: Mapping[str, int]) -> Tensor:
    """[L]: true total costs."""
    return torch.stack([each.costs(torch.tensor([keeps[name]]))[:, 0] for name, each in items.items()]).sum(dim=0)


def whole(items: Mapping[str, Item]) -> Tensor:
    """[L]: costs of all units."""
    return spent(items, {name: each.units for name, each in items.items()})


def best_loss(items: Mapping[str, Item], allowed: Mapping[str, Sequence[int]], limits: Sequence[float]) -> float:
    """By brute force over the allowed sizes."""
    losses = [torch.tensor([loss_of({n: items[n]}, {n: k}) for k in allowed[n]], dtype=torch.float64) for n in items]
    costs = [items[name].costs(torch.tensor(allowed[name])).double() for name in items]
    return oracles.knapsack_by_brute_force(losses, costs, limits)


def every_size(items: Mapping[str, Item]) -> dict[str, Sequence[int]]:
    return {name: range(each.units + 1) for name, each in items.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_linear_costs(seed: int, share: float) -> None:
    """As good as the best of the curves' own points; what these leave over is spent on top."""
    items = {
        "a": item(a_curve(4, 1, seed), 7.0),
        "b": item(a_curve(12, 3, seed + 10), 1.0),
        "c": item(a_curve(10, 3, seed + 20), 2.0),
    }
    budget = share * float(whole(items)[0])
    found = allocate(items, [budget])
    assert float(spent(items, found)[0]) <= budget
    points = {name: (each.units - each.curves[0].removed).tolist() for name, each in items.items()}
    assert loss_of(items, found) <= best_loss(items, points, [budget]) + 1e-9


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("seed", range(30))
def test_costs_in_steps(seed: int, limits: int) -> None:
    """One limit exactly, and several at once within the gap that is allowed; every limit is met."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (4,), generator=generator).tolist()
    items = {
        f"i{i}": Item(curves=(a_curve(n, 1, 100 * seed + i),), costs=steps(n, limits, generator))
        for i, n in enumerate(sizes)
    }
    floor = spent(items, dict.fromkeys(items, 0))
    shares = 0.05 + 0.9 * torch.rand(limits, generator=generator).double()
    most = ((whole(items) - floor) * shares + floor).clamp(min=1.0).tolist()
    found = allocate(items, most)
    assert bool((spent(items, found) <= torch.tensor(most).double() * (1 + 1e-9)).all())
    best = best_loss(items, every_size(items), most)
    assert loss_of(items, found) == pytest.approx(best, rel=1e-9 if limits == 1 else 1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_two_limits_of_which_either_alone_asks_for_another_model(seed: int) -> None:
    """The first limit is hard on heads, the second on neurons, so that neither implies the other."""
    items = {
        name: item(a_curve(units, 1, 10 * seed + place), *costs)
        for place, (name, units, costs) in enumerate(
            [("h0", 4, (9.0, 1.0)), ("f0", 6, (1.0, 4.0)), ("h1", 4, (8.0, 1.5)), ("f1", 6, (1.5, 4.5))]
        )
    }
    limits = (0.45 * whole(items)).tolist()
    found = allocate(items, limits)
    assert bool((spent(items, found) <= torch.tensor(limits).double()).all())
    assert loss_of(items, found) == pytest.approx(best_loss(items, every_size(items), limits), rel=1e-3)
    for one in range(2):
        alone = {
            name: item(each.curves[0], float(each.costs(torch.tensor([1]))[one, 0])) for name, each in items.items()
        }
        kept = allocate(alone, [limits[one]])
        assert float(spent(items, kept)[1 - one]) > limits[1 - one]
        assert loss_of(items, kept) <= loss_of(items, found)


def test_a_second_limit_that_binds_nothing_changes_nothing() -> None:
    items = {name: item(a_curve(8, 1, seed), 1.0, 1.0) for seed, name in enumerate("abc")}
    alone = {name: item(each.curves[0], 1.0) for name, each in items.items()}
    assert loss_of(items, allocate(items, [11.0, 24.0])) == pytest.approx(loss_of(alone, allocate(alone, [11.0])))


@pytest.mark.timeout(120)
def test_many_sizes_and_limits_that_nearly_agree() -> None:
    """As large as a real model, within a few thousandths of a bound that no allocation can beat."""
    items: dict[str, Item] = {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(24):
        for units, costs in ((16, (3472.0, 3072.0, 50.0)), (4096, (24.0, 25.0, 1.0))):
            gains = torch.rand(units, generator=generator).double().pow(3).sort().values
            scale = 300 * float(torch.rand(1, generator=generator)) / units
            loss = torch.cat([torch.zeros(1).double(), gains.cumsum(dim=0)]) * scale
            curve = Curve(order=torch.arange(units), removed=torch.arange(units + 1), loss=loss)
            items[f"{layer}.{units}"] = item(curve, *costs, multiple=8 if units > 16 else 1)
    limits = whole(items) * torch.tensor([0.3, 0.29, 0.32]).double()
    found = allocate(items, limits.tolist())
    assert bool((spent(items, found) <= limits * (1 + 1e-12)).all())
    assert loss_of(items, found) <= 1.003 * lower_bound(items, limits)


def lower_bound(items: Mapping[str, Item], limits: Tensor) -> float:
    """The least loss when items may be mixed of several sizes: a linear programme."""
    losses: list[np.ndarray] = []
    costs: list[Tensor] = []
    for each in items.values():
        keeps = torch.arange(0, each.units + 1, each.multiple)
        curve = each.curves[0]
        losses.append(np.interp((each.units - keeps).numpy(), curve.removed.numpy(), curve.loss.numpy()))
        costs.append(each.costs(keeps) / limits[:, None])
    sizes = [loss.size for loss in losses]
    item_of_column = np.repeat(np.arange(len(sizes)), sizes)
    found = linprog(
        np.concatenate(losses),
        A_ub=torch.cat(costs, dim=1).numpy(),
        b_ub=np.ones(limits.numel()),
        A_eq=csr_array((np.ones(sum(sizes)), (item_of_column, np.arange(sum(sizes))))),
        b_eq=np.ones(len(sizes)),
    )
    return float(found.fun)


def test_units_that_cost_nothing_more_are_kept() -> None:
    """Costs in steps of four, as measured times have: the largest size of a step is as cheap as the smallest."""
    stairs = Item(curves=(a_curve(16, 1, 3),), costs=lambda keeps: (torch.ceil(keeps / 4) * 10)[None])
    twice = Item(curves=stairs.curves, costs=lambda keeps: stairs.costs(keeps).expand(2, -1))
    assert allocate({"only": stairs}, [20.0]) == {"only": 8}
    assert allocate({"only": twice}, [20.0, 1000.0]) == {"only": 8}


def test_slack_of_the_block_is_spent() -> None:
    only = item(a_curve(100, 16, 0), 1.0)
    keep = allocate({"only": only}, [37.0])["only"]
    assert keep == 37
    assert set(kept_units(only.curves[0], keep).tolist()) == set(only.curves[0].order[63:].tolist())
    assert kept_units(only.curves[0], 0).tolist() == []


def test_slack_goes_where_it_saves_the_most_per_cost() -> None:
    """Both curves have only their two ends, so that all in between is slack."""
    ends = torch.tensor([0, 10])
    steep, flat, between = (
        Curve(order=torch.arange(10), removed=ends, loss=torch.tensor([0.0, loss]).double())
        for loss in (10.0, 1.0, 2.0)
    )
    assert allocate({"flat": item(flat, 1.0), "steep": item(steep, 1.0)}, [7.0]) == {"flat": 0, "steep": 7}
    assert allocate({"flat": item(flat, 1.0), "between": item(between, 4.0)}, [9.0]) == {"flat": 9, "between": 0}


def test_least_units_are_respected_and_a_budget_below_them_is_refused() -> None:
    flat = Curve(order=torch.arange(4), removed=torch.arange(5), loss=torch.zeros(5).double())
    steep = Curve(order=torch.arange(4), removed=torch.arange(5), loss=torch.arange(5).double())
    kept = allocate({"flat": item(flat, 1.0, least=1), "steep": item(steep, 1.0)}, [4.0])
    assert kept == {"flat": 1, "steep": 3}
    with pytest.raises(BudgetError, match=r"below the smallest model .* ask for at least 0\.5 of the dense one"):
        allocate({"flat": item(flat, 1.0, least=2)}, [1.5])


def test_items_that_may_not_shrink_leave_it_to_the_others() -> None:
    whole_or_nothing = Item(curves=(a_curve(4, 1, 0), a_curve(4, 1, 2)), costs=linear(2.0), least=4)
    items = {"a": whole_or_nothing, "b": item(a_curve(6, 1, 1), 2.0)}
    assert allocate(items, [14.0]) == {"a": 4, "b": 3}
    with pytest.raises(BudgetError, match=r"ask for at least 0\.4 of"):
        allocate(items, [6.0])


def test_the_floor_is_that_of_the_limit_that_is_missed_by_most() -> None:
    curve = a_curve(4, 1, 0)
    costs = Item(curves=(curve,), costs=lambda keeps: torch.stack([keeps * 1.0, keeps + 1.0, keeps + 4.0]), least=1)
    with pytest.raises(BudgetError, match=r"at least 0\.625 of"):
        allocate({"only": costs}, [0.5, 1.5, 4.5])
    with pytest.raises(BudgetError, match=r"at least 0\.4 of"):
        allocate({"only": costs}, [0.5, 1.5, 8.0])
    assert allocate({"only": costs}, [1.0, 2.0, 5.0]) == {"only": 1}


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_multiples_are_kept_to_and_the_budget_is_used_up_to_one_of_them(share: float) -> None:
    items = {
        "a": item(a_curve(50, 7, 0), 1.0, multiple=8),
        "b": item(a_curve(12, 1, 1), 3.0),
        "c": item(a_curve(64, 16, 2), 1.0, multiple=8),
    }
    budget = share * float(whole(items)[0])
    kept = allocate(items, [budget])
    assert all(kept[name] % 8 == 0 or kept[name] == items[name].units for name in ("a", "c"))
    assert budget - 8 < float(spent(items, kept)[0]) <= budget
    allowed = {"a": [0, 8, 16, 24, 32, 40, 48, 50], "b": range(13), "c": range(0, 65, 8)}
    assert loss_of(items, kept) == pytest.approx(best_loss(items, allowed, [budget]))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("limits", [1, 2])
def test_sublayers_that_get_one_size_together(share: float, multiple: int, limits: int) -> None:
    """Two items of several curves each; sizes lie between the points of the curves, too."""
    unit_costs = ((10.0, 3.0), (2.0, 2.5))
    items = {
        "attention": Item(curves=(a_curve(6, 1, 0), a_curve(6, 1, 2)), costs=linear(*unit_costs[0][:limits])),
        "ffn": Item(
            curves=(a_curve(24, 4, 1), a_curve(24, 4, 3), a_curve(24, 5, 4)),
            costs=linear(*unit_costs[1][:limits]),
            multiple=multiple,
        ),
    }
    budget = (share * whole(items)).tolist()
    kept = allocate(items, budget)
    assert kept["ffn"] % multiple == 0
    assert bool((spent(items, kept) <= torch.tensor(budget).double()).all())
    allowed = {"attention": range(7), "ffn": range(0, 25, multiple)}
    assert loss_of(items, kept) == pytest.approx(best_loss(items, allowed, budget), rel=1e-3)


def test_a_sublayer_without_units_takes_part() -> None:
    nothing = Curve(order=torch.arange(0), removed=torch.zeros(1).long(), loss=torch.zeros(1).double())
    items = {"none": item(nothing, 1.0), "some": item(a_curve(4, 1, 0), 1.0)}
    assert allocate(items, [3.0]) == {"none": 0, "some": 3}


def test_the_integer_programme_prints_nothing_and_takes_no_time_limit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS writes to the file descriptor; what limits it does not depend on the machine's speed."""
    asked: dict[str, Any] = {}
    real = knapsack.milp

    def noisy(*given: Any, **more: Any) -> Any:
        os.write(1, b"Presolve: noise\n")
        asked.update(more["options"])
        return real(*given, **more)

    monkeypatch.setattr(knapsack, "milp", noisy)
    curve = additive(torch.rand(6, dtype=torch.float64))
    item = Item(curves=(curve,), costs=lambda keeps: torch.stack([keeps.double(), keeps.double() ** 2]))
    assert allocate({"a": item, "b": item}, [6.0, 20.0])
    print("still there")
    assert capfd.readouterr() == ("still there\n", "")
    assert set(asked) == {"mip_rel_gap", "node_limit"}
