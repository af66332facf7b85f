"""Ideas beyond the default preset, each alone: name -> (method, None), or (method, function that cuts in its own way).

What paid is in the package; what did not is here only, with its table in docs/decisions.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from faster_pruner import calibrate as calibrate_module
from faster_pruner import pipeline, surgery
from faster_pruner.calibrate import Statistics, SublayerStatistics
from faster_pruner.capture import lockstep
from faster_pruner.costs import encoder_macs
from faster_pruner.families import Sublayer, resolve
from faster_pruner.options import PRESETS, Budget, Method, SolverOptions
from faster_pruner.pipeline import Calibrated, cut, select
from faster_pruner.recover import recover
from faster_pruner.selection.budget import Item, allocate
from faster_pruner.selection.obs import Curve

Idea = Callable[[Calibrated, Budget, Method], PreTrainedModel]
# All rows are differentiated: ideas look into the statistics of every batch.
DEFAULT = replace(PRESETS["default"], moment_tokens=None)
PLAIN = replace(DEFAULT, align=False, rounds=1)


def least_kept(count: int) -> Idea:
    """Never starve a sublayer: keep at least `count` heads, and 16 x count neurons."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
        items_of = pipeline.loss_items(calibrated, method)
        items = {
            s.name: replace(items_of[s.name], least=count if s.kind == "attention" else 16 * count)
            for s in calibrated.sublayers
        }
        return _recovered(calibrated, allocate(items, _macs(calibrated, budget)), method)

    return idea


def curve_power(power: float) -> Idea:
    """Allocate by a power of the curves: below 1 spreads the removals more evenly."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
        items: dict[str, Item] = {}
        for name, item in pipeline.loss_items(calibrated, method).items():
            curve = Curve(order=item.curve.order, removed=item.curve.removed, loss=item.curve.loss**power)
            items[name] = replace(item, curve=curve)
        return _recovered(calibrated, allocate(items, _macs(calibrated, budget)), method)

    return idea


def blended_teacher(share_of_dense: float) -> Idea:
    """Aim at a blend of the dense model and one pruned (and recovered) to the square root of the budget."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
        teacher = cut(calibrated, Budget(macs=budget.macs**0.5), method).model
        blend = _blend(calibrated, teacher, share_of_dense)
        return _recovered(
            replace(calibrated, items={}, statistics=blend),
            select(calibrated, method, _macs(calibrated, budget)),
            method,
        )

    return idea


def measured_allocation(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
    """Scale each curve by the error that its sublayer really made in a first cut, relative to the mean; cut again."""
    first = cut(calibrated, budget, method).sublayers
    errors = {s.name: s.residual_after or 0.0 for s in first}
    mean = sum(errors.values()) / len(errors)
    items: dict[str, Item] = {}
    for name, item in pipeline.loss_items(calibrated, method).items():
        loss = item.curve.loss * (errors[name] / mean)
        items[name] = replace(item, curve=Curve(order=item.curve.order, removed=item.curve.removed, loss=loss))
    return _recovered(calibrated, allocate(items, _macs(calibrated, budget)), method)


def held_out_ridge(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
    """Fit on three quarters of the batches with four ridges, keep the ridge whose logits are closest on the rest."""
    selection = select(calibrated, method, _macs(calibrated, budget))
    batches = calibrated.data.batches
    held = [i for i in range(len(batches)) if i % 4 == 1] or [0]
    fit = [i for i in range(len(batches)) if i not in held] or held
    part = _subset(calibrated, fit)
    best: tuple[float, float] = (float("inf"), 0.0)
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1):
        chosen = replace(method, solver=SolverOptions(name="cholesky", ridge=ridge))
        model = _recovered(part, selection, chosen)
        with torch.no_grad():
            gaps = [model(**batches[i].inputs).logits - calibrated.statistics.logits[batches[i].rows] for i in held]
        best = min(best, (float(sum(gap.square().sum() for gap in gaps)), ridge))
    return _recovered(calibrated, selection, replace(method, solver=SolverOptions(name="cholesky", ridge=best[1])))


def token_weights(power: float) -> Idea:
    """Weight tokens by the size of their gradient, ||dL/dy||^(2 power), in the input second moment of the selection."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
        weighted = _weighted_statistics(calibrated, method, power)
        selection = select(replace(calibrated, items={}, statistics=weighted), method, _macs(calibrated, budget))
        return _recovered(calibrated, selection, method)

    return idea


def label_draws(count: int) -> Idea:
    """Average G over `count` draws of the labels; every further draw costs one more pass."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> PreTrainedModel:
        drawn = dict(calibrated.statistics.sublayers)
        for draw in range(1, count):
            again = _statistics(calibrated, method, seed=calibrated.data.seed + 1000 * draw)
            for name, own in drawn.items():
                assert own.output_gradients is not None
                other = again[name].output_gradients
                assert other is not None
                drawn[name] = replace(own, output_gradients=own.output_gradients.plus(other))
        statistics = replace(calibrated.statistics, sublayers=drawn)
        selection = select(replace(calibrated, items={}, statistics=statistics), method, _macs(calibrated, budget))
        return _recovered(calibrated, selection, method)

    return idea


def _statistics(calibrated: Calibrated, method: Method, *, seed: int) -> Statistics:
    """The statistics pass again, moments only."""
    return pipeline._take_statistics(
        calibrated.model,
        calibrated.family,
        replace(calibrated.data, seed=seed),
        method,
        needs=calibrate_module.Needs(moments=True),
        clock=pipeline.StageClock(pipeline.Silent()),
    ).statistics


def _macs(calibrated: Calibrated, budget: Budget) -> float:
    """A budget in MACs per row."""
    return budget.macs * encoder_macs(calibrated.sublayers, calibrated.data.length)


def _recovered(calibrated: Calibrated, selection: dict[str, Tensor], method: Method) -> PreTrainedModel:
    """Slice and recover."""
    model = copy.deepcopy(calibrated.model)
    kept = surgery.prune_units(model, calibrated.family, selection)
    recover(model, kept, calibrated.data.batches, calibrated.statistics, method=method)
    return model


def _subset(calibrated: Calibrated, chosen: list[int]) -> Calibrated:
    """Only some of the batches."""
    data = replace(calibrated.data, batches=[calibrated.data.batches[i] for i in chosen])
    sublayers = {
        name: replace(
            own,
            read=[own.read[i] for i in chosen],
            targets=[own.targets[i] for i in chosen],
            producer_inputs=[own.producer_inputs[i] for i in chosen] if own.producer_inputs else [],
        )
        for name, own in calibrated.statistics.sublayers.items()
    }
    return replace(calibrated, data=data, statistics=replace(calibrated.statistics, sublayers=sublayers))


def _blend(calibrated: Calibrated, teacher: PreTrainedModel, share: float) -> Statistics:
    """Targets that are share * dense + (1 - share) * teacher; producer inputs stay dense."""
    sublayers = resolve(teacher, calibrated.family)
    blended: dict[str, SublayerStatistics] = {}
    with lockstep(teacher, sublayers, calibrated.data.batches) as run:
        for s in sublayers:
            own = calibrated.statistics[s.name]
            output = s.output_of(teacher)
            targets = []
            for arrival in run.arrivals(s):
                y = torch.nn.functional.linear(arrival.x, output.weight, output.bias) + arrival.residual
                dense = own.targets[arrival.batch]
                targets.append(share * dense + (1 - share) * y[own.read[arrival.batch]])
            blended[s.name] = replace(own, targets=targets)
        run.finish()
    return replace(calibrated.statistics, sublayers=blended)


def _weighted_statistics(calibrated: Calibrated, method: Method, power: float) -> Statistics:
    """The statistics pass again, with weighted tokens in the input second moment."""

    class Weighted(calibrate_module._Collector):
        def observe(self, sublayer: Sublayer, seen: Any) -> None:
            size = seen.y_gradient.square().sum(dim=-1, keepdim=True) ** power
            mean = size[size > 0].mean()
            super().observe(sublayer, replace(seen, x=seen.x * (size / mean).sqrt()))

    original = calibrate_module._Collector
    calibrate_module._Collector = Weighted
    try:
        return _statistics(calibrated, method, seed=calibrated.data.seed)
    finally:
        calibrate_module._Collector = original


IDEAS: dict[str, tuple[Method, Idea | None]] = {
    "default": (PRESETS["default"], None),
    "default, moments of all rows": (DEFAULT, None),
    "default, moments of 16 tokens per neuron": (replace(DEFAULT, moment_tokens=16), None),
    "default, moments of 4 tokens per neuron": (replace(DEFAULT, moment_tokens=4), None),
    "default, moments of 2 tokens per neuron": (replace(DEFAULT, moment_tokens=2), None),
    "alignment, one round": (replace(PLAIN, align=True), None),
    "alignment, two rounds at every budget": (replace(DEFAULT, rounds_below=1.0), None),
    "alignment, three rounds at every budget": (replace(DEFAULT, rounds=3, rounds_below=1.0), None),
    "+ alignment ridge 1e-3": (replace(PLAIN, align=True, align_ridge=1e-3), None),
    "+ alignment ridge 1e-1": (replace(PLAIN, align=True, align_ridge=1e-1), None),
    "+ ridge 1e-3": (replace(PLAIN, align=True, solver=SolverOptions(name="cholesky", ridge=1e-3)), None),
    "+ ridge 1e-1": (replace(PLAIN, align=True, solver=SolverOptions(name="cholesky", ridge=1e-1)), None),
    "+ ridge by held-out rows": (replace(PLAIN, align=True), held_out_ridge),
    "+ elimination block 1": (replace(PLAIN, align=True, elimination_block=1), None),
    "+ elimination block 64": (replace(PLAIN, align=True, elimination_block=64), None),
    "+ damping 1e-3": (replace(PLAIN, align=True, damping=1e-3), None),
    "+ damping 1e-1": (replace(PLAIN, align=True, damping=1e-1), None),
    "+ at least 1 head, 16 neurons": (replace(PLAIN, align=True), least_kept(1)),
    "+ at least 2 heads, 32 neurons": (replace(PLAIN, align=True), least_kept(2)),
    "+ square root of the curves": (replace(PLAIN, align=True), curve_power(0.5)),
    "+ allocation from measured error": (replace(PLAIN, align=True), measured_allocation),
    "+ sqrt-budget teacher": (replace(PLAIN, align=True), blended_teacher(0.0)),
    "+ half dense, half sqrt-budget teacher": (replace(PLAIN, align=True), blended_teacher(0.5)),
    "+ tokens weighted by gradient": (replace(PLAIN, align=True), token_weights(1.0)),
    "+ two label draws": (replace(PLAIN, align=True), label_draws(2)),
    "+ four label draws": (replace(PLAIN, align=True), label_draws(4)),
    "no alignment, one round": (PLAIN, None),
    "no alignment, two rounds at every budget": (replace(PLAIN, rounds=2, rounds_below=1.0), None),
}
