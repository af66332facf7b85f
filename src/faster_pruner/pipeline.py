"""The method, in the order in which it runs: reads like the algorithm box of Kwon et al. 2022.

    one statistics pass -> selection under the budget -> physical slicing -> recovery

`calibrate_model` does the first step, `cut` the others; several budgets can be cut from one calibration.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from faster_pruner import checkpoint, surgery
from faster_pruner.batches import Batch, EncodedRows, pack, rows_with
from faster_pruner.calibrate import Needs, Statistics, calibrate
from faster_pruner.capture import PassSetting
from faster_pruner.costs import encoder_macs, unit_macs
from faster_pruner.errors import BudgetError
from faster_pruner.families import FamilySpec, Sublayer, resolve
from faster_pruner.losses import labelled, problem_of, true_fisher
from faster_pruner.machine import on_all_cores
from faster_pruner.options import Budget, CalibrationOptions, Method
from faster_pruner.precision import choose_precision
from faster_pruner.progress import Silent, StageClock
from faster_pruner.recover import recover
from faster_pruner.results import SublayerResult
from faster_pruner.selection.budget import Item, allocate, allocate_uniform
from faster_pruner.selection.fisher import diagonal, grouped
from faster_pruner.selection.obs import additive, damped, eliminate, square_root
from faster_pruner.selection.rearrange import rearrange
from faster_pruner.selection.search import Candidates, Selection, search_masks
from faster_pruner.storage import Shelf, default_limit

# Sizes that a sublayer of a kind may have under bucketed allocation, besides none.
_BUCKETS = {"attention": 4, "ffn": 8}


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration rows, packed.

    Attributes:
        batches: length-sorted batches.
        length: mean real tokens per row, which MACs are counted for.
        seed: of everything random that is computed on them.
        setting: precision and storage of every pass over them.
    """

    batches: list[Batch]
    length: float
    seed: int
    setting: PassSetting = field(default_factory=PassSetting)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(batch.rows.numel() for batch in self.batches)


@dataclass(frozen=True)
class Calibrated:
    """A dense model with the statistics of its calibration set: everything that a cut needs.

    Attributes:
        model: the dense model; never changed.
        family: its row of the family table.
        sublayers: its sublayers that have units, in the order in which it runs them.
        data: the calibration set.
        statistics: of the one pass.
        items: loss curves that have been computed from them, by sublayer and what they depend on; further budgets find
            them here.
    """

    model: PreTrainedModel
    family: FamilySpec
    sublayers: list[Sublayer]
    data: CalibrationSet
    statistics: Statistics
    items: dict[tuple[str, float, int], Item] = field(default_factory=dict[tuple[str, float, int], Item])


@dataclass(frozen=True)
class Pruned:
    """A pruned, recovered model and what happened to each of its sublayers.

    Attributes:
        model: a stock class with smaller Linears.
        sublayers: results, in the order in which the model runs them.
        masks: by sublayer, [U] bool: which units of the dense model are kept.
    """

    model: PreTrainedModel
    sublayers: list[SublayerResult]
    masks: dict[str, Tensor]


def needs_of(method: Method) -> Needs:
    """Statistics that a method will use."""
    return Needs(
        mask_gradients=method.selection == "fisher",
        moments=method.selection == "second-order",
        targets=method.recovery != "none" and method.teacher == "dense",
        producer_inputs=method.aligns,
    )


def calibrate_model(
    model: PreTrainedModel,
    family: FamilySpec,
    rows: EncodedRows,
    method: Method,
    calibration: CalibrationOptions,
    *,
    clock: StageClock | None = None,
) -> Calibrated:
    """Take the statistics that `method` needs.

    Args:
        model: the dense model, in float32; left as it was.
        family: its row of the family table.
        rows: the calibration set, in the order in which it was drawn; with labels when the method uses them.
        method: decides what is gathered.
        calibration: seed and packing.
        clock: told about the stage.
    """
    clock = clock or StageClock(Silent())
    device = next(model.parameters()).device
    batches = pack(
        rows,
        tokens_per_batch=calibration.tokens_per_batch,
        device=device,
        differentiated=_differentiated(model, family, rows, method),
    )
    limit = default_limit(device) if calibration.memory_limit is None else calibration.memory_limit
    setting = PassSetting(precision=choose_precision(calibration.precision, device), shelf=Shelf(limit))
    data = CalibrationSet(batches, rows.mean_length, calibration.seed, setting)
    return _take_statistics(model, family, data, method, needs=needs_of(method), clock=clock)


def _differentiated(model: PreTrainedModel, family: FamilySpec, rows: EncodedRows, method: Method) -> int | None:
    """How many rows the moments are taken from (`Method.moment_tokens`); None for all."""
    if method.selection == "fisher" or method.moment_tokens is None:
        return None
    widest = max(s.columns for s in resolve(model, family))
    return rows_with(rows, method.moment_tokens * widest)


def _take_statistics(
    model: PreTrainedModel, family: FamilySpec, data: CalibrationSet, method: Method, *, needs: Needs, clock: StageClock
) -> Calibrated:
    """The one pass over the calibration set."""
    sublayers = [s for s in resolve(model, family) if s.units > 0]
    problem = problem_of(model.config)
    cotangent = labelled(problem) if method.labels else true_fisher(problem, rows=data.rows, seed=data.seed)
    with clock.stage("statistics", total=len(data.batches)):
        statistics = calibrate(
            model, sublayers, data.batches, cotangent, needs=needs, setting=data.setting, progress=clock.progress
        )
    return Calibrated(model, family, sublayers, data, statistics)


def cut(calibrated: Calibrated, budget: Budget, method: Method, *, clock: StageClock | None = None) -> Pruned:
    """Prune to a budget: select, slice, recover; at strong budgets in several rounds (`Method.schedule`).

    Raises:
        BudgetError: the budget is below what the method can build.
    """
    clock = clock or StageClock(Silent())
    dense = calibrated
    total = encoder_macs(dense.sublayers, dense.data.length)
    units = {s.name: s.units for s in dense.sublayers}
    left = {name: torch.arange(count) for name, count in units.items()}
    sizes = sizes_allowed(dense.sublayers, budget, method)
    teacher = _teacher(dense, method, budget.macs)
    model = copy.deepcopy(dense.model)
    present = dense
    results: list[SublayerResult] = []
    for place, share in enumerate(method.schedule(budget.macs)):
        if place > 0:
            present = _retake(dense, model, method, clock)
        with clock.stage("selection"):
            selection = select(present, method, share * total, sizes)
        left = {name: left[name][selection[name]] if name in selection else left[name] for name in left}
        kept = [s for s in surgery.prune_units(model, dense.family, selection) if s.name in units]
        with clock.stage("recovery", total=len(kept)):
            results = recover(
                model,
                kept,
                dense.data.batches,
                dense.statistics,
                method=method,
                teacher=teacher,
                setting=dense.data.setting,
                progress=clock.progress,
            )
    checkpoint.mark_as_pruned(model, dense.family)
    masks = {
        name: torch.zeros(count, dtype=torch.bool).index_fill(0, left[name], True) for name, count in units.items()
    }
    return Pruned(model, [replace(result, units_before=units[result.name]) for result in results], masks)


def _retake(dense: Calibrated, model: PreTrainedModel, method: Method, clock: StageClock) -> Calibrated:
    """Statistics of the half-pruned model: what selection needs; the recovery still aims at the dense model."""
    needs = replace(needs_of(method), targets=False, producer_inputs=False)
    data = replace(dense.data, batches=[batch for batch in dense.data.batches if batch.differentiated])
    return _take_statistics(model, dense.family, data, method, needs=needs, clock=clock)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which unit counts a selection may leave.

    Attributes:
        multiple: by sublayer; 1 for any count.
        whole: sublayers that must keep all their units.
        uniform: whether all sublayers of a kind must have the same count.
    """

    multiple: dict[str, int] = field(default_factory=dict[str, int])
    whole: frozenset[str] = frozenset()
    uniform: bool = False

    @property
    def free(self) -> bool:
        """Whether any count will do."""
        return not self.whole and not self.uniform and all(multiple == 1 for multiple in self.multiple.values())


def sizes_allowed(sublayers: Sequence[Sublayer], budget: Budget, method: Method) -> Sizes:
    """What `Budget.allocation` and `Budget.round_to` mean for the sublayers of a dense model."""
    round_to = method.round_to if budget.round_to is None else budget.round_to
    if isinstance(round_to, str):
        raise BudgetError("measure the multiple first (latency.fastest_multiple) and put the number into round_to")
    multiple = {s.name: min(round_to, s.units) if s.kind == "ffn" else 1 for s in sublayers}
    if budget.allocation == "bucketed":
        for s in sublayers:
            bucket = max(1, s.units // _BUCKETS[s.kind])
            # a bucket that is a multiple of what was asked to be rounded to
            multiple[s.name] = math.ceil(bucket / multiple[s.name]) * multiple[s.name]
    whole = {s.name for s in sublayers if not s.spec.stock} if budget.allocation == "stock" else set[str]()
    uniform = budget.allocation in ("uniform", "stock")
    return Sizes(multiple=multiple, whole=frozenset(whole), uniform=uniform)


def select(calibrated: Calibrated, method: Method, budget: float, sizes: Sizes | None = None) -> Selection:
    """The units to keep in each sublayer so that at most `budget` MACs per row remain. Raises BudgetError."""
    sizes = sizes or Sizes()
    sublayers, length = calibrated.sublayers, calibrated.data.length
    if method.selection == "second-order":
        return _allocate(loss_items(calibrated, method), sublayers, budget, sizes)
    groups = {s.name: grouped(_gradients(calibrated.statistics, s), method.fisher_batch) for s in sublayers}
    importance = {s.name: diagonal(groups[s.name]) for s in sublayers}
    cost = {s.name: unit_macs(s, length) for s in sublayers}
    if sizes.free:
        candidates = {
            s.name: Candidates(kind=s.kind, importance=importance[s.name], unit_cost=cost[s.name]) for s in sublayers
        }
        selection = search_masks(candidates, budget)
    else:
        items = {s.name: Item(curve=additive(importance[s.name]), unit_cost=cost[s.name]) for s in sublayers}
        selection = _allocate(items, sublayers, budget, sizes)
    if method.rearrange:
        selection = {name: rearrange(keep, groups[name]) for name, keep in selection.items()}
    return selection


def _allocate(items: dict[str, Item], sublayers: Sequence[Sublayer], budget: float, sizes: Sizes) -> Selection:
    """Spend the budget on the sizes that are allowed."""
    offered = {
        s.name: replace(
            items[s.name],
            multiple=sizes.multiple.get(s.name, 1),
            least=s.units if s.name in sizes.whole else 0,
        )
        for s in sublayers
    }
    if sizes.uniform:
        return allocate_uniform(offered, {s.name: s.kind for s in sublayers}, budget)
    return allocate(offered, budget)


def _gradients(statistics: Statistics, sublayer: Sublayer) -> Tensor:
    """Mask gradients of one sublayer, [N, U]."""
    found = statistics[sublayer.name].mask_gradients
    assert found is not None
    return found


def loss_items(calibrated: Calibrated, method: Method) -> dict[str, Item]:
    """The loss curves of all sublayers, by name."""
    keys = {s.name: (s.name, method.damping, method.elimination_block) for s in calibrated.sublayers}
    missing = [s for s in calibrated.sublayers if keys[s.name] not in calibrated.items]
    device = next(calibrated.model.parameters()).device
    found = on_all_cores(lambda s: _loss_item(calibrated, s, method), missing, device)
    calibrated.items.update({keys[s.name]: item for s, item in zip(missing, found, strict=True)})
    return {name: calibrated.items[key] for name, key in keys.items()}


def _loss_item(calibrated: Calibrated, sublayer: Sublayer, method: Method) -> Item:
    """Eliminate the units of one sublayer."""
    own = calibrated.statistics[sublayer.name]
    assert own.inputs is not None
    assert own.output_gradients is not None
    weight = sublayer.output_of(calibrated.model).weight.detach().double()
    weighted = weight.T @ square_root(own.output_gradients.gram / own.rows)
    curve = eliminate(
        damped(own.inputs.centred().div_(max(1, own.inputs.count)), method.damping),
        weighted,
        group=sublayer.unit_size,
        block=method.elimination_block if sublayer.unit_size == 1 else 1,
    )
    return Item(curve=curve, unit_cost=unit_macs(sublayer, calibrated.data.length))


def _teacher(calibrated: Calibrated, method: Method, share: float) -> nn.Module | None:
    """Kwon et al.'s teacher, pruned to the square root of the budget, not rearranged; None for the dense model."""
    if method.recovery == "none" or method.teacher == "dense":
        return None
    budget = math.sqrt(share) * encoder_macs(calibrated.sublayers, calibrated.data.length)
    selection = select(calibrated, replace(method, rearrange=False), budget)
    teacher = copy.deepcopy(calibrated.model)
    surgery.prune_units(teacher, calibrated.family, selection)
    return teacher
