"""Recovery: layer by layer, from the first sublayer to the last, the pruned model is fitted to the dense one.

The pruned model's forward is suspended at each output projection in turn (`model.lockstep`). There the inputs X that
the pruned model really produces, what its branch is added to (its base) and the target give a least-squares problem for
this one projection; its solution is written into the model, and the forward goes on. Every module of the pruned model
runs once per batch.

Before that, if the method asks for it, the producers of the sublayer are re-aimed at the inputs that they had in the
dense model (`linalg.alignment`).

* `Scale`: one scale per unit, folded into the projection's columns (Kwon et al. 2022, section 4.3).
* `Weights`: ``min_W',b' || X W'' + b' - R ||^2 + ridge ||W' - W||^2`` with R = target - base, the bias free of ridge;
  at strong budgets the producers are then fitted, too, and the projection once more (`method.descent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from faster_pruner.data.batches import Batch
from faster_pruner.host.ranks import Ranks
from faster_pruner.host.spill import HiddenStates
from faster_pruner.linalg import (
    RegressionMoments,
    Solution,
    fit_alignment,
    mask_normal_equations,
    solve,
    solve_or_fall_back,
)
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.descent import Fitting, descend, projected
from faster_pruner.method.journal import NO_ROUND, Round
from faster_pruner.method.statistics import Statistics, SublayerStatistics, source_tokens, tokens_of
from faster_pruner.model.lockstep import Lockstep, lockstep
from faster_pruner.model.network import Network
from faster_pruner.model.reading import real_tokens
from faster_pruner.model.spec import Sublayer, bias_of, matrix_of, set_matrix
from faster_pruner.options import Method, Scale, Weights
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import SublayerResult

Found = TypeVar("Found")

# Relative errors computed from float32 moments are not known better than this (the square root of their rounding).
_ERROR_FLOOR = 1e-3


class Targets(Protocol):
    """Where the recovery aims: per sublayer, one [T, d] per batch, for the tokens chosen by `tokens`."""

    def of(self, sublayer: Sublayer, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Targets of one sublayer, batch by batch; to be asked for in the order in which the model runs."""
        ...

    def skip(self, sublayer: Sublayer) -> None:
        """Go past one sublayer."""
        ...


@dataclass(frozen=True)
class StoredTargets:
    """Targets kept from the statistics pass."""

    statistics: Statistics

    def of(self, sublayer: Sublayer, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """The stored targets; they were stored for exactly the tokens that the objective reads."""
        del tokens
        return iter(self.statistics[sublayer.name].targets)

    def skip(self, sublayer: Sublayer) -> None:
        """Nothing to do: every sublayer has its own list."""


@dataclass(frozen=True)
class TeacherTargets:
    """Targets computed by a teacher that runs in lockstep with the pruned model."""

    teacher: nn.Module
    run: Lockstep

    def of(self, sublayer: Sublayer, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """The teacher's branch plus what it is added to."""
        for arrival in self.run.arrivals(sublayer):
            chosen = tokens[arrival.batch]
            y = projected(self.teacher, sublayer, tokens_of(arrival.x, chosen).float())
            yield y if arrival.base is None else y + tokens_of(arrival.base, chosen)

    def skip(self, sublayer: Sublayer) -> None:
        """Let the teacher run past it too."""
        self.run.skip(sublayer)


@dataclass(frozen=True)
class Teacher:
    """A model to aim at instead of the dense one.

    Attributes:
        network: at its own sizes.
        masks: by name of sublayer [U], 0 for units that have a part in the target but not in the teacher's own forward
            (`Scale.whole_targets`).
    """

    network: Network
    masks: Mapping[str, Tensor]


def recover(
    network: Network,
    data: CalibrationSet,
    statistics: Statistics,
    *,
    method: Method,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
    journal: Round = NO_ROUND,
) -> list[SublayerResult]:
    """Fit the output projections of a pruned network, in place.

    Args:
        network: the pruned model and its sublayers, also those without a unit left.
        data: the calibration set, in the packing that `statistics` was taken with. Processes that share it add up
            their moments; the first one solves, and all go on with its weights.
        statistics: of the dense model: tokens read, and the targets when there is no teacher.
        method: recovery, solver and the reference's special cases.
        teacher: whose branches to aim at; None for the stored targets of the dense model.
        progress: told after each sublayer.
        journal: knows what an earlier run has done of it, and keeps what is done here.
    """
    model, sublayers, batches, setting = network.model, network.sublayers, data.own, data.setting
    if method.recovery is None or not sublayers:
        return [untouched(sublayer, "skipped", "no recovery asked for") for sublayer in sublayers]
    listener = progress or Silent()
    results: list[SublayerResult] = []
    align = method.align
    branches = isinstance(method.recovery, Weights) and method.recovery.descent is not None
    skips_first = isinstance(method.recovery, Scale) and method.recovery.skip_first
    earlier = journal.earlier(sublayers)
    over = len(earlier) == len(sublayers) or any(done.result.status == "stopped" for done in earlier)
    with ExitStack() as stack:
        stops = lockstep(model, sublayers, batches, producers=align is not None, branches=branches, setting=setting)
        run = stack.enter_context(stops)
        targets: Targets = StoredTargets(statistics)
        if teacher is not None:
            own = teacher.network
            second = lockstep(own.model, own.sublayers, batches, masks=teacher.masks, setting=setting)
            targets = TeacherTargets(own.model, stack.enter_context(second))
        for place, sublayer in enumerate(sublayers):
            entries = align is not None and bool(sublayer.aimed)
            if place < len(earlier):
                if over:
                    earlier[place].put(model)
                else:
                    earlier[place].go_past(run, model, sublayer, targets.skip, entries=entries)
                results.append(earlier[place].result)
                listener.step()
                continue
            if any(result.status == "stopped" for result in results):
                results.append(untouched(sublayer, "not reached", ""))
                continue
            drift = _Drift(None, None)
            if entries and place == 0:
                # nothing before it has changed: its producers read what they always did
                run.skip_entry(sublayer)
            elif align is not None and sublayer.aimed:
                drift = _align(run, model, sublayer, statistics[sublayer.name], data, ridge=align)
                journal.aimed(model, sublayer)
            if skips_first and place == 0:
                result = untouched(sublayer, "skipped", "the reference does not tune it")
                run.skip(sublayer)
                targets.skip(sublayer)
            else:
                tokens = _tokens(statistics, sublayer, batches, method.recovery, last=place == len(sublayers) - 1)
                fitting = Fitting(run, model, sublayer, tokens, HiddenStates(setting.shelf), data)
                result = drift.beside(_fitted(fitting, targets, method.recovery))
            results.append(result)
            journal.fitted(model, sublayer, result, renewed=run.renewing)
            listener.step()
    return results


@dataclass(frozen=True)
class _Drift:
    """Relative error of a sublayer's producer inputs against the dense model's, before and after the alignment.

    Attributes:
        before: None without alignment.
        after: the same.
        note: why the producers were left alone; empty when they were re-aimed, or nobody asked for it.
    """

    before: float | None
    after: float | None
    note: str = ""

    def beside(self, result: SublayerResult) -> SublayerResult:
        """A result that tells of it, too."""
        notes = "; ".join(filter(None, (self.note, result.note)))
        return replace(result, drift_before=self.before, drift_after=self.after, note=notes)


def _fitted(fitting: Fitting, targets: Targets, recovery: Scale | Weights) -> SublayerResult:
    """Fit the projection of a sublayer, or all of its matrices."""
    model, sublayer, ranks = fitting.model, fitting.sublayer, fitting.data.ranks
    if isinstance(recovery, Weights) and recovery.descent is not None and sublayer.aimed:
        return _descended(fitting, targets, recovery, seed=fitting.data.seed)
    moments = _gather(fitting.run, targets, sublayer, fitting.tokens, ranks=ranks)
    return _led(ranks, [sublayer.projection(model)], lambda: _fit(model, sublayer, moments, recovery))


def _tokens(
    statistics: Statistics, sublayer: Sublayer, batches: Sequence[Batch], recovery: Scale | Weights, *, last: bool
) -> list[Tensor]:
    """Per batch [B, S] bool: the tokens that a sublayer is fitted on."""
    read = statistics[sublayer.name].read
    every = isinstance(recovery, Scale) and recovery.teacher != "dense" and not recovery.read_tokens_only
    if not every or last:
        return read
    return [real_tokens(sublayer, batch, own[:, :, None]) for batch, own in zip(batches, read, strict=True)]


def _led(ranks: Ranks, modules: Iterable[nn.Module], work: Callable[[], Found]) -> Found:
    """What the first process finds, and writes into some modules: the others get both."""
    found = ranks.lead(work)
    with torch.no_grad():
        ranks.broadcast_(*(parameter for module in modules for parameter in module.parameters(recurse=False)))
    return found


def _align(
    run: Lockstep,
    model: nn.Module,
    sublayer: Sublayer,
    own: SublayerStatistics,
    data: CalibrationSet,
    *,
    ridge: float,
) -> _Drift:
    """Re-aim the producers of one sublayer at their dense inputs."""
    width, batches = sublayer.aimed[0].inputs, data.own
    moments = RegressionMoments(width, width, batches[0].rows.device)
    for index, x in data.ranks.after_first(run.entries(sublayer), lambda: moments.share_centre(data.ranks)):
        if index >= len(own.sources):
            continue  # only the first batches have them
        chosen = source_tokens(sublayer, own.read[index], real_tokens(sublayer, batches[index], x))
        moments.add(tokens_of(x, chosen), own.sources[index])
    moments.add_up(data.ranks)
    modules = [model.get_submodule(producer.path) for producer in sublayer.aimed]
    return _led(data.ranks, modules, lambda: _aim(model, sublayer, moments, ridge=ridge))


def _aim(model: nn.Module, sublayer: Sublayer, moments: RegressionMoments, *, ridge: float) -> _Drift:
    """Fit the map from what the producers of one sublayer are given to what they were given, and fold it into them."""
    biased = all(producer.bias for producer in sublayer.aimed)
    fitted = fit_alignment(moments, ridge=ridge, offset=biased)
    before = moments.error(torch.eye(len(fitted.matrix), device=moments.x.centre.device), None)
    after = moments.error(fitted.matrix.T, fitted.offset)
    if not fitted.solution.converged:
        advice = f"alignment: {fitted.solution.status}: {fitted.solution.advice}; producers left as they were"
        return _Drift(before, before, advice)
    if not after <= before + _ERROR_FLOOR:
        return _Drift(before, before, "alignment fits worse than none; producers left as they were")
    if not after <= before:
        return _Drift(before, before)
    for producer in sublayer.aimed:
        module = model.get_submodule(producer.path)
        weight = matrix_of(module, transposed=producer.transposed, width=producer.inputs)
        weight, bias = fitted.fold(weight.detach(), bias_of(module))
        set_matrix(module, weight, bias if biased else None, transposed=producer.transposed)
    return _Drift(before, after)


def _gather(
    run: Lockstep,
    targets: Targets,
    sublayer: Sublayer,
    tokens: Sequence[Tensor],
    *,
    ranks: Ranks,
    keep: Callable[[Tensor, Tensor], None] | None = None,
) -> RegressionMoments:
    """Moments of the pruned model's inputs X [T, n] and of R = target - base [T, d]; `keep` is given both, X whole."""
    moments = RegressionMoments(sublayer.columns, sublayer.width, tokens[0].device)
    pairs = zip(run.arrivals(sublayer), targets.of(sublayer, tokens), strict=True)
    for arrival, target in ranks.after_first(pairs, lambda: moments.share_centre(ranks)):
        chosen = tokens[arrival.batch]
        r = target.float() if arrival.base is None else target - tokens_of(arrival.base, chosen)
        moments.add(tokens_of(arrival.x, chosen), r)
        if keep is not None:
            keep(arrival.x, r)
    moments.add_up(ranks)
    return moments


def _descended(fitting: Fitting, targets: Targets, recovery: Weights, *, seed: int) -> SublayerResult:
    """Least squares, all matrices of the sublayer by descent from there, and least squares for what has become of X."""
    assert recovery.descent is not None
    run, model, sublayer, ranks = fitting.run, fitting.model, fitting.sublayer, fitting.data.ranks
    projection = sublayer.projection(model)
    moments = _gather(run, targets, sublayer, fitting.tokens, ranks=ranks, keep=fitting.keep)
    result = _led(ranks, [projection], lambda: _reconstruct(model, sublayer, moments, recovery))
    reason = descend(fitting, recovery.descent, seed=seed)
    if reason:
        found = replace(result, note="; ".join(filter(None, (result.note, reason))))
    else:
        again = fitting.moments()
        found = _led(ranks, [projection], lambda: _reconstruct(model, sublayer, again, recovery))
        found = replace(found, residual_before=result.residual_before)
        run.renew(sublayer)
    fitting.r.clear()
    return found


def untouched(sublayer: Sublayer, status: str, note: str) -> SublayerResult:
    """Result of a sublayer that recovery left alone."""
    units = sublayer.units
    return SublayerResult(
        name=sublayer.name, units_before=units, units=units, unit=sublayer.spec.unit, status=status, note=note
    )


def solved(sublayer: Sublayer, solution: Solution, *, before: float, after: float, note: str) -> SublayerResult:
    """Result of a sublayer with the residuals before and after a solve."""
    return SublayerResult(
        name=sublayer.name,
        units_before=sublayer.units,
        units=sublayer.units,
        unit=sublayer.spec.unit,
        residual_before=before,
        residual_after=after,
        solver=solution.solver,
        status=str(solution.status),
        iterations=solution.iterations,
        solve_residual=solution.residual,
        note=note,
    )


def _fit(model: nn.Module, sublayer: Sublayer, moments: RegressionMoments, recovery: Scale | Weights) -> SublayerResult:
    """Solve for one sublayer and write the solution into the model."""
    if isinstance(recovery, Weights):
        return _reconstruct(model, sublayer, moments, recovery)
    if sublayer.units == 0:
        return untouched(sublayer, "skipped", "no unit left to scale")
    return _tune(model, sublayer, moments, recovery)


def _tune(model: nn.Module, sublayer: Sublayer, moments: RegressionMoments, recovery: Scale) -> SublayerResult:
    """Mask tuning of one sublayer, folded into its weights."""
    projection, weight = sublayer.projection(model), sublayer.weight(model).detach()
    bias = bias_of(projection)
    before = moments.error(weight, bias)
    cross = moments.plain_cross()
    if bias is not None:
        cross = cross.addr_(moments.x.total, bias.detach().to(cross), alpha=-1)
    matrix, right_side = mask_normal_equations(moments.x.plain(), cross, weight, sublayer.unit_size)
    solution = solve(recovery.solver, matrix, right_side, torch.ones_like(right_side))
    result = solved(sublayer, solution, before=before, after=before, note=solution.advice)
    extreme = float(solution.value.abs().max())
    if not solution.converged:
        return replace(result, status="stopped", note=f"{solution.status}: {solution.advice}; recovery stops here")
    if recovery.limit is not None and extreme > recovery.limit:
        note = f"a scale of {extreme:.1f} is beyond +-{recovery.limit:g}; recovery stops here"
        return replace(result, status="stopped", note=note)
    scaled = weight * solution.value.to(weight).repeat_interleave(sublayer.unit_size)
    set_matrix(projection, scaled, transposed=sublayer.parts.transposed)
    return replace(result, residual_after=moments.error(scaled, bias))


def _reconstruct(model: nn.Module, sublayer: Sublayer, moments: RegressionMoments, recovery: Weights) -> SublayerResult:
    """New weights and bias for one output projection."""
    projection, own = sublayer.projection(model), sublayer.weight(model).detach()
    own_bias = bias_of(projection)
    before = moments.error(own, own_bias)
    matrix, right_side = moments.normal_equations(intercept=own_bias is not None)
    solution, note = solve_or_fall_back(recovery.solver, matrix, right_side, own.T.to(matrix))
    # they are as large as all that is left to do
    del matrix, right_side
    weight = solution.value.T
    bias = None if own_bias is None else moments.intercept(weight)
    after = moments.error(weight, bias)
    if not solution.converged or not after <= before + _ERROR_FLOOR:
        note = f"{note or 'the solution fits worse than the sliced weights'}; weights left as they were"
        after = before
    else:
        set_matrix(projection, weight, bias, transposed=sublayer.parts.transposed)
    return solved(sublayer, solution, before=before, after=after, note=note)
