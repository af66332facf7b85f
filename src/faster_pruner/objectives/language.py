"""One prediction per token: the next one. The text is its own label.

Texts are joined and cut into blocks of one length, as transformers' language modelling example does; perplexity is over
the tokens of these blocks, each with only its own block before it. A plain text file is one running text: that is what
the literature does with WikiText-2, in blocks of 2048 tokens.

Predictions are [P, V] over the whole vocabulary; where that is much, they are made and used some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from faster_pruner.data.batches import NO_LABEL, Batch, EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.encoding import as_rows, check_texts, encoded_texts, require_columns
from faster_pruner.objectives.likelihoods import Categorical
from faster_pruner.objectives.objective import Chosen, Objective, Predictions, TokenReadout

TASK = "language-modeling"
# What it is called in words.
OBJECTIVE = "language modelling"
AUTO_CLASS = "AutoModelForCausalLM"
COLUMNS = ("text", None, "")

_PIPELINE_TAG = "text-generation"
# A descent pays at every budget (docs/decoders.md), where a classifier needs one below a quarter of the MACs.
_DESCENT_FACTOR = 4.0
# Texts that are encoded in one call.
_TEXTS_AT_ONCE = 32
# The exponent of a loss beyond it is no number that anyone would read.
_LARGEST_LOSS = 50.0


def per_token(returned: Any, batch: Batch) -> Predictions:
    """One prediction per real token that a real token follows: logits [P, V], labelled with the next token.

    Labels of the batch itself, one per token as transformers' collators make them, say by `NO_LABEL` which tokens are
    not to be predicted (a prompt).
    """
    chosen = chosen_tokens(batch)
    return Predictions(returned.logits[chosen.at], chosen.rows, chosen.labels)


def chosen_tokens(batch: Batch) -> Chosen:
    """The tokens of a batch that `per_token` reads."""
    ids = batch.inputs["input_ids"]
    real = torch.ones_like(ids, dtype=torch.bool) if batch.mask is None else batch.mask
    followed = real[:, :-1] & real[:, 1:]
    if batch.labels is not None and batch.labels.shape == ids.shape:
        followed = followed & (batch.labels[:, 1:] != NO_LABEL)
    at = torch.cat([followed, torch.zeros_like(real[:, :1])], dim=1)
    return Chosen(at, batch.rows[:, None].expand(at.shape)[at], ids[:, 1:][followed])


def _logits(returned: Any) -> Tensor:
    """[B, T, V]."""
    return returned.logits


def losses_of(predictions: Predictions) -> Tensor:
    """[P, 1]: the loss of each token, all that the metrics need."""
    assert predictions.labels is not None
    return functional.cross_entropy(predictions.values.float(), predictions.labels, reduction="none")[:, None]


def _loss(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss of a token, in nats."""
    del labels
    return float(values.mean(dtype=np.float64))


def _perplexity(values: np.ndarray, labels: np.ndarray) -> float:
    """Its exponent."""
    return float(np.exp(min(_loss(values, labels), _LARGEST_LOSS)))


def objective_for(config: Any) -> Objective:
    """The objective of a causal language model, whatever its config."""
    del config
    return Objective(
        name=OBJECTIVE,
        readout=per_token,
        tokens=TokenReadout(chosen_tokens, _logits),
        likelihood=Categorical(),
        metrics={"perplexity": _perplexity, "loss": _loss},
        keep=losses_of,
        auto_class=AUTO_CLASS,
        pipeline_tag=_PIPELINE_TAG,
        descent_factor=_DESCENT_FACTOR,
    )


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Join texts and cut them into blocks.

    Args:
        rows: as loaded, one after the other; those without text are left out. Passages of a running text that follow
            one another are encoded as one text.
        task: its text column.
        tokenizer: of the model.
        config: not used.
        limit: tokens of a block; what is left at the end is dropped, unless it is all there is.
        labelled: not used: the text is its own label.

    Raises:
        DataError: a missing column, or no text.
    """
    del config, labelled
    given = _checked(as_rows(rows), task)
    encoded: Any = tokenizer(_joined(given, task.text_column))
    return _blocks(given, list(chain.from_iterable(encoded["input_ids"])), task, tokenizer, limit)


def draw(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int,
    count: int,
    seed: int,
) -> EncodedRows:
    """Blocks for a calibration set: a piece of every text in turn, in random order, then a next piece of each.

    Args:
        rows: as loaded.
        task: its text column.
        tokenizer: of the model.
        limit: tokens of a block.
        count: blocks, where the texts hold as many; with a larger one the first of them are the same.
        seed: of the order of the texts, and of the piece of each that comes first.

    Raises:
        DataError: a missing column, or no text.
    """
    given = _checked(as_rows(rows), task)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(given), generator=generator).tolist()
    starts = torch.rand(len(given), generator=generator).tolist()
    texts = [given[i][task.text_column] for i in order]
    pieces: list[list[list[int]]] = []
    tokens: list[int] = []
    turn = 0
    while len(tokens) < count * limit and (turn == 0 or any(len(own) > turn for own in pieces)):
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            if turn == 0:
                encoded: Any = tokenizer(texts[first : first + _TEXTS_AT_ONCE])
                for ids, start in zip(encoded["input_ids"], starts[first:], strict=False):
                    own = [ids[at : at + limit] for at in range(0, len(ids), limit)]
                    begin = int(start * len(own))
                    pieces.append(own[begin:] + own[:begin])
            for own in pieces[first : first + _TEXTS_AT_ONCE]:
                tokens += own[turn] if turn < len(own) else []
            if len(tokens) >= count * limit:
                break
        turn += 1
    return _blocks(given, tokens[: count * limit], task, tokenizer, limit)


def _checked(given: Rows, task: Task) -> Rows:
    """The rows that have a text. Raises DataError."""
    require_columns(given, [task.text_column])
    check_texts(given, task.text_column, [row[task.text_column] for row in given])
    kept = [place for place, row in enumerate(given) if row[task.text_column].strip() or given.running]
    if not any(given[place][task.text_column].strip() for place in kept):
        raise DataError(f"no row has any text in column {task.text_column!r}")
    return given.chosen(kept)


def _joined(rows: Rows, column: str) -> list[str]:
    """Their texts; passages that follow one another are one."""
    texts: list[str] = []
    for place, row in enumerate(rows):
        if rows.running and place and rows.numbers[place] == rows.numbers[place - 1] + 1:
            texts[-1] += row[column]
        else:
            texts.append(row[column])
    return texts


def _blocks(rows: Rows, tokens: list[int], task: Task, tokenizer: PreTrainedTokenizerBase, limit: int) -> EncodedRows:
    """Tokens in blocks of one length; what is left over is dropped, unless it is all there is. Raises DataError."""
    blocks = [tokens[i : i + limit] for i in range(0, len(tokens), limit)]
    whole = [block for block in blocks if len(block) == limit] or blocks
    if not whole or len(whole[0]) < 2:
        raise DataError(f"column {task.text_column!r} holds one token in all; two are needed to predict one")
    return encoded_texts(rows, {"input_ids": whole}, tokenizer, task.text_column)
