"""Ideas beyond the default preset, each alone: name -> (method, None), or (method, function that cuts in its own way).

What paid is in the package; what did not is here only, with its table in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.costs.budget import Bound, Budget, bounds_of
from faster_pruner.method import algorithm, statistics
from faster_pruner.method.algorithm import cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.recovery import recover
from faster_pruner.method.selecting import Sizes, loss_curves, select
from faster_pruner.method.statistics import Needs, Statistics, SublayerStatistics, tokens_of
from faster_pruner.model.lockstep import lockstep
from faster_pruner.model.network import Network
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.options import PRESETS, Method, Rounds, SecondOrder, SolverOptions, Switches, Weights, customise
from faster_pruner.progress import Silent, StageClock
from faster_pruner.selection.elimination import Curve

Idea = Callable[[Calibrated, Budget, Method], nn.Module]


def with_moments(method: Method, **changes: Any) -> Method:
    """Other hyper-parameters of the selection."""
    assert isinstance(method.selection, SecondOrder)
    return replace(method, selection=replace(method.selection, **changes))


def with_recovery(method: Method, **changes: Any) -> Method:
    """Other hyper-parameters of the recovery."""
    assert isinstance(method.recovery, Weights)
    return replace(method, recovery=replace(method.recovery, **changes))


# All rows are differentiated: ideas look into the statistics of every batch.
DEFAULT = with_moments(customise(PRESETS["default"], Switches(descent=False)), moment_tokens=None)
ALIGNED = replace(DEFAULT, rounds=Rounds())
PLAIN = with_recovery(ALIGNED, align=None)


def least_kept(count: int) -> Idea:
    """Never starve a sublayer: keep at least `count` heads, and 16 x count neurons."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
        least = {s.name: count if s.spec.mixes_tokens else 16 * count for s in calibrated.sublayers}
        return _recovered(
            calibrated, select(calibrated, method, _bounds(calibrated, budget), Sizes(least=least)), method
        )

    return idea


def curve_power(power: float) -> Idea:
    """Allocate by a power of the curves: below 1 spreads the removals more evenly."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
        curves = {key: replace(curve, loss=curve.loss**power) for key, curve in _curves(calibrated, method).items()}
        return _recovered(calibrated, _selected(calibrated, curves, budget, method), method)

    return idea


def blended_teacher(share_of_dense: float) -> Idea:
    """Aim at a blend of the dense model and one pruned (and recovered) to the square root of the budget."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
        pruned = cut(calibrated, Budget(macs=(budget.macs or 1.0) ** 0.5), method)
        blend = _blend(calibrated, Network(pruned.model, pruned.sublayers), share_of_dense)
        selection = select(calibrated, method, _bounds(calibrated, budget))
        return _recovered(replace(calibrated, statistics=blend), selection, method)

    return idea


def measured_allocation(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
    """Scale each curve by the error that its sublayer really made in a first cut, relative to the mean; cut again."""
    errors = {s.name: s.residual_after or 0.0 for s in cut(calibrated, budget, method).results}
    mean = sum(errors.values()) / len(errors)
    curves = {
        key: replace(curve, loss=curve.loss * (errors[key[0]] / mean))
        for key, curve in _curves(calibrated, method).items()
    }
    return _recovered(calibrated, _selected(calibrated, curves, budget, method), method)


def held_out_ridge(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
    """Fit on three quarters of the batches with four ridges, keep the ridge whose logits are closest on the rest."""
    selection = select(calibrated, method, _bounds(calibrated, budget))
    batches, values = calibrated.data.batches, calibrated.subject.objective.values
    held = [i for i in range(len(batches)) if i % 4 == 1] or [0]
    fit = [i for i in range(len(batches)) if i not in held] or held
    part = _subset(calibrated, fit)
    best: tuple[float, float] = (float("inf"), 0.0)
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1):
        chosen = with_recovery(method, solver=SolverOptions(name="cholesky", ridge=ridge))
        model = _recovered(part, selection, chosen)
        with torch.no_grad():
            pairs = [(model(**batches[i].inputs), calibrated.model(**batches[i].inputs), batches[i]) for i in held]
            gap = sum(float((values(a, batch) - values(b, batch)).square().sum()) for a, b, batch in pairs)
        best = min(best, (gap, ridge))
    chosen = with_recovery(method, solver=SolverOptions(name="cholesky", ridge=best[1]))
    return _recovered(calibrated, selection, chosen)


def token_weights(power: float) -> Idea:
    """Weight tokens by the size of their gradient, ||dL/dy||^(2 power), in the input second moment of the selection."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
        weighted = replace(calibrated, curves={}, statistics=_weighted_statistics(calibrated, power))
        return _recovered(calibrated, select(weighted, method, _bounds(calibrated, budget)), method)

    return idea


def label_draws(count: int) -> Idea:
    """Average G over `count` draws of the labels; every further draw costs one more pass."""

    def idea(calibrated: Calibrated, budget: Budget, method: Method) -> nn.Module:
        drawn = dict(calibrated.statistics.sublayers)
        for draw in range(1, count):
            again = _statistics(calibrated, seed=calibrated.data.seed + 1000 * draw)
            for name, own in drawn.items():
                assert own.y_gradient is not None
                other = again[name].y_gradient
                assert other is not None
                drawn[name] = replace(own, y_gradient=own.y_gradient.plus(other))
        averaged = replace(calibrated, curves={}, statistics=replace(calibrated.statistics, sublayers=drawn))
        return _recovered(calibrated, select(averaged, method, _bounds(calibrated, budget)), method)

    return idea


def _statistics(calibrated: Calibrated, *, seed: int) -> Statistics:
    """The statistics pass again, moments only."""
    data = replace(calibrated.data, seed=seed)
    clock = StageClock(Silent())
    reading, network = calibrated.reading, calibrated.network
    needs = Needs(moments=True)
    return algorithm.taken(calibrated.subject, network, data, reading, needs=needs, clock=clock).statistics


def _bounds(calibrated: Calibrated, budget: Budget) -> list[Bound]:
    """A budget as bounds."""
    lengths = calibrated.data.lengths
    return bounds_of(budget, calibrated.model, calibrated.sublayers, lengths, bytes_each=4)


def _curves(calibrated: Calibrated, method: Method) -> dict[Any, Curve]:
    """The cached curves, computed where they are not yet."""
    assert isinstance(method.selection, SecondOrder)
    loss_curves(calibrated, method.selection)
    return dict(calibrated.curves)


def _selected(calibrated: Calibrated, curves: dict[Any, Curve], budget: Budget, method: Method) -> dict[str, Tensor]:
    """A selection from other curves."""
    return select(replace(calibrated, curves=curves), method, _bounds(calibrated, budget))


def _recovered(calibrated: Calibrated, selection: dict[str, Tensor], method: Method) -> nn.Module:
    """Slice and recover."""
    network = calibrated.network.copied().shrunk(selection)
    recover(network, calibrated.data, calibrated.statistics, method=method)
    return network.model


def _subset(calibrated: Calibrated, chosen: list[int]) -> Calibrated:
    """Only some of the batches."""
    data = replace(calibrated.data, batches=[calibrated.data.batches[i] for i in chosen])
    sublayers = {
        name: replace(
            own,
            read=[own.read[i] for i in chosen],
            targets=[own.targets[i] for i in chosen],
            sources=[own.sources[i] for i in chosen] if own.sources else [],
        )
        for name, own in calibrated.statistics.sublayers.items()
    }
    return replace(calibrated, data=data, statistics=replace(calibrated.statistics, sublayers=sublayers))


def _blend(calibrated: Calibrated, teacher: Network, share: float) -> Statistics:
    """Targets that are share * dense + (1 - share) * teacher; the producers' inputs stay dense."""
    blended: dict[str, SublayerStatistics] = {}
    with lockstep(teacher.model, teacher.sublayers, calibrated.data.batches) as run:
        for s in teacher.sublayers:
            own = calibrated.statistics[s.name]
            weight, bias = s.weight(teacher.model), bias_of(s.projection(teacher.model))
            targets: list[Tensor] = []
            for arrival in run.arrivals(s):
                read = own.read[arrival.batch]
                assert arrival.base is not None
                y = torch.nn.functional.linear(tokens_of(arrival.x, read), weight, bias)
                y = y + tokens_of(arrival.base, read)
                targets.append(share * own.targets[arrival.batch] + (1 - share) * y)
            blended[s.name] = replace(own, targets=targets)
        run.finish()
    return replace(calibrated.statistics, sublayers=blended)


def _weighted_statistics(calibrated: Calibrated, power: float) -> Statistics:
    """The statistics pass again, with weighted tokens in the input second moment."""

    class Weighted(statistics._Collector):
        def observe(self, sublayer: Sublayer, seen: Any) -> None:
            size = seen.y_gradient.square().sum(dim=-1, keepdim=True) ** power
            mean = size[size > 0].mean()
            super().observe(sublayer, replace(seen, x=seen.x * (size / mean).sqrt()))

    original = statistics._Collector
    statistics._Collector = Weighted
    try:
        return _statistics(calibrated, seed=calibrated.data.seed)
    finally:
        statistics._Collector = original


IDEAS: dict[str, tuple[Method, Idea | None]] = {
    "default": (PRESETS["default"], None),
    "default, moments of all rows": (DEFAULT, None),
    "default, moments of 16 tokens per neuron": (with_moments(DEFAULT, moment_tokens=16), None),
    "default, moments of 4 tokens per neuron": (with_moments(DEFAULT, moment_tokens=4), None),
    "default, moments of 2 tokens per neuron": (with_moments(DEFAULT, moment_tokens=2), None),
    "alignment, one round": (ALIGNED, None),
    "alignment, two rounds at every budget": (replace(DEFAULT, rounds=Rounds(count=2, below=1.0)), None),
    "alignment, three rounds at every budget": (replace(DEFAULT, rounds=Rounds(count=3, below=1.0)), None),
    "+ alignment ridge 1e-3": (with_recovery(ALIGNED, align=1e-3), None),
    "+ alignment ridge 1e-1": (with_recovery(ALIGNED, align=1e-1), None),
    "+ ridge 1e-3": (with_recovery(ALIGNED, solver=SolverOptions(name="cholesky", ridge=1e-3)), None),
    "+ ridge 1e-1": (with_recovery(ALIGNED, solver=SolverOptions(name="cholesky", ridge=1e-1)), None),
    "+ ridge by held-out rows": (ALIGNED, held_out_ridge),
    "+ elimination block 1": (with_moments(ALIGNED, block=1), None),
    "+ elimination block 64": (with_moments(ALIGNED, block=64), None),
    "+ damping 1e-3": (with_moments(ALIGNED, damping=1e-3), None),
    "+ damping 1e-1": (with_moments(ALIGNED, damping=1e-1), None),
    "+ at least 1 head, 16 neurons": (ALIGNED, least_kept(1)),
    "+ at least 2 heads, 32 neurons": (ALIGNED, least_kept(2)),
    "+ square root of the curves": (ALIGNED, curve_power(0.5)),
    "+ allocation from measured error": (ALIGNED, measured_allocation),
    "+ sqrt-budget teacher": (ALIGNED, blended_teacher(0.0)),
    "+ half dense, half sqrt-budget teacher": (ALIGNED, blended_teacher(0.5)),
    "+ tokens weighted by gradient": (ALIGNED, token_weights(1.0)),
    "+ two label draws": (ALIGNED, label_draws(2)),
    "+ four label draws": (ALIGNED, label_draws(4)),
    "no alignment, one round": (PLAIN, None),
    "no alignment, two rounds at every budget": (replace(PLAIN, rounds=Rounds(count=2, below=1.0)), None),
}
