"""A rehearsal: the method on a few rows, to know what it will take on all of them.

Every stage but the elimination takes a time that is linear in the tokens: what two small calibration sets take gives
its two numbers. An elimination takes the same time whatever the tokens: a few sublayers of each kind are eliminated,
and the others get curves that leave everything the same share. So the rehearsal takes a few thousand tokens and an
elimination of each kind, however large the run will be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows, pack, packing, padded_tokens, rows_of, rows_with
from faster_pruner.host.devices import MOST_WORKERS
from faster_pruner.host.spill import Shelf, default_limit
from faster_pruner.method.algorithm import calibrate, cut, mean_lengths, taken
from faster_pruner.method.calibrated import Calibrated, Pruned, Subject
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.memory import Tokens, bytes_in, memory_terms, peak_memory, reset_peak, within_limit
from faster_pruner.method.selecting import assumed_curves, bounds_for, curve_keys, loss_curves
from faster_pruner.method.statistics import Needs
from faster_pruner.model.passes import device_of
from faster_pruner.model.spec import Sublayer
from faster_pruner.options import CalibrationOptions, Method, SecondOrder, Weights
from faster_pruner.progress import Silent, StageClock

# Tokens of the calibration sets: moments are multiplied in pieces of the second size (`linalg.gram`).
# Those of the first one are to make libraries ready.
FIRST, SMALL, LARGE = 256, 1024, 3 * 1024
# Rows that the structure is found on.
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What a run of the method will take.

    Attributes:
        calibrated: on the large one of the two sets.
        pruned: about as much as it will be.
        tokens: of the whole calibration set.
        seconds: by stage.
        peak: bytes of memory, at its most.
        spilled: bytes of hidden states that go to files, about.
    """

    calibrated: Calibrated
    pruned: Pruned
    tokens: Tokens
    seconds: dict[str, float]
    peak: int
    spilled: int


@dataclass(frozen=True)
class _Once:
    """One small run."""

    calibrated: Calibrated
    pruned: Pruned
    tokens: Tokens
    seconds: Mapping[str, float]


def rehearse(
    subject: Subject, rows: EncodedRows, count: int, *, method: Method, budget: Budget, options: CalibrationOptions
) -> Rehearsed:
    """Run the method on a few rows.

    Args:
        subject: the dense model and its objective; left as it was.
        rows: the first ones of the calibration set.
        count: rows that this will have.
        method: that will run.
        budget: that it will cut to.
        options: of the calibration.

    Raises:
        InputError: as the run itself would.
    """
    device = device_of(subject.model)
    clock = _clock(device)
    # how lengths are spread is known from the first rows
    lengths = [rows.lengths[i % len(rows)] for i in range(count)]
    wanted = subject.moment_tokens(method)
    whole = rows_of(rows, range(min(count, len(rows))))
    differentiated = count if wanted is None else rows_with(lengths, wanted)
    ahead = Tokens(
        real=sum(lengths),
        differentiated=sum(lengths[:differentiated]),
        padded=padded_tokens(lengths, tokens_per_batch=options.tokens_per_batch, differentiated=differentiated),
    )
    batches = packing(lengths, tokens_per_batch=options.tokens_per_batch, differentiated=differentiated)
    typical = [_typical(part, lengths) for part in batches]
    few, small, large = (_sample(whole, typical, ahead, tokens) for tokens in (FIRST, SMALL, LARGE))
    if ahead.real <= LARGE:
        large = _Sample(rows_of(whole, [i % len(whole) for i in range(count)]), differentiated)
    base = calibrate(subject, rows_of(whole, range(min(_ROWS, len(whole)))), method, options, clock=clock)
    packed = pack(whole, tokens_per_batch=options.tokens_per_batch, device=device)
    base = replace(base, data=replace(base.data, lengths=mean_lengths(base.sublayers, packed, base.reading)))
    structure = clock.seconds["structure"]
    rehearsal = _Rehearsal(base=base, method=method, budget=budget, options=options)
    reset_peak(device)
    rehearsal.pass_over(_full_batch(whole, count, options.tokens_per_batch))
    rehearsal.once(few)
    first = rehearsal.once(small)
    second = rehearsal.once(large)
    peak = peak_memory(device)
    reset_peak(device)
    eliminated = 0.0
    if isinstance(method.selection, SecondOrder):
        eliminated = _elimination(second.calibrated, method.selection)
    seconds = {"structure": structure} | _scaled(first, second, ahead)
    seconds["selection"] = seconds.get("selection", 0.0) + eliminated
    limit = default_limit(device) if options.memory_limit is None else options.memory_limit
    more, later, spilled = _more_memory(second, ahead, limit, descent=rehearsal.descends)
    return Rehearsed(
        calibrated=second.calibrated,
        pruned=second.pruned,
        tokens=ahead,
        seconds=seconds,
        peak=max(peak + more + later, peak_memory(device) + more),
        spilled=spilled,
    )


def _clock(device: torch.device) -> StageClock:
    """A clock that nobody hears."""
    return StageClock(Silent(), synchronise=torch.cuda.synchronize if device.type == "cuda" else None)


@dataclass(frozen=True)
class _Sample:
    """Rows, of which the first ones are differentiated."""

    rows: EncodedRows
    differentiated: int


def _typical(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> Sequence[int]:
    """The rows of the batch that has the middle one of all tokens; none where there is no batch."""
    half, seen = sum(lengths[i] for batch in batches for i in batch) / 2, 0
    for batch in batches:
        seen += sum(lengths[i] for i in batch)
        if seen >= half:
            return batch
    return ()


def _sample(rows: EncodedRows, typical: Sequence[Sequence[int]], ahead: Tokens, tokens: int) -> _Sample:
    """Rows with so many tokens, of one length as those of a batch are: the same share of them differentiated."""
    chosen: list[int] = []
    counts: list[int] = []
    lengths, share = rows.lengths, ahead.differentiated / max(1, ahead.real)
    for batch, wanted in zip(typical, (share * tokens, (1 - share) * tokens), strict=True):
        own, got = [i % len(rows) for i in batch], 0
        before = len(chosen)
        while own and (got < wanted or (not before and not got)):
            chosen.append(own[(len(chosen) - before) % len(own)])
            got += max(1, lengths[chosen[-1]])
        counts.append(len(chosen) - before)
    return _Sample(rows_of(rows, chosen), counts[0])


def _full_batch(rows: EncodedRows, count: int, tokens: int) -> _Sample:
    """Rows that make the largest batch that there will be: what a pass holds at once is in proportion to it."""
    lengths = rows.lengths
    longest = max(range(len(rows)), key=lengths.__getitem__)
    times = max(1, min(count, tokens // max(1, lengths[longest])))
    return _Sample(rows_of(rows, [longest] * times), times)


@dataclass(frozen=True, kw_only=True)
class _Rehearsal:
    """What is rehearsed: a calibrated model, whose calibration counts no more, and what is to be done with it.

    Attributes:
        base: that structure, lengths and precision are taken of.
        method: that is run.
        budget: that it cuts to.
        options: of the calibration.
    """

    base: Calibrated
    method: Method
    budget: Budget
    options: CalibrationOptions

    @property
    def descends(self) -> bool:
        """Whether the recovery ends with a descent."""
        share = min(bound.share for bound in bounds_for(self.base, self.budget))
        last = self.base.subject.recovering(self.method, share, last=True).recovery
        return isinstance(last, Weights) and last.descent is not None

    def pass_over(self, sample: _Sample, clock: StageClock | None = None) -> Calibrated:
        """Statistics on some rows."""
        base, device, most = self.base, device_of(self.base.model), self.options.tokens_per_batch
        packed = pack(sample.rows, tokens_per_batch=most, device=device, differentiated=sample.differentiated)
        setting = replace(base.data.setting, shelf=Shelf(base.data.setting.shelf.limit))
        data = CalibrationSet(packed, base.data.lengths, self.options.seed, setting)
        needs = Needs.of(self.method)
        own = taken(base.subject, base.network, data, base.reading, needs=needs, clock=clock or _clock(device))
        return replace(own, whole=base.whole)

    def once(self, sample: _Sample) -> _Once:
        """Statistics and a cut on some rows."""
        method, clock = self.method, _clock(device_of(self.base.model))
        own = self.pass_over(sample, clock)
        if isinstance(method.selection, SecondOrder):
            keys = curve_keys(own.sublayers, method.selection)
            assumed = assumed_curves(own.sublayers, bounds_for(own, self.budget))
            own.curves.update({keys[name]: curve for name, curve in assumed.items()})
        pruned = cut(own, self.budget, method, clock=clock)
        return _Once(own, pruned, Tokens.of(own.data.batches), clock.seconds)


def _scaled(first: _Once, second: _Once, ahead: Tokens) -> dict[str, float]:
    """Seconds by stage on all tokens, from those on two small sets."""
    found: dict[str, float] = {}
    for stage, seconds in second.seconds.items():
        # matrices are multiplied with padding, moments without
        small, large, whole = (t.real + t.padded for t in (first.tokens, second.tokens, ahead))
        if large <= small or whole <= large:
            found[stage] = seconds * min(1.0, whole / large)
            continue
        each = max(0.0, (seconds - first.seconds[stage]) / (large - small))
        found[stage] = seconds + each * (whole - large)
    return found


def _elimination(calibrated: Calibrated, options: SecondOrder) -> float:
    """Seconds of all eliminations, from those of a few sublayers of each kind."""
    device, total = device_of(calibrated.model), 0.0
    at_once = min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1
    kinds: dict[tuple[tuple[str, str], int], list[Sublayer]] = {}
    for s in calibrated.sublayers:
        kinds.setdefault((s.alike, s.columns), []).append(s)
    for group in kinds.values():
        # as many as are eliminated side by side
        few = group[:at_once]
        clock = _clock(device)
        with clock.stage("elimination"):
            loss_curves(replace(calibrated, sublayers=few, curves={}), options)
        total += clock.seconds["elimination"] * len(group) / len(few)
    return total


def _more_memory(seen: _Once, ahead: Tokens, limit: int, *, descent: bool) -> tuple[int, int, int]:
    """Bytes of hidden states, and of what recovery holds, that all tokens need beyond those seen; bytes for files."""
    calibrated = seen.calibrated
    item = bytes_in(calibrated.data.setting.precision)
    now, whole = (
        memory_terms(
            calibrated.model, calibrated.sublayers, each, item=item, threads=torch.get_num_threads(), descent=descent
        )
        for each in (seen.tokens, ahead)
    )
    bounded = within_limit(whole, limit)
    hidden, suspended = (max(0, bounded[key] - now[key]) for key in ("hidden states", "suspended"))
    spilled = sum(whole[key] - bounded[key] for key in ("hidden states", "suspended"))
    return hidden, suspended + whole.get("descent", 0) - now.get("descent", 0), spilled
