"""What a person should know before trusting a pruned model, as sentences of the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import compress

import torch
from torch import Tensor

from faster_pruner.api.inspect import by_reason
from faster_pruner.api.job import Job
from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.journal import Journal
from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.objectives.retrieval import Ranking
from faster_pruner.results import Evaluation, LimitResult, PruneReport, SublayerResult

_TEST = "test"
# A share of evaluation rows that the calibration has seen, beyond what chance puts into most data sets.
_SAME_ROWS = 0.01
_UNKNOWN_TOKENS = 0.5
# A loss of the judging metric, relative to the dense model's, and a budget, that are worth a word.
_LARGE_LOSS = 0.05
_OVERSHOT, _MISSED = 1.001, 0.8
_MOST_NAMED = 4
# Values that tell an image or a sound from all others.
_VALUES = 4096


def of_the_method(calibrated: Calibrated, results: Sequence[SublayerResult]) -> list[str]:
    """What did not go as planned."""
    notes = [f"{s.name}: {s.note}" for s in results if s.note and s.status not in ("skipped", "not reached")]
    whole = [f"{name} stays as it is: {why}" for name, why in calibrated.whole.items()]
    return [*notes, *whole, *_left(calibrated), *_smallest_sensible(calibrated, results)]


def _left(calibrated: Calibrated) -> Iterator[str]:
    """Parts of the layers that are no sublayer: what they are, and why they stay whole."""
    for reason, paths in by_reason(calibrated.subject.left).items():
        more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
        yield f"left whole: {', '.join(paths[:_MOST_NAMED])}{more}: {reason}"


def _smallest_sensible(calibrated: Calibrated, results: Sequence[SublayerResult]) -> Iterator[str]:
    """Where nothing is left: the budget that leaves something everywhere."""
    if any(result.units for result in results):
        return
    cost = Macs(calibrated.data.lengths)
    least = sum(float(cost.of(s, torch.tensor([min(1, s.units)]))[0]) for s in calibrated.sublayers)
    share = least / total(cost, calibrated.sublayers)
    yield f"one unit in every sublayer takes {share:.2g} of the MACs: no smaller budget makes sense"


def of_the_rows(job: Job) -> list[str]:
    """What the rows cannot show."""
    return [*_test_rows(job), *_same_rows(job), *_unknown_tokens(job), *_cut_off(job), *_other_tokens(job)]


def of_the_result(report: PruneReport) -> list[str]:
    """Large losses, budgets that are not met or not used, and what was emptied."""
    return [*_losses(report), *_budgets(report.limits), *_emptied(report.sublayers)]


def of_the_journal(journal: Journal) -> list[str]:
    """What was taken over from an interrupted run, and what of it could not be."""
    over = "; ".join(journal.taken_over)
    told = f"gone on where an earlier run was interrupted (taken over: {over}): times are those of this run alone"
    return [*([told] if over else []), *journal.problems]


def _test_rows(job: Job) -> Iterator[str]:
    for split, rows in job.splits.items():
        if rows.split == _TEST and split != _TEST:
            yield f"there is no {split} split: what is called {split} here are the rows of the test split"


def _cut_off(job: Job) -> Iterator[str]:
    """Predictions that were not asked for."""
    for split, rows in job.splits.items():
        if rows.truncated and rows.positions is not None:
            yield (
                f"{rows.truncated} of {len(rows)} {split} rows are longer than a row may be: the words behind are "
                "neither predicted nor judged"
            )


def _same_rows(job: Job) -> Iterator[str]:
    """Rows that are calibrated on and judged by."""
    seen = {*_rows_of(job.calibrated.data.batches), *_arrays_of(job.calibrated.data.batches)}
    if job.training is not None and isinstance(job.training.unlabelled.rows, EncodedRows):
        seen.update(tuple(row["input_ids"]) for row in job.training.unlabelled.rows.tokens if "input_ids" in row)
    for split, rows in job.splits.items():
        # documents are what is searched, and may be what is calibrated on; queries may not
        judged = rows.tokens[len(rows.context.ids) if isinstance(rows.context, Ranking) else 0 :]
        both = sum(tuple(row["input_ids"]) in seen for row in judged if "input_ids" in row)
        both += sum(_fingerprint(row) in seen for array in rows.arrays.values() for row in array)
        if both > _SAME_ROWS * len(judged):
            yield (
                f"{both} of {len(judged)} {split} rows ({both / len(judged):.0%}) are calibration rows, too: the "
                "metrics flatter the pruned model"
            )


def _rows_of(batches: Sequence[Batch]) -> Iterator[tuple[int, ...]]:
    """Token ids of every row of text."""
    for batch in batches:
        ids, mask = batch.inputs.get("input_ids"), batch.mask
        if ids is not None and mask is not None and mask.shape == ids.shape:
            for row, real in zip(ids.tolist(), mask.tolist(), strict=True):
                yield tuple(compress(row, real))


def _arrays_of(batches: Sequence[Batch]) -> Iterator[bytes]:
    """What tells every image or sound from all others."""
    for batch in batches:
        if "input_ids" not in batch.inputs:
            for array in batch.inputs.values():
                yield from (_fingerprint(row) for row in array)


def _fingerprint(row: Tensor) -> bytes:
    """Values from all over an array, as bytes."""
    values = row.flatten()
    chosen = values[:: max(1, values.numel() // _VALUES)]
    return hashlib.sha256(chosen.cpu().contiguous().view(torch.uint8).numpy().data).digest()


def _unknown_tokens(job: Job) -> Iterator[str]:
    tokenizer = job.tokenizer
    unknown = None if tokenizer is None else tokenizer.unk_token_id
    if tokenizer is None or not isinstance(unknown, int):
        return
    marks = set(tokenizer.all_special_ids) - {unknown}
    tokens = [token for row in _rows_of(job.calibrated.data.batches) for token in row if token not in marks]
    count = tokens.count(unknown)
    if count > _UNKNOWN_TOKENS * len(tokens):
        yield (
            f"{count / len(tokens):.0%} of the calibration tokens are {tokenizer.unk_token}: is this the right "
            "tokenizer, and the right language?"
        )


def _other_tokens(job: Job) -> Iterator[str]:
    """Rows that a smaller vocabulary encodes in another way."""
    if job.given is None:
        return
    ids = job.given.new_ids
    for split, rows in job.splits.items():
        before = [[ids.get(i) for i in row.get("input_ids", ())] for row in job.given.splits[split].tokens]
        count = sum(list(row.get("input_ids", ())) != own for row, own in zip(rows.tokens, before, strict=False))
        # of texts that are cut into blocks there may be more now
        count += max(0, len(rows) - len(before))
        if count:
            yield (
                f"{count} of {len(rows)} {split} rows are encoded in another way by the smaller vocabulary: the texts "
                "it was made for lack some of their words; add texts like these"
            )


def _losses(report: PruneReport) -> Iterator[str]:
    """Splits on which the pruned model is worse by more than chance, and by much."""
    for split, after in report.after.items():
        before, sure = report.before.get(split), report.confidence.get(split)
        if before is None:
            continue
        certain = sure is None or not sure.change[0] <= 0 <= sure.change[1]
        if certain and _loss(before, after) > _LARGE_LOSS * abs(before.value):
            yield (
                f"{split}: {after.primary} went from {before.value:.4g} to {after.value:.4g}, a large loss; keep more, "
                "or calibrate on more rows"
            )


def _loss(before: Evaluation, after: Evaluation) -> float:
    """How much worse the judging metric is."""
    change = after.value - before.value
    return change if after.primary in IN_NATURAL_UNITS else -change


def _budgets(limits: Sequence[LimitResult]) -> Iterator[str]:
    for limit in limits:
        if limit.measured is None and limit.pruned > _OVERSHOT * limit.asked:
            yield f"{limit.cost}: {limit.pruned:.4g} are left where at most {limit.asked:.4g} were asked for"
    # of several limits, one stops the others from being used up
    used = [limit.spent / min(limit.asked, limit.dense) for limit in limits if min(limit.asked, limit.dense) > 0]
    if used and max(used) < _MISSED:
        yield (
            f"only {max(used):.0%} of the budget is used: no larger sizes that are allowed fit into it; ask for "
            "another budget, or allow more sizes"
        )


def _emptied(results: Sequence[SublayerResult]) -> Iterator[str]:
    gone = [result.name for result in results if result.units == 0 < result.units_before]
    if gone and len(gone) == sum(result.units_before > 0 for result in results):
        yield "nothing is left of any sublayer: the model mixes no tokens any more; ask for a larger budget"
    elif gone:
        more = f" and {len(gone) - _MOST_NAMED} more" if len(gone) > _MOST_NAMED else ""
        yield (
            f"{len(gone)} of {len(results)} sublayers have no unit left, only their bias: "
            f"{', '.join(gone[:_MOST_NAMED])}{more}"
        )
