"""One prediction per token: the next one. The text is its own label.

Texts are joined and cut into blocks of one length, as transformers' language modelling example does; perplexity is over
the tokens of these blocks, each with only its own block before it.

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
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.objectives.encoding import as_rows, check_texts, encoded_texts, require_columns
from faster_pruner.objectives.likelihoods import Categorical
from faster_pruner.objectives.objective import Chosen, Objective, Predictions, TokenReadout

TASK = "language-modeling"
AUTO_CLASS = "AutoModelForCausalLM"
COLUMNS = ("text", None, "")

_PIPELINE_TAG = "text-generation"
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
        name="language modelling",
        readout=per_token,
        tokens=TokenReadout(chosen_tokens, _logits),
        likelihood=Categorical(),
        metrics={"perplexity": _perplexity, "loss": _loss},
        keep=losses_of,
        auto_class=AUTO_CLASS,
        pipeline_tag=_PIPELINE_TAG,
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
        rows: as loaded; those without text are left out.
        task: its text column.
        tokenizer: of the model.
        config: not used.
        limit: tokens of a block; what is left at the end is dropped, unless it is all there is.
        labelled: not used: the text is its own label.

    Raises:
        DataError: a missing column, or no text.
    """
    del config, labelled
    given = as_rows(rows)
    require_columns(given, [task.text_column])
    texts = [row[task.text_column] for row in given]
    check_texts(given, task.text_column, texts)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"no row has any text in column {task.text_column!r}")
    encoded: Any = tokenizer(texts)
    tokens: list[int] = list(chain.from_iterable(encoded["input_ids"]))
    blocks = [tokens[i : i + limit] for i in range(0, len(tokens), limit)]
    whole = [block for block in blocks if len(block) == limit] or blocks
    if len(whole[0]) < 2:
        raise DataError(f"column {task.text_column!r} holds one token in all; two are needed to predict one")
    return encoded_texts(given, {"input_ids": whole}, tokenizer, task.text_column)
