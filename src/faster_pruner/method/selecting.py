"""Selection: which units of which sublayer to keep so that every limit of a budget is met."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from faster_pruner.costs.budget import Bound, Budget, bounds_of
from faster_pruner.costs.cost import Macs, total
from faster_pruner.errors import BudgetError
from faster_pruner.host.devices import on_all_cores
from faster_pruner.host.spill import free_memory
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.statistics import SublayerStatistics
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.options import Fisher, Method, SecondOrder
from faster_pruner.selection.elimination import Curve, additive, eliminate, square_root
from faster_pruner.selection.fisher import diagonal, grouped
from faster_pruner.selection.knapsack import Item, allocate, kept_units
from faster_pruner.selection.rearrange import rearrange
from faster_pruner.selection.search import Candidates, Selection, search_masks

# Matrices [n, n] in float64 that an elimination holds at its peak, and the share of the free memory that those of all
# eliminations at once may take.
_MATRICES, _SHARE_OF_FREE_MEMORY = 4, 0.5
# The published search ranks heads and neurons: no more kinds of units than two.
_MOST_KINDS_RANKED = 2
# Costs that differ by less than this, relatively, are the same.
_SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which unit counts a selection may leave.

    Attributes:
        multiple: by sublayer; 1 for any count.
        least: by sublayer; 0 for none.
        uniform: whether all sublayers of a kind must have the same count.
    """

    multiple: Mapping[str, int] = field(default_factory=dict[str, int])
    least: Mapping[str, int] = field(default_factory=dict[str, int])
    uniform: bool = False

    @property
    def free(self) -> bool:
        """Whether any count will do."""
        return not self.uniform and not any(self.least.values()) and all(m == 1 for m in self.multiple.values())


def sizes_allowed(sublayers: Sequence[Sublayer], budget: Budget, method: Method) -> Sizes:
    """What `Budget.allocation` and `Budget.round_to` mean for the sublayers of a dense model. Raises BudgetError."""
    round_to = method.round_to if budget.round_to is None else budget.round_to
    if isinstance(round_to, str):
        raise BudgetError(
            "measure the multiple first (runtimes.timing.fastest_multiple) and put the number into round_to"
        )
    multiple = {s.name: min(round_to, max(1, s.units)) if s.spec.rounded else s.parts.groups for s in sublayers}
    if budget.allocation == "bucketed":
        for s in sublayers:
            bucket = max(1, s.units // s.spec.buckets)
            # a bucket that is a multiple of what was asked to be rounded to
            multiple[s.name] = math.ceil(bucket / multiple[s.name]) * multiple[s.name]
    stock = budget.allocation == "stock"
    if stock and not any(s.spec.stock for s in sublayers):
        raise BudgetError(
            "no config field of this model says how large a sublayer is, so the allocation 'stock' can remove nothing; "
            "choose another one"
        )
    # no stock class builds a sublayer without a unit
    fewest = {s.name: max(s.parts.groups, s.spec.least) if s.spec.stock else s.units for s in sublayers}
    least = fewest if stock else {s.name: s.spec.least for s in sublayers}
    return Sizes(multiple=multiple, least=least, uniform=budget.allocation in ("uniform", "stock"))


def bounds_for(calibrated: Calibrated, budget: Budget) -> list[Bound]:
    """The limits of a budget for a calibrated model. Raises BudgetError."""
    bytes_each = calibrated.subject.dtype.itemsize
    return bounds_of(budget, calibrated.model, calibrated.sublayers, calibrated.data.lengths, bytes_each=bytes_each)


def share_left(calibrated: Calibrated, method: Method, bounds: Sequence[Bound], sizes: Sizes) -> float:
    """How strong a budget is: the least share of the dense model that it leaves, of what it limits or of the MACs.

    Half of the time may be a sixth of the MACs, where a layer takes time however small it is.

    Raises:
        BudgetError: the limits are below what the sizes allow.
        NumericalError: activations are not finite.
    """
    share = min(bound.share for bound in bounds)
    counted = any(isinstance(bound.cost, Macs) for bound in bounds)
    if counted and len(method.rounds.exponents(share)) == 1:
        return share
    # what cannot be reached is told of the dense model here, not of what a round has left
    selection = select(calibrated, method, bounds, sizes)
    macs, sublayers = Macs(calibrated.data.lengths), calibrated.sublayers
    left = total(macs, sublayers, {name: kept.numel() for name, kept in selection.items()})
    return share if counted else min(share, left / total(macs, sublayers))


def select(calibrated: Calibrated, method: Method, bounds: Sequence[Bound], sizes: Sizes | None = None) -> Selection:
    """The units to keep in each sublayer.

    Args:
        calibrated: with the statistics that the method needs.
        method: whose selection is asked for.
        bounds: all are met together.
        sizes: allowed; any by default.

    Raises:
        BudgetError: the limits are below what the sizes allow.
        NumericalError: activations are not finite.
    """
    allowed, selection, lead = sizes or Sizes(), method.selection, calibrated.data.ranks.lead
    if isinstance(selection, SecondOrder):
        curves = loss_curves(calibrated, selection)
        return lead(lambda: _by_knapsack(calibrated.sublayers, curves, bounds, allowed))
    return lead(lambda: _by_fisher(calibrated, selection, bounds, allowed))


def _by_fisher(calibrated: Calibrated, options: Fisher, bounds: Sequence[Bound], sizes: Sizes) -> Selection:
    """First order: the published search where it applies, the knapsack elsewhere."""
    sublayers = calibrated.sublayers
    groups = {s.name: grouped(_gradients(calibrated, s), options.batch) for s in sublayers}
    importance = {s.name: diagonal(groups[s.name]) for s in sublayers}
    unit_cost = {s.name: _unit_cost(s, bounds) for s in sublayers}
    kinds = {s.alike for s in sublayers}
    free = sizes.free and all(s.parts.groups == 1 for s in sublayers)
    if free and len(kinds) <= _MOST_KINDS_RANKED and all(cost is not None for cost in unit_cost.values()):
        candidates = {
            s.name: Candidates(
                kind=" ".join(s.alike), importance=importance[s.name], unit_cost=unit_cost[s.name] or 0.0
            )
            for s in sublayers
        }
        selection = search_masks(candidates, bounds[0].most)
    else:
        curves = {s.name: additive(importance[s.name], groups=s.parts.groups) for s in sublayers}
        selection = _by_knapsack(sublayers, curves, bounds, sizes)
    if options.rearrange:
        # swaps know nothing of units that stay in equal number
        alone = [s.name for s in sublayers if s.parts.groups == 1]
        selection |= {name: rearrange(selection[name], groups[name]) for name in alone}
    return selection


def _unit_cost(sublayer: Sublayer, bounds: Sequence[Bound]) -> float | None:
    """What every unit costs, None where units do not cost alike or more than one thing is limited."""
    if len(bounds) > 1:
        return None
    keeps = torch.arange(sublayer.units + 1)
    costs = bounds[0].cost.of(sublayer, keeps)
    each = float(costs[-1]) / max(1, sublayer.units)
    return each if torch.allclose(costs, keeps.double() * each, rtol=_SAME, atol=_SAME * float(costs[-1])) else None


def _gradients(calibrated: Calibrated, sublayer: Sublayer) -> Tensor:
    """Mask gradients of one sublayer, [N, U]."""
    found = calibrated.statistics[sublayer.name].mask_gradients
    assert found is not None
    return found


def _by_knapsack(
    sublayers: Sequence[Sublayer], curves: Mapping[str, Curve], bounds: Sequence[Bound], sizes: Sizes
) -> Selection:
    """Spend the budget on the sizes that are allowed."""
    groups: dict[str, list[Sublayer]] = {}
    for s in sublayers:
        groups.setdefault(" ".join(s.alike) if sizes.uniform else s.name, []).append(s)
    items = {name: _item(group, curves, bounds, sizes) for name, group in groups.items()}
    keeps = allocate(items, [bound.most for bound in bounds])
    return {s.name: kept_units(curves[s.name], keeps[name]) for name, group in groups.items() for s in group}


def _item(group: list[Sublayer], curves: Mapping[str, Curve], bounds: Sequence[Bound], sizes: Sizes) -> Item:
    """Sublayers that get one size together, as the knapsack wants them. Raises BudgetError."""
    counts = sorted({s.units for s in group})
    if len(counts) > 1:
        raise BudgetError(
            f"the {group[0].spec.kind} sublayers have {counts} units: the same size everywhere needs a model that "
            "starts so"
        )
    return Item(
        curves=tuple(curves[s.name] for s in group),
        costs=functools.partial(_costs, group, bounds),
        least=max(sizes.least.get(s.name, 0) for s in group),
        multiple=max(sizes.multiple.get(s.name, s.parts.groups) for s in group),
    )


def _costs(group: list[Sublayer], bounds: Sequence[Bound], keeps: Tensor) -> Tensor:
    """[L, P]: what the sublayers of a group cost together."""
    return torch.stack([torch.stack([bound.cost.of(s, keeps) for s in group]).sum(dim=0) for bound in bounds])


def assumed_curves(sublayers: Sequence[Sublayer], bounds: Sequence[Bound]) -> dict[str, Curve]:
    """Curves, by name, of sublayers of which nothing is known yet: they all lose alike, the more the less is left.

    The least of their sum, ``sum C r^2`` with C what a sublayer costs and r the share of its units that goes, leaves
    every sublayer the same share.
    """
    found: dict[str, Curve] = {}
    for s in sublayers:
        cost = sum(total(bound.cost, [s]) / bound.most for bound in bounds)
        removed = torch.arange(s.units + 1)
        loss = cost * (removed.double() / max(1, s.units)).square()
        found[s.name] = Curve(order=torch.arange(s.units), removed=removed, loss=loss)
    return found


def uniform_units(sublayers: Sequence[Sublayer], bounds: Sequence[Bound], sizes: Sizes) -> dict[str, int]:
    """Units of every sublayer, by name, where each is left the same share, as nearly as the sizes allow.

    Raises:
        BudgetError: the limits are below what the sizes allow.
    """
    alike: dict[tuple[str, ...], set[int]] = {}
    for s in sublayers:
        alike.setdefault(tuple(s.alike), set()).add(s.units)
    sizes = replace(sizes, uniform=sizes.uniform or all(len(counts) == 1 for counts in alike.values()))
    selection = _by_knapsack(sublayers, assumed_curves(sublayers, bounds), bounds, sizes)
    return {name: chosen.numel() for name, chosen in selection.items()}


def curve_keys(sublayers: Sequence[Sublayer], options: SecondOrder) -> dict[str, tuple[object, ...]]:
    """By name, what the curve of a sublayer is kept under (`Calibrated.curves`)."""
    return {s.name: (s.name, options.damping, options.block, options.curvature) for s in sublayers}


def loss_curves(calibrated: Calibrated, options: SecondOrder) -> dict[str, Curve]:
    """The loss curves of all sublayers, by name; those that were computed before are not computed again."""
    keys = curve_keys(calibrated.sublayers, options)
    missing = [s for s in calibrated.sublayers if keys[s.name] not in calibrated.curves]
    device = device_of(calibrated.model)
    largest = max((s.columns for s in missing), default=1)
    ranks = calibrated.data.ranks
    free = _SHARE_OF_FREE_MEMORY * free_memory(device) / ranks.local_count
    at_once = int(free / max(1, _MATRICES * 8 * largest**2))

    def curves_of(some: list[Sublayer]) -> list[Curve]:
        return on_all_cores(lambda s: _loss_curve(calibrated, s, options), some, device, most=at_once)

    # dealt out in this order, so that every process gets some of the wide ones
    missing.sort(key=lambda s: -s.columns)
    found = ranks.spread(curves_of, missing)
    calibrated.curves.update({keys[s.name]: curve for s, curve in zip(missing, found, strict=True)})
    return {name: calibrated.curves[key] for name, key in keys.items()}


def _loss_curve(calibrated: Calibrated, sublayer: Sublayer, options: SecondOrder) -> Curve:
    """Eliminate the units of one sublayer."""
    own: SublayerStatistics = calibrated.statistics[sublayer.name]
    assert own.x is not None
    assert own.y_gradient is not None
    weighted = sublayer.weight(calibrated.model).detach().T
    if options.curvature:
        root = square_root(own.y_gradient.plain() / max(1, own.rows))
        weighted = weighted.to(root) @ root
    # the mean of the inputs costs nothing where a bias absorbs it
    biased = bias_of(sublayer.projection(calibrated.model)) is not None
    gram = own.x.centred() if biased else own.x.plain()
    return eliminate(
        gram.div_(max(1, own.x.count)),
        weighted,
        damping=options.damping,
        group=sublayer.unit_size,
        block=options.block if sublayer.unit_size == 1 else 1,
        groups=sublayer.parts.groups,
    )
