"""The method, in the order in which it runs: reads like the algorithm box of Kwon et al. 2022.

    what the objective reads -> one statistics pass -> selection under the budget -> physical shrinking -> recovery

`calibrate` does the first two steps, `cut` the others; several budgets can be cut from one calibration.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from faster_pruner.costs.budget import Bound, Budget
from faster_pruner.data.batches import Batch, EncodedRows, pack, rows_with
from faster_pruner.errors import DataError, OptionError, UnsupportedModelError
from faster_pruner.host.heap import give_back
from faster_pruner.host.mapped import are_in_files
from faster_pruner.host.ranks import ALONE, Ranks
from faster_pruner.host.spill import default_limit
from faster_pruner.method.calibrated import Calibrated, Pruned, Subject
from faster_pruner.method.calibration_set import CalibrationSet, row_lengths
from faster_pruner.method.compensation import compensate
from faster_pruner.method.journal import NO_JOURNAL, Journal, Round
from faster_pruner.method.memory import shelf_for
from faster_pruner.method.recovery import Teacher, recover
from faster_pruner.method.selecting import Sizes, bounds_for, select, share_left, sizes_allowed
from faster_pruner.method.statistics import Needs, Probe, take_statistics
from faster_pruner.model.network import Network
from faster_pruner.model.passes import PassSetting, called, device_of, inference, tensors_in
from faster_pruner.model.precision import choose_precision, forward_in
from faster_pruner.model.reading import Reading, Rule, find_reading
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.objective import Cotangents
from faster_pruner.objectives.parts import predictions_of, try_parts
from faster_pruner.options import Arithmetic, CalibrationOptions, Fisher, Method, Scale
from faster_pruner.progress import Silent, StageClock
from faster_pruner.results import SublayerResult


def calibrate(
    subject: Subject,
    rows: EncodedRows | Sequence[Batch],
    method: Method,
    options: CalibrationOptions,
    *,
    clock: StageClock | None = None,
    ranks: Ranks = ALONE,
    journal: Journal = NO_JOURNAL,
) -> Calibrated:
    """Take the statistics that `method` needs.

    Args:
        subject: the dense model and its objective; left as it was.
        rows: the calibration set, in the order in which it was drawn, or batches that somebody else made; with labels
            when the method uses them.
        method: decides what is gathered.
        options: seed, packing, precision and memory.
        clock: told about the stage.
        ranks: the processes that share the calibration set; all of them must call this with the same rows.
        journal: knows the statistics where an earlier run has taken them, and keeps them where it has not.

    Raises:
        UnsupportedModelError: the objective reads no sublayer, or one runs more than once in a forward.
        OptionError: the method needs labels and there are none.
    """
    clock = clock or StageClock(Silent())
    device = device_of(subject.model)
    if are_in_files():
        # finding sublayers leaves gaps
        give_back()
    with clock.stage("structure"):
        batches = _batches(subject, rows, method, options, device)
        predict = predictions_of(subject.objective)
        try_parts(subject.model, subject.objective, batches)
        reading = find_reading(subject.model, subject.sublayers, _most_varied(batches), predict)
    by_name = {s.name: s for s in subject.sublayers}
    unread = {Rule.NONE: "the objective reads nothing of it", Rule.NEVER_RUNS: "the forward never gets there"}
    sublayers = [by_name[name] for name in reading.order if reading.rules[name] not in unread]
    if not any(s.units for s in sublayers):
        raise UnsupportedModelError(f"the objective {subject.objective.name!r} reads none of the model's sublayers")
    # what nobody has set is shared by the processes of this machine
    limit = default_limit(device) // ranks.local_count if options.memory_limit is None else options.memory_limit
    precision: Arithmetic = ranks.lead(lambda: _precision(subject.model, options, batches[-1]))
    shelf = shelf_for(sublayers, batches, precision, limit=limit, processes=ranks.count)
    setting = PassSetting(precision=precision, shelf=shelf)
    data = CalibrationSet(batches, mean_lengths(sublayers, batches, reading), options.seed, setting, ranks)
    data.check_enough()
    statistics = journal.statistics(sublayers, data)
    if statistics is None:
        network = Network(subject.model, sublayers)
        calibrated = taken(subject, network, data, reading, needs=Needs.of(method), clock=clock)
        journal.taken(calibrated.statistics)
    else:
        with clock.stage("statistics", note="as kept"):
            calibrated = Calibrated(subject, sublayers, {}, data, reading, statistics)
    whole = {name: unread[rule] for name, rule in reading.rules.items() if rule in unread}
    return replace(calibrated, whole=whole)


def cut(
    calibrated: Calibrated,
    budget: Budget,
    method: Method,
    *,
    clock: StageClock | None = None,
    journal: Journal = NO_JOURNAL,
) -> Pruned:
    """Prune to a budget: select, shrink, recover; at strong budgets in several rounds (`Rounds`).

    Args:
        calibrated: with the statistics that the method needs; left as it was.
        budget: what may be left.
        method: how.
        clock: told about the stages.
        journal: knows what an earlier run has done of it, and keeps what is done here.

    Raises:
        BudgetError: the budget is below what the method can build.
        OptionError: the method needs statistics that were not taken.
        NumericalError: activations are not finite.
    """
    clock = clock or StageClock(Silent())
    dense = calibrated
    # the first process has the first batch, of which everything is taken
    dense.data.ranks.lead(lambda: _require_statistics(dense, method))
    bounds = bounds_for(dense, budget)
    sizes = sizes_allowed(dense.sublayers, budget, method)
    teacher = _teacher(dense, method, bounds)
    left = {s.name: torch.arange(s.units) for s in dense.sublayers}
    student = dense.network.copied()
    present = dense
    results: list[SublayerResult] = []
    kept = journal.cut(dense.sublayers, bounds, sizes)
    share = kept.share()
    if share is None:
        with clock.stage("selection"):
            share = share_left(dense, method, bounds, sizes)
        kept.shared(share)
    for place, exponent in enumerate(method.rounds.exponents(share)):
        own = kept.round(place)
        selection = own.selection()
        if selection is None:
            if place > 0:
                present = _retake(dense, student, method, clock)
            with clock.stage("selection"):
                step = [replace(bound, most=bound.power(exponent)) for bound in bounds]
                selection = select(present, method, step, sizes)
            own.chosen(selection)
        left = {name: left[name][selection[name]] for name in left}
        student = student.shrunk(selection)
        how = dense.subject.recovering(method, share, last=exponent == 1.0)
        results = _recovered(dense, student, left, how, teacher=teacher, clock=clock, journal=own)
    units = {s.name: s.units for s in dense.sublayers}
    masks = {name: torch.zeros(n, dtype=torch.bool).index_fill(0, left[name], True) for name, n in units.items()}
    smaller = {s.name: s for s in student.sublayers}
    sublayers = [smaller.get(s.name, s) for s in dense.subject.sublayers]
    return Pruned(student.model, sublayers, [replace(r, units_before=units[r.name]) for r in results], masks)


def _recovered(
    dense: Calibrated,
    student: Network,
    left: Mapping[str, torch.Tensor],
    method: Method,
    *,
    teacher: Teacher | None,
    clock: StageClock,
    journal: Round,
) -> list[SublayerResult]:
    """Recovery of a network in place: in lockstep, and of what runs several times in a forward in closed form."""
    once = replace(student, sublayers=[s for s in student.sublayers if s.stack.calls == 1])
    ranks, progress, earlier = dense.data.ranks, clock.progress, len(journal.earlier(once.sublayers))
    note = f"{earlier} of {len(once.sublayers)} done before" if earlier else ""
    with clock.stage("recovery", total=len(student.sublayers), note=note):
        repeated = ranks.lead(lambda: compensate(dense.network, student, dense.statistics, left, method))
        ranks.broadcast_(*_projections(student, repeated))
        found = recover(
            once, dense.data, dense.statistics, method=method, teacher=teacher, progress=progress, journal=journal
        )
    by_name = {result.name: result for result in (*repeated.values(), *found)}
    return [by_name[s.name] for s in student.sublayers]


def _projections(network: Network, names: Container[str]) -> list[torch.Tensor]:
    """The parameters of the output projections of some sublayers."""
    modules = [s.projection(network.model) for s in network.sublayers if s.name in names]
    return [parameter.detach() for module in modules for parameter in module.parameters(recurse=False)]


def taken(
    subject: Subject, network: Network, data: CalibrationSet, reading: Reading, *, needs: Needs, clock: StageClock
) -> Calibrated:
    """A network with the statistics of one pass over the calibration set."""
    likelihood = subject.objective.likelihood
    cotangents = Cotangents(likelihood, labelled=needs.labels, rows=data.rows, seed=data.seed)
    probe = Probe(subject.objective, cotangents, reading)
    with clock.stage("statistics", total=len(data.own)):
        statistics = take_statistics(network, data, probe, needs=needs, progress=clock.progress)
    return Calibrated(subject, list(network.sublayers), {}, data, reading, statistics)


def _require_statistics(calibrated: Calibrated, method: Method) -> None:
    """Raise OptionError when a method needs what was not taken; the calibration may have been for another method."""
    needs = Needs.of(method)
    taken = [calibrated.statistics[s.name] for s in calibrated.sublayers if s.units]
    aimed = any(s.aimed for s in calibrated.sublayers)
    fitted = [calibrated.statistics[s.name] for s in calibrated.sublayers if s.units and s.stack.calls == 1]
    missing = [
        what
        for what, wanted, found in (
            ("mask gradients", needs.mask_gradients, all(own.mask_gradients is not None for own in taken)),
            ("second moments", needs.moments, all(own.x is not None and own.y_gradient is not None for own in taken)),
            ("targets of the dense model", needs.targets, all(len(own.targets) for own in fitted)),
            ("dense inputs of the producers", needs.sources and aimed, any(len(own.sources) for own in taken)),
        )
        if wanted and not found
    ]
    if missing:
        raise OptionError(
            f"the method {method.name!r} needs {' and '.join(missing)}, which were not taken: the calibration was for "
            "another method; calibrate for this one, or cut with that one"
        )


def _retake(dense: Calibrated, student: Network, method: Method, clock: StageClock) -> Calibrated:
    """Statistics of the half-pruned model: what selection needs; the recovery still aims at the dense model."""
    needs = replace(Needs.of(method), targets=False, sources=False)
    data = replace(dense.data, batches=[batch for batch in dense.data.batches if batch.differentiated])
    subject = replace(dense.subject, model=student.model)
    reading = replace(dense.reading, model=student.model)
    return taken(subject, student, data, reading, needs=needs, clock=clock)


def _teacher(calibrated: Calibrated, method: Method, bounds: Sequence[Bound]) -> Teacher | None:
    """Kwon et al.'s teacher, pruned to the square root of the budget, not rearranged; None for the dense model."""
    recovery, selection = method.recovery, method.selection
    if not isinstance(recovery, Scale) or recovery.teacher == "dense":
        return None
    plain = replace(selection, rearrange=False) if isinstance(selection, Fisher) else selection
    root = [replace(bound, most=bound.power(0.5)) for bound in bounds]
    chosen = select(calibrated, replace(method, selection=plain), root, Sizes())
    masks: dict[str, torch.Tensor] = {}
    for s in calibrated.sublayers:
        if recovery.whole_targets and not s.spec.mixes_tokens:
            masks[s.name] = torch.zeros(s.units).index_fill(0, chosen[s.name], 1.0)
            chosen[s.name] = torch.arange(s.units)
    return Teacher(calibrated.network.copied().shrunk(chosen), masks)


def _precision(model: nn.Module, options: CalibrationOptions, batch: Batch) -> Arithmetic:
    """The arithmetic of the passes; float32 where a model's own code does not run, or overflows, in bfloat16.

    Raises:
        OptionError: bfloat16 is asked for, and does not work.
    """
    device = device_of(model)
    chosen = choose_precision(options.precision, device)
    if chosen == "float32":
        return chosen
    try:
        with inference(model), forward_in(chosen, device):
            tensors = tensors_in(called(model, batch.inputs))
        reason = "" if all(bool(tensor.isfinite().all()) for tensor in tensors) else "its values are not finite"
    except (DataError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason and options.precision != "auto":
        raise OptionError(f"the model does not run in {chosen}: {reason}; choose float32", option="precision")
    return "float32" if reason else chosen


def _batches(
    subject: Subject,
    rows: EncodedRows | Sequence[Batch],
    method: Method,
    options: CalibrationOptions,
    device: torch.device,
) -> list[Batch]:
    """The calibration set in batches, those that the backward runs through ahead of the others."""
    tokens = subject.moment_tokens(method)
    if isinstance(rows, EncodedRows):
        first = None if tokens is None else rows_with(rows.lengths, tokens)
        return pack(rows, tokens_per_batch=options.tokens_per_batch, device=device, differentiated=first)
    found: list[Batch] = []
    seen = 0
    for batch in rows:
        found.append(replace(batch, differentiated=tokens is None or seen < tokens))
        seen += sum(row_lengths(batch))
    return found


def _most_varied(batches: Sequence[Batch]) -> Batch:
    """The batch whose rows differ most in length."""

    def spread(batch: Batch) -> int:
        if batch.mask is None:
            return 0
        lengths = batch.mask.sum(dim=1)
        return int(lengths.max() - lengths.min())

    return max(batches, key=spread)


def mean_lengths(sublayers: Sequence[Sublayer], batches: Sequence[Batch], reading: Reading) -> Mapping[str, float]:
    """Mean real tokens per row, by stack."""
    rows = sum(batch.rows.numel() for batch in batches)
    found: dict[str, float] = {}
    for stack in {s.stack.name: s.stack for s in sublayers}.values():
        if stack.name in reading.tokens:
            found[stack.name] = float(reading.tokens[stack.name])
        else:
            found[stack.name] = sum(sum(row_lengths(batch, stack.mask)) for batch in batches) / rows
    return found
