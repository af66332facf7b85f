"""Two predictions per row: at which tokens of a context the answer to a question starts and ends.

Long contexts are cut into overlapping windows, each a row of its own. Answers are put together from the windows and
judged as in SQuAD (Rajpurkar et al. 2016, 2018): the post-processing is that of transformers' example for question
answering (utils_qa.py), F1 and exact match are those of the official script. One departure: where no span of a context
is possible at all, the answer is empty, not the word "empty".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from faster_pruner.checks import shown
from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.objectives.encoding import as_rows, check_texts, encoded_texts, require_columns
from faster_pruner.objectives.likelihoods import Categorical
from faster_pruner.objectives.objective import ByRow, Objective, Predicted, Predictions

TASK = "question-answering"
AUTO_CLASS = "AutoModelForQuestionAnswering"
COLUMNS = ("question", "context", "answers")

# As in transformers' example: so many starts and ends of a window are looked at, and answers are no longer than this.
_BEST, _LONGEST_ANSWER = 20, 30
# Tokens that two windows share, or a quarter of a row's limit where that is less.
_STRIDE = 128
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Windows:
    """What the metrics need of rows that are windows of longer texts.

    Attributes:
        example: per window, the example (question, context and answers) that it belongs to.
        offsets: per window [S, 2], where in its context each token starts and ends; -1 for tokens that are not of it.
        contexts: per example.
        answers: per example, the texts that are right; none for a question that has no answer.
    """

    example: list[int]
    offsets: list[np.ndarray]
    contexts: list[str]
    answers: list[list[str]]


def per_end(returned: Any, batch: Batch) -> Predictions:
    """Logits over the tokens [2B, S], of the start for every row, then of the end; padding cannot be either."""
    values = torch.cat([returned.start_logits, returned.end_logits])
    mask = batch.mask
    if mask is not None and mask.shape == returned.start_logits.shape:
        values = values.masked_fill(~mask.repeat(2, 1), -torch.inf)
    labels = None if batch.labels is None else batch.labels.T.flatten()
    return Predictions(values, batch.rows.repeat(2), labels)


def kept_of(predictions: Predictions) -> Tensor:
    """[P, 2 k + 1]: positions (-1 for none) and logits of the k best tokens, and the logit of the first token.

    The first token (CLS) says that there is no answer, as in transformers' example.
    """
    best = predictions.values.topk(min(_BEST, predictions.values.shape[-1]), dim=-1)
    missing = (0, _BEST - best.indices.shape[-1])
    # padding is no token
    positions = functional.pad(best.indices.where(best.values > -torch.inf, -1).float(), missing, value=-1.0)
    logits = functional.pad(best.values.float(), missing, value=-torch.inf)
    return torch.cat([positions, logits, predictions.values[:, :1].float()], dim=-1)


def answers_of(predicted: Predicted) -> list[str]:
    """The answer to every example; empty where the model says that there is none."""
    windows = cast(Windows, predicted.context)
    count = len(windows.contexts)
    best, texts, null = np.full(count, -np.inf), [""] * count, np.full(count, np.inf)
    ends = predicted.values.reshape(len(windows.example), 2, -1).astype(np.float64)
    for example, offsets, (start, end) in zip(windows.example, windows.offsets, ends, strict=True):
        null[example] = min(null[example], start[-1] + end[-1])
        score, span = _best_span(start, end, offsets)
        if score > best[example]:
            best[example], texts[example] = score, windows.contexts[example][slice(*span)]
    if all(windows.answers):
        # every question has an answer: that it has none is never said
        return texts
    return ["" if null[i] > best[i] else text for i, text in enumerate(texts)]


def _best_span(start: np.ndarray, end: np.ndarray, offsets: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The best span of one window: its score, and its characters in the context; -inf where there is none."""
    first, last = (kept[:_BEST].astype(int) for kept in (start, end))
    scores = start[_BEST:-1, None] + end[None, _BEST:-1]
    length = last[None, :] - first[:, None] + 1
    of_context = [(places >= 0) & (offsets[places, 0] >= 0) for places in (first, last)]
    possible = of_context[0][:, None] & of_context[1][None, :] & (length > 0) & (length <= _LONGEST_ANSWER)
    scores = np.where(possible, scores, -np.inf)
    i, j = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[i, j]), (int(offsets[first[i], 0]), int(offsets[last[j], 1]))


def normalise(text: str) -> str:
    """A text as answers are compared: lower case, without punctuation, articles and runs of white space."""
    letters = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", letters).split())


def overlap(answer: str, right: str) -> float:
    """F1 of the words that two answers share; 1 or 0 where one of them has no word."""
    said, true = normalise(answer).split(), normalise(right).split()
    if not said or not true:
        return float(said == true)
    same = sum((Counter(said) & Counter(true)).values())
    return 2 * same / (len(said) + len(true))


def _scores(predicted: Predicted) -> np.ndarray:
    """[examples, 3]: F1 and exact match against the best of the right answers, and 1."""
    found: list[tuple[float, float, float]] = []
    windows = cast(Windows, predicted.context)
    for answer, right in zip(answers_of(predicted), windows.answers, strict=True):
        # a question without an answer is answered by saying nothing
        texts = [text for text in right if normalise(text)] or [""]
        exact = max(float(normalise(answer) == normalise(text)) for text in texts)
        found.append((max(overlap(answer, text) for text in texts), exact, 1.0))
    return np.array(found)


ANSWERING = Objective(
    name="question answering",
    readout=per_end,
    likelihood=Categorical(),
    metrics={
        "f1": ByRow(_scores, lambda sums: 100 * float(sums[0] / sums[2])),
        "exact_match": ByRow(_scores, lambda sums: 100 * float(sums[1] / sums[2])),
    },
    keep=kept_of,
    auto_class=AUTO_CLASS,
    pipeline_tag=TASK,
)


def objective_for(config: Any) -> Objective:
    """The one objective of such models, whatever the config says."""
    del config
    return ANSWERING


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: Any,
    limit: int,
    labelled: bool = True,
) -> EncodedRows:
    """Tokenise questions and contexts, long contexts in several windows; find the answers in them.

    Windows are padded on the right whatever the tokenizer does: positions in a window are positions in a batch.

    Args:
        rows: as loaded.
        task: question in its text column, context in its pair column, answers in its label column, as on the hub:
            ``{"text": [...], "answer_start": [...]}``, both empty for a question without an answer.
        tokenizer: a fast one.
        config: nothing is read of it.
        limit: of a window; longer questions than half of it are cut.
        labelled: read the answers.

    Raises:
        DataError: a missing column, no text, or answers of another form.
        UnsupportedModelError: the tokenizer cannot tell where a token comes from.
    """
    del config
    given = as_rows(rows)
    columns = (task.text_column, task.pair_column or "")
    require_columns(given, [*columns, *([task.label_column] if labelled else [])])
    questions, contexts = ([row[column] for row in given] for column in columns)
    for column, values in zip(columns, (questions, contexts), strict=True):
        check_texts(given, column, values)
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"a {type(tokenizer).__name__} cannot tell where in a text a token comes from; a fast tokenizer "
            "(tokenizer.json) is needed"
        )
    answers = [_answers(given, i, task.label_column) for i in range(len(given))] if labelled else None
    encoded, context_part = _windows(tokenizer, _cut_questions(tokenizer, questions, limit), contexts, limit)
    example = [int(i) for i in encoded["overflow_to_sample_mapping"]]
    offsets = [_offsets(encoded, i, context_part) for i in range(len(example))]
    found = encoded_texts(given.chosen(example), encoded, tokenizer, columns[0])
    found = replace(found, left_padded=False, examples=len(given))
    if answers is None:
        return found
    nothing = [_says_nothing(tokenizer, tokens["input_ids"]) for tokens in found.tokens]
    labels = [_place(answers[e], own, at) for e, own, at in zip(example, offsets, nothing, strict=True)]
    texts = [[text for text, _ in own] for own in answers]
    return replace(found, labels=labels, context=Windows(example, offsets, contexts, texts))


def _cut_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], limit: int) -> list[str]:
    """Questions of at most half a window's tokens, so that contexts always have room."""
    most = limit // 2
    stripped = [question.lstrip() for question in questions]
    encoded: Any = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [own[most - 1][1] if len(own) > most else None for own in encoded["offset_mapping"]]
    return [question[:end] for question, end in zip(stripped, ends, strict=True)]


def _windows(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], contexts: list[str], limit: int
) -> tuple[Any, int]:
    """What the tokenizer makes of the pairs, and which of the two parts is the context. Raises DataError."""
    room = limit - limit // 2 - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise DataError(
            f"rows of {limit} tokens have no place for a question and a context; longer ones are needed",
            option="max_length",
        )
    # a tokenizer that pads on the left is given the context first, as in transformers' example
    context_part = 1 if tokenizer.padding_side == "right" else 0
    first, second = (questions, contexts) if context_part else (contexts, questions)
    encoded: Any = tokenizer(
        first,
        second,
        truncation="only_second" if context_part else "only_first",
        max_length=limit,
        stride=min(_STRIDE, limit // 4, room - 1),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return encoded, context_part


def _offsets(encoded: Any, window: int, context_part: int) -> np.ndarray:
    """[S, 2]: where in the context each token of a window stands; -1 for the others."""
    offsets = np.array(encoded["offset_mapping"][window], dtype=np.int32).reshape(-1, 2)
    of_context = np.array([part == context_part for part in encoded.sequence_ids(window)], dtype=bool)
    return np.where(of_context[:, None], offsets, -1)


def _says_nothing(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """The token of a window that stands for no answer: CLS, else the one that starts every text, else the first."""
    marks = (tokenizer.cls_token_id, tokenizer.bos_token_id)
    return next((list(ids).index(mark) for mark in marks if isinstance(mark, int) and mark in ids), 0)


def _place(answers: list[tuple[str, int]], offsets: np.ndarray, nothing: int) -> list[int]:
    """First and last token of the first answer in a window; both `nothing` where it does not hold it whole."""
    places = np.flatnonzero(offsets[:, 0] >= 0)
    if not answers or not places.size:
        return [nothing, nothing]
    text, start = answers[0]
    end = start + len(text)
    starts, ends = offsets[places].T
    if start < starts[0] or end > ends[-1]:
        return [nothing, nothing]
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(ends, end, side="left"))
    return [int(places[first]), int(places[max(first, last)])]


def _answers(rows: Rows, i: int, column: str) -> list[tuple[str, int]]:
    """The right answers to a question, and where in the context they start. Raises DataError."""
    value = rows[i][column]
    answers = cast("Mapping[str, Any]", value if isinstance(value, Mapping) else {})
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or len(texts) != len(starts):
        raise DataError(
            f"{rows.where(i)}: {shown(value)} in column {column!r} is no list of answers; it must be an object with "
            "'text' and 'answer_start', two lists of one length, both empty where there is no answer"
        )
    found: list[tuple[str, int]] = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise DataError(
                f"{rows.where(i)}: an answer in column {column!r} is {shown(text)} at {shown(start)}; a text and the "
                "number of its first character are needed"
            )
        if start < 0:
            raise DataError(f"{rows.where(i)}: an answer in column {column!r} starts at character {start}")
        found.append((text, start))
    return found
