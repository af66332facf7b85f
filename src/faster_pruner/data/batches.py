"""Tokenised rows, sorted by length and packed into batches by tokens, so that little padding is ever computed.

On SST-2 random batches of 32 hold three padding tokens for every real one. Order and packing never change what a row
means: every row keeps its original position in `Batch.rows`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

# One row's label: a class index, a target, or one number per class.
Label = int | float | Sequence[int] | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded batch.

    Attributes:
        inputs: what the model is called with, for text `input_ids` [B, S], `attention_mask` [B, S], maybe
            `token_type_ids` [B, S].
        rows: [B], positions of the rows in the original order.
        labels: [B] class indices or targets, or [B, C] one number per class; None without.
        differentiated: whether the statistics pass runs backward through all of it (see `pack`).
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    labels: Tensor | None
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
        )


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Tokenised rows in their original order.

    Attributes:
        tokens: per row, token lists by key (`TOKEN_KEYS`).
        labels: one per row, or None.
        padding: the padding value of each key.
        left_padded: whether the tokenizer pads on the left.
        split: name of the split that they were found under; empty for rows that somebody made.
    """

    tokens: Sequence[Mapping[str, Sequence[int]]]
    labels: Sequence[Label] | None
    padding: Mapping[str, int]
    left_padded: bool = False
    split: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Real tokens per row."""
        return [len(row["input_ids"]) for row in self.tokens]

    def digest(self) -> str:
        """SHA-256 of the token ids and labels, in order."""
        content = [[dict(row) for row in self.tokens], None if self.labels is None else list(self.labels)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def mean_length(self) -> float:
        """Mean number of real tokens per row."""
        return sum(self.lengths) / len(self)


def rows_with(rows: EncodedRows, tokens: int) -> int:
    """How many of the first rows together hold `tokens` real tokens; all of them if they hold less."""
    totals = list(accumulate(rows.lengths))
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
        packed = _packed(rows, part, tokens_per_batch)
        batches += [replace(_pad(rows, chosen), differentiated=flag).to(device) for chosen in packed]
    return batches


def _packed(rows: EncodedRows, chosen: Iterable[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """The rows of each batch."""
    order = sorted(chosen, key=lambda i: (-len(rows.tokens[i]["input_ids"]), i))
    start = 0
    while start < len(order):
        longest = max(1, len(rows.tokens[order[start]]["input_ids"]))
        stop = start + max(1, tokens_per_batch // longest)
        enough = start + max(1, int(tokens_per_batch * _LEAST_FILLED) // longest)
        while enough < min(stop, len(order)):
            if len(rows.tokens[order[enough]]["input_ids"]) < _SHORTEST * longest:
                stop = enough
            enough += 1
        yield order[start:stop]
        start = stop


def _pad(rows: EncodedRows, chosen: Sequence[int]) -> Batch:
    """One padded batch of the chosen rows."""
    longest = max(len(rows.tokens[i]["input_ids"]) for i in chosen)
    inputs: dict[str, Tensor] = {}
    keys = [key for key in TOKEN_KEYS if key in rows.tokens[chosen[0]]]
    mask = torch.zeros(len(chosen), longest, dtype=torch.long)
    for key in keys:
        inputs[key] = torch.full((len(chosen), longest), rows.padding[key], dtype=torch.long)
    for place, i in enumerate(chosen):
        count = len(rows.tokens[i]["input_ids"])
        span = slice(longest - count, longest) if rows.left_padded else slice(0, count)
        mask[place, span] = 1
        for key in keys:
            inputs[key][place, span] = torch.tensor(rows.tokens[i][key], dtype=torch.long)
    labels = None if rows.labels is None else torch.tensor([rows.labels[i] for i in chosen])
    return Batch(inputs={**inputs, MASK_KEY: mask}, rows=torch.tensor(list(chosen)), labels=labels)


def adopt(made: Iterable[Mapping[str, Any]], device: torch.device) -> list[Batch]:
    """Batches that somebody else made, as dictionaries of tensors: the labels apart, everything else for the model.

    Raises:
        DataError: no batch, one that is no such dictionary, or tensors that do not agree on the number of rows.
    """
    batches: list[Batch] = []
    start = 0
    for place, each in enumerate(made):
        mapping = isinstance(cast(object, each), Mapping)
        if not mapping or not any(isinstance(value, Tensor) for value in each.values()):
            raise DataError(f"batch {place} is a {type(each).__name__}; a dictionary of tensors is needed")
        tensors = {str(key): value for key, value in each.items() if isinstance(value, Tensor)}
        labels = next((tensors[key] for key in _LABEL_KEYS if key in tensors), None)
        inputs = {key: value for key, value in tensors.items() if key not in _LABEL_KEYS}
        counts = {value.shape[0] if value.ndim else 0 for value in tensors.values()}
        if not inputs or len(counts) > 1 or 0 in counts:
            raise DataError(f"the tensors of batch {place} do not have one first dimension, the rows, in common")
        count = counts.pop()
        batches.append(Batch(inputs=inputs, rows=torch.arange(start, start + count), labels=labels).to(device))
        start += count
    if not batches:
        raise DataError("there are no calibration batches; if they come from a generator, it may be used up")
    return batches


def digest(batches: Sequence[Batch]) -> str:
    """SHA-256 of everything in the batches, in order."""
    found = hashlib.sha256()
    for batch in batches:
        tensors = batch.inputs if batch.labels is None else {**batch.inputs, "labels": batch.labels}
        for key, value in sorted(tensors.items()):
            found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
