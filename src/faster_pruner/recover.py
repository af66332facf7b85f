"""Recovery: layer by layer, from the first sublayer to the last, the pruned model is fitted to the dense one.

The pruned model's forward is suspended at each output projection in turn (`capture.lockstep`). There the inputs X that
the pruned model really produces, its own residual stream and the target give a least-squares problem for this one
projection; its solution is written into the model, and the forward goes on. Every module of the pruned model runs once
per batch.

Before that, if the method asks for it, the producers of the sublayer are re-aimed at the inputs that they had in the
dense model (`linalg.alignment`).

* `scale`: one scale per unit, folded into the projection's columns (Kwon et al. 2022, section 4.3).
* `weights`: ``min_W',b' || X W'' + b' - R ||^2 + ridge ||W' - W||^2`` with R = target - residual,
  the bias free of ridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from faster_pruner import surgery
from faster_pruner.batches import Batch
from faster_pruner.calibrate import Statistics, SublayerStatistics, producer_tokens, tokens_of
from faster_pruner.capture import Lockstep, PassSetting, lockstep
from faster_pruner.families import Sublayer
from faster_pruner.linalg import (
    RegressionMoments,
    fit_alignment,
    mask_normal_equations,
    solve,
    solve_or_fall_back,
)
from faster_pruner.options import Method
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import SublayerResult

# Relative errors computed from float32 Grams are not known better than this (the square root of their rounding).
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
        """The stored targets; they were stored for exactly the tokens that the loss reads."""
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
        """The teacher's branch output plus its residual stream."""
        output = sublayer.output_of(self.teacher)
        for arrival in self.run.arrivals(sublayer):
            chosen = tokens[arrival.batch]
            y = functional.linear(tokens_of(arrival.x, chosen).float(), output.weight, output.bias)
            yield y + tokens_of(arrival.residual, chosen)

    def skip(self, sublayer: Sublayer) -> None:
        """Let the teacher run past it too."""
        self.run.skip(sublayer)


def recover(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    batches: Sequence[Batch],
    statistics: Statistics,
    *,
    method: Method,
    teacher: nn.Module | None = None,
    setting: PassSetting | None = None,
    progress: Progress | None = None,
) -> list[SublayerResult]:
    """Fit the output projections of the pruned `model`, in place.

    Args:
        model: the sliced model.
        sublayers: its sublayers at their present sizes, in the order in which it runs them (also those without a
            unit left).
        batches: the calibration set, in the packing that `statistics` was taken with.
        statistics: of the dense model: read tokens, and the targets when there is no teacher.
        method: recovery, solver and the reference's special cases.
        teacher: whose outputs to aim at; None for the stored targets of the dense model.
        setting: precision and storage; float32 and in memory by default.
        progress: told after each sublayer.
    """
    if method.recovery == "none":
        return [_untouched(sublayer, "skipped", "no recovery asked for") for sublayer in sublayers]
    listener = progress or Silent()
    results: list[SublayerResult] = []
    with ExitStack() as stack:
        run = stack.enter_context(lockstep(model, sublayers, batches, producers=method.aligns, setting=setting))
        targets: Targets = StoredTargets(statistics)
        if teacher is not None:
            second = stack.enter_context(lockstep(teacher, sublayers, batches, setting=setting))
            targets = TeacherTargets(teacher, second)
        for place, sublayer in enumerate(sublayers):
            if any(result.status == "stopped" for result in results):
                results.append(_untouched(sublayer, "not reached", ""))
                continue
            drift: dict[str, float] = {}
            if method.aligns and sublayer.units and place == 0:
                # nothing before it has changed: its producers read what they always did
                run.skip_entry(sublayer)
            elif method.aligns and sublayer.units:
                own = statistics[sublayer.name]
                drift = _align(run, model, sublayer, own, batches, ridge=method.align_ridge)
            if method.skip_first_attention and sublayer.layer == 0 and sublayer.kind == "attention":
                results.append(_untouched(sublayer, "skipped", "the reference does not tune it"))
                run.skip(sublayer)
                targets.skip(sublayer)
            else:
                tokens = _tokens(statistics, sublayer, batches, method, last=place == len(sublayers) - 1)
                moments = _gather(run, targets, sublayer, tokens)
                fit = _tune if method.recovery == "scale" else _reconstruct
                results.append(replace(fit(sublayer.output_of(model), sublayer, moments, method), **drift))
            listener.step()
    return results


def _tokens(
    statistics: Statistics, sublayer: Sublayer, batches: Sequence[Batch], method: Method, *, last: bool
) -> list[Tensor]:
    """Per batch [B, S] bool: the tokens that a sublayer is fitted on."""
    if method.only_read_tokens or method.teacher == "dense" or last:
        return statistics[sublayer.name].read
    return [batch.mask for batch in batches]


def _align(
    run: Lockstep,
    model: nn.Module,
    sublayer: Sublayer,
    own: SublayerStatistics,
    batches: Sequence[Batch],
    *,
    ridge: float,
) -> dict[str, float]:
    """Re-aim the producers of one sublayer at their dense inputs; returns the drift before and after."""
    moments: RegressionMoments | None = None
    for index, x in run.entries(sublayer):
        if index >= len(own.producer_inputs):
            continue  # only the first batches have them
        if moments is None:
            moments = RegressionMoments(sublayer.width, sublayer.width, x.device)
        chosen = producer_tokens(sublayer, own.read[index], batches[index].mask)
        moments.add(tokens_of(x, chosen), own.producer_inputs[index])
    assert moments is not None
    producers = [model.get_submodule(path) for path in sublayer.producer_paths]
    linears = [producer for producer in producers if isinstance(producer, nn.Linear)]
    biased = all(surgery.bias_of(linear) is not None for linear in linears)
    fitted = fit_alignment(moments, ridge=ridge, offset=biased)
    identity = torch.eye(sublayer.width, device=moments.cross.device)
    before = moments.error(identity, None)
    after = moments.error(fitted.matrix.T, fitted.offset)
    if not fitted.solution.converged or not after <= before:
        return {"drift_before": before, "drift_after": before}
    for linear in linears:
        surgery.set_linear(linear, *fitted.fold(linear.weight, surgery.bias_of(linear)))
    return {"drift_before": before, "drift_after": after}


def _gather(run: Lockstep, targets: Targets, sublayer: Sublayer, tokens: Sequence[Tensor]) -> RegressionMoments:
    """Moments of the pruned model's inputs X [T, n] and of R = target - residual [T, d]."""
    moments: RegressionMoments | None = None
    for arrival, target in zip(run.arrivals(sublayer), targets.of(sublayer, tokens), strict=True):
        if moments is None:
            moments = RegressionMoments(sublayer.columns, sublayer.width, arrival.x.device)
        chosen = tokens[arrival.batch]
        moments.add(tokens_of(arrival.x, chosen), target - tokens_of(arrival.residual, chosen))
    assert moments is not None
    return moments


def _untouched(sublayer: Sublayer, status: str, note: str) -> SublayerResult:
    """Result of a sublayer that recovery left alone."""
    return SublayerResult(
        name=sublayer.name, units_before=sublayer.units, units=sublayer.units, status=status, note=note
    )


def _tune(output: nn.Linear, sublayer: Sublayer, moments: RegressionMoments, method: Method) -> SublayerResult:
    """Mask tuning of one sublayer, folded into its weights."""
    result = _untouched(sublayer, "skipped", "no unit left to scale")
    if sublayer.units == 0:
        return result
    bias = surgery.bias_of(output)
    before = moments.error(output.weight, bias)
    cross = moments.cross.double()
    if bias is not None:
        cross = cross - torch.outer(moments.inputs.total, bias.double())
    matrix, right_side = mask_normal_equations(moments.inputs.gram, cross, output.weight, sublayer.unit_size)
    solution = solve(method.solver, matrix, right_side, torch.ones_like(right_side))
    result = replace(
        result,
        residual_before=before,
        residual_after=before,
        solver=solution.solver,
        status=str(solution.status),
        iterations=solution.iterations,
        note=solution.advice,
    )
    extreme = float(solution.value.abs().max())
    if not solution.converged:
        return replace(result, status="stopped", note=f"{solution.status}: {solution.advice}; recovery stops here")
    if method.scale_limit is not None and extreme > method.scale_limit:
        note = f"a scale of {extreme:.1f} is beyond +-{method.scale_limit:g}; recovery stops here"
        return replace(result, status="stopped", note=note)
    surgery.scale_units(output, solution.value, sublayer.unit_size)
    return replace(result, residual_after=moments.error(output.weight, output.bias))


def _reconstruct(output: nn.Linear, sublayer: Sublayer, moments: RegressionMoments, method: Method) -> SublayerResult:
    """New weights and bias for one output projection."""
    own_bias = surgery.bias_of(output)
    before = moments.error(output.weight, own_bias)
    prior = output.weight.T.double()
    matrix, right_side = moments.normal_equations(intercept=own_bias is not None)
    solution, note = solve_or_fall_back(method.solver, matrix, right_side, prior)
    weight = solution.value.T
    bias = None if own_bias is None else moments.intercept(weight)
    after = moments.error(weight, bias)
    if not solution.converged or not after <= before + _ERROR_FLOOR:
        note = f"{note or 'the solution fits worse than the sliced weights'}; weights left as they were"
        after = before
    else:
        surgery.set_linear(output, weight, bias)
    return SublayerResult(
        name=sublayer.name,
        units_before=sublayer.units,
        units=sublayer.units,
        residual_before=before,
        residual_after=after,
        solver=solution.solver,
        status=str(solution.status),
        iterations=solution.iterations,
        note=note,
    )
