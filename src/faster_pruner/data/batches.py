"""Encoded rows, sorted by length and packed into batches by tokens, so that little padding is ever computed.

On SST-2 random batches of 32 hold three padding tokens for every real one. Order and packing never change what a row
means: every row keeps its original position in `Batch.rows`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from faster_pruner.errors import DataError

# A batch that is filled to this share ends at the first row shorter than `_SHORTEST` times its longest.
_LEAST_FILLED = 0.5
_SHORTEST = 0.85

# The keys of a tokenised row that hold one number per token.
TOKEN_KEYS = ("input_ids", "token_type_ids")


# What the model is called with that says which tokens are real, and what carries the labels of batches that users make.
MASK_KEY = "attention_mask"
_LABEL_KEYS = ("labels", "label", "label_ids")
# Where an answer starts and ends, as collators for question answering give it.
_SPAN_KEYS = ("start_positions", "end_positions")
# What everyone writes where a token has no label.
NO_LABEL = -100

# One row's label: a class index, a target, one number per class, or one class per position.
Label = int | float | Sequence[int] | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded batch.

    Attributes:
        inputs: what the model is called with, for text `input_ids` [B, S], `attention_mask` [B, S], maybe
            `token_type_ids` [B, S].
        rows: [B], positions of the rows in the original order.
        labels: [B] class indices or targets, [B, C] one number per class, or where there are `positions` [B, S], one
            class per position and `NO_LABEL` elsewhere; None without.
        positions: [B, S] bool, the tokens at which predictions are read; None when the rows do not say.
        differentiated: whether the statistics pass runs backward through all of it (see `pack`).
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    labels: Tensor | None
    positions: Tensor | None = None
    differentiated: bool = True

    @property
    def mask(self) -> Tensor | None:
        """[B, S] bool: which tokens are real; None when nothing says so."""
        mask = self.inputs.get(MASK_KEY)
        return None if mask is None else mask.bool()

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return replace(
            self,
            inputs={key: value.to(device) for key, value in self.inputs.items()},
            rows=self.rows.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            positions=None if self.positions is None else self.positions.to(device),
        )

    def chosen(self, places: Tensor) -> Batch:
        """Some of the rows, by their places [B'] in the batch: a batch of its own, whose rows count from 0."""
        count = self.rows.numel()
        return replace(
            self,
            inputs=rows_at(self.inputs, places, count),
            rows=torch.arange(places.numel(), device=self.rows.device),
            labels=None if self.labels is None else self.labels[places],
            positions=None if self.positions is None else self.positions[places],
        )


def rows_at(inputs: Mapping[str, Any], places: Tensor, count: int) -> dict[str, Any]:
    """Some rows of what a model is called with: of every tensor with `count` of them, those at `places`."""
    return {key: _own_rows(value, places, count) for key, value in inputs.items()}


def _own_rows(value: Any, places: Tensor, count: int) -> Any:
    """The rows at `places` of a tensor with `count` of them; anything else as it is."""
    by_row = isinstance(value, Tensor) and value.shape[:1] == (count,)
    return value[places.to(value.device)] if by_row else value


def chosen_rows(value: Any, places: Tensor, count: int) -> Any:
    """The same of a value and of all that lies in it, where it is a tuple, list or dictionary."""
    if isinstance(value, tuple | list):
        inside: Any = (chosen_rows(each, places, count) for each in value)  # pyright: ignore[reportUnknownVariableType]
        return type(value)(inside)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: chosen_rows(each, places, count) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return _own_rows(value, places, count)


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Rows as a model takes them, in their original order.

    Attributes:
        tokens: per row, token lists by key (`TOKEN_KEYS`); empty mappings for rows that have none.
        labels: one per row, or None. Where there are `positions`, a row's label is a list, one class per position.
        padding: the padding value of each key.
        left_padded: whether the tokenizer pads on the left.
        split: name of the split that they were found under; empty for rows that somebody made.
        arrays: model inputs [N, ...] of one size for every row, by name (`pixel_values`).
        row_tokens: how many tokens the model makes of a row that has no `input_ids`.
        positions: per row, the tokens at which predictions are read; None when that is no matter of the rows.
        truncated: how many of them were longer than a row may be.
        examples: how many rows of data they were made of, where long ones were cut into several; else 0.
        context: what the metrics need to know of the rows beside their labels.
    """

    tokens: Sequence[Mapping[str, Sequence[int]]]
    labels: Sequence[Label] | None
    padding: Mapping[str, int]
    left_padded: bool = False
    split: str = ""
    arrays: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    row_tokens: int = 0
    positions: Sequence[Sequence[int]] | None = None
    truncated: int = 0
    examples: int = 0
    context: object = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def judged(self) -> int:
        """How many rows of data are judged."""
        return self.examples or len(self)

    @property
    def lengths(self) -> list[int]:
        """Real tokens per row."""
        return [len(row["input_ids"]) if "input_ids" in row else self.row_tokens for row in self.tokens]

    def digest(self) -> str:
        """SHA-256 of everything that the model is given, and of the labels, in order."""
        content: list[Any] = [[dict(row) for row in self.tokens], None if self.labels is None else list(self.labels)]
        if self.positions is not None:
            content.append([list(places) for places in self.positions])
        found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for part in _parts(self.arrays):
            found.update(part)
        return found.hexdigest()

    @property
    def mean_length(self) -> float:
        """Mean number of real tokens per row."""
        return sum(self.lengths) / len(self)


def rows_with(lengths: Sequence[int], tokens: int) -> int:
    """How many of the first rows, of these lengths, together hold `tokens` real tokens; all if they hold less."""
    totals = list(accumulate(lengths))
    return min(bisect_left(totals, tokens) + 1, len(totals))


def pack(
    rows: EncodedRows, *, tokens_per_batch: int, device: torch.device, differentiated: int | None = None
) -> list[Batch]:
    """Batches of at most `tokens_per_batch` padded tokens (at least one row each), longest rows first.

    A batch also ends where rows have become so short that padding would cost more than a smaller batch does.

    Args:
        rows: to be packed.
        tokens_per_batch: most padded tokens per batch.
        device: where the batches go.
        differentiated: the first so many rows make batches of their own, ahead of the others, and only these are
            marked as `differentiated`; None for all rows.
    """
    first = len(rows) if differentiated is None else min(differentiated, len(rows))
    batches: list[Batch] = []
    for part, flag in ((range(first), True), (range(first, len(rows)), False)):
        packed = _packed(rows.lengths, part, tokens_per_batch)
        batches += [replace(_pad(rows, chosen), differentiated=flag).to(device) for chosen in packed]
    return batches


def packing(lengths: Sequence[int], *, tokens_per_batch: int, differentiated: int = 0) -> list[list[list[int]]]:
    """Which rows of these lengths `pack` puts together: batches that are differentiated, and the others."""
    parts = (range(differentiated), range(differentiated, len(lengths)))
    return [list(_packed(lengths, part, tokens_per_batch)) for part in parts]


def padded_tokens(lengths: Sequence[int], *, tokens_per_batch: int, differentiated: int = 0) -> int:
    """How many tokens, padding included, `pack` makes of rows of these lengths."""
    parts = packing(lengths, tokens_per_batch=tokens_per_batch, differentiated=differentiated)
    packed = [chosen for part in parts for chosen in part]
    return sum(len(chosen) * max(1, *(lengths[i] for i in chosen)) for chosen in packed)


def pack_evenly(rows: EncodedRows, *, rows_per_batch: int, device: torch.device) -> list[Batch]:
    """Batches of `rows_per_batch` rows (the last one may have fewer), longest rows first."""
    lengths = rows.lengths
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    return [_pad(rows, order[i : i + rows_per_batch]).to(device) for i in range(0, len(order), rows_per_batch)]


def part_of(rows: EncodedRows, start: int, stop: int) -> EncodedRows:
    """The rows from `start` to `stop`, without what metrics know of the others."""
    return rows_of(rows, range(start, min(stop, len(rows))))


def rows_of(rows: EncodedRows, places: Sequence[int]) -> EncodedRows:
    """The rows at these places, each as often as it is named, without what metrics know of the others."""
    return replace(
        rows,
        tokens=[rows.tokens[i] for i in places],
        labels=None if rows.labels is None else [rows.labels[i] for i in places],
        arrays={key: _taken(array, places) for key, array in rows.arrays.items()},
        positions=None if rows.positions is None else [rows.positions[i] for i in places],
        context=None,
    )


def _packed(lengths: Sequence[int], chosen: Iterable[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """The rows of each batch."""
    order = sorted(chosen, key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        stop = start + max(1, tokens_per_batch // longest)
        enough = start + max(1, int(tokens_per_batch * _LEAST_FILLED) // longest)
        while enough < min(stop, len(order)):
            if lengths[order[enough]] < _SHORTEST * longest:
                stop = enough
            enough += 1
        yield order[start:stop]
        start = stop


def _pad(rows: EncodedRows, chosen: Sequence[int]) -> Batch:
    """One padded batch of the chosen rows."""
    places = torch.tensor(list(chosen))
    inputs = {key: _taken(array, chosen) for key, array in rows.arrays.items()}
    counts = [len(rows.tokens[i].get("input_ids", ())) for i in chosen]
    longest = max(counts)
    spans = [slice(longest - count, longest) if rows.left_padded else slice(0, count) for count in counts]
    if longest:
        inputs |= _padded_tokens(rows, chosen, spans, longest)
    positions = None
    if rows.positions is None:
        labels = None if rows.labels is None else torch.tensor([rows.labels[i] for i in chosen])
    else:
        positions, labels = _padded_positions(rows, chosen, spans, longest)
    return Batch(inputs=inputs, rows=places, labels=labels, positions=positions)


def _taken(array: Tensor, chosen: Sequence[int]) -> Tensor:
    """The chosen rows of an array; where they lie side by side they are not held twice."""
    if not chosen:
        return array[:0]
    first, last = chosen[0], chosen[-1]
    return array[first : last + 1] if list(chosen) == list(range(first, last + 1)) else array[torch.tensor(chosen)]


def _padded_tokens(rows: EncodedRows, chosen: Sequence[int], spans: Sequence[slice], longest: int) -> dict[str, Tensor]:
    """Token ids and the like of the chosen rows, each in its span of [B, S], and the mask of what is real."""
    keys = [key for key in TOKEN_KEYS if key in rows.tokens[chosen[0]]]
    mask = torch.zeros(len(chosen), longest, dtype=torch.long)
    inputs = {key: torch.full((len(chosen), longest), rows.padding[key], dtype=torch.long) for key in keys}
    for place, (i, span) in enumerate(zip(chosen, spans, strict=True)):
        mask[place, span] = 1
        for key in keys:
            inputs[key][place, span] = torch.tensor(rows.tokens[i][key], dtype=torch.long)
    return {**inputs, MASK_KEY: mask}


def _padded_positions(
    rows: EncodedRows, chosen: Sequence[int], spans: Sequence[slice], longest: int
) -> tuple[Tensor, Tensor | None]:
    """Where predictions are read, [B, S] bool, and the labels there, [B, S]."""
    assert rows.positions is not None
    positions = torch.zeros(len(chosen), longest, dtype=torch.bool)
    labels = None if rows.labels is None else torch.full((len(chosen), longest), NO_LABEL, dtype=torch.long)
    for place, (i, span) in enumerate(zip(chosen, spans, strict=True)):
        at = torch.tensor(rows.positions[i], dtype=torch.long) + span.start
        positions[place, at] = True
        if labels is not None and rows.labels is not None:
            labels[place, at] = torch.tensor(rows.labels[i], dtype=torch.long)
    return positions, labels


def adopt(made: Iterable[Mapping[str, Any]], device: torch.device) -> list[Batch]:
    """Batches that somebody else made, as dictionaries of tensors: the labels apart, everything else for the model.

    Raises:
        DataError: no batch, one that is no such dictionary, an empty tensor, or tensors that do not agree on the number
            of rows.
    """
    batches: list[Batch] = []
    start = 0
    for place, each in enumerate(made):
        mapping = isinstance(cast(object, each), Mapping)
        if not mapping or not any(isinstance(value, Tensor) for value in each.values()):
            raise DataError(f"batch {place} is a {type(each).__name__}; a dictionary of tensors is needed")
        # what was computed under gradients would be differentiated again by every pass
        tensors = {str(key): _free(value) for key, value in each.items() if isinstance(value, Tensor)}
        inputs = {key: value for key, value in tensors.items() if key not in (*_LABEL_KEYS, *_SPAN_KEYS)}
        counts = {value.shape[0] if value.ndim else 0 for value in tensors.values()}
        if not inputs or len(counts) > 1 or 0 in counts:
            raise DataError(f"the tensors of batch {place} do not have one first dimension, the rows, in common")
        empty = next((key for key, value in inputs.items() if not value.numel()), None)
        if empty is not None:
            raise DataError(f"{empty} of batch {place} is of shape {list(inputs[empty].shape)}: it holds nothing")
        count = counts.pop()
        labels, rows = _adopted_labels(tensors, place), torch.arange(start, start + count)
        positions = _labelled_positions(inputs, labels)
        batches.append(Batch(inputs=inputs, rows=rows, labels=labels, positions=positions).to(device))
        start += count
    if not batches:
        raise DataError("there are no calibration batches; if they come from a generator, it may be used up")
    return batches


def _free(tensor: Tensor) -> Tensor:
    """The same values, outside of any graph and of inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _adopted_labels(tensors: Mapping[str, Tensor], place: int) -> Tensor | None:
    """The labels among the tensors of somebody's batch: as they are, or [B, 2] where an answer starts and ends."""
    if all(key in tensors for key in _SPAN_KEYS):
        ends = torch.stack([tensors[key].flatten() for key in _SPAN_KEYS], dim=1)
        ids = tensors.get("input_ids")
        if ids is not None and not bool(((ends >= 0) & (ends < ids.shape[-1])).all()):
            raise DataError(
                f"{' or '.join(_SPAN_KEYS)} of batch {place} are no positions of its {ids.shape[-1]} tokens; answers "
                "that are not among them are marked at the position of no answer, usually 0"
            )
        return ends
    return next((tensors[key] for key in _LABEL_KEYS if key in tensors), None)


def _labelled_positions(inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor | None:
    """[B, S] bool: where predictions are read, told by the tokens without a label; None when none is."""
    ids = inputs.get("input_ids")
    if ids is None or labels is None or labels.shape != ids.shape or labels.is_floating_point():
        return None
    positions = labels != NO_LABEL
    return None if bool(positions.all()) else positions


def digest(batches: Sequence[Batch]) -> str:
    """SHA-256 of everything in the batches, in order."""
    found = hashlib.sha256()
    for batch in batches:
        others = {"labels": batch.labels, "positions": batch.positions}
        for part in _parts({**batch.inputs, **{key: value for key, value in others.items() if value is not None}}):
            found.update(part)
    return found.hexdigest()


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Everything in named tensors, as bytes."""
    for key, value in sorted(tensors.items()):
        yield f"{key} {tuple(value.shape)} {value.dtype}".encode()
        yield value.detach().cpu().contiguous().view(torch.uint8).numpy().data
