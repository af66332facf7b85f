"""Question answering: windows of long contexts, spans, and scores as in SQuAD's official script."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from faster_pruner.data.batches import Batch, EncodedRows, adopt
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.objectives.answering import (
    ANSWERING,
    Windows,
    answers_of,
    encode,
    kept_of,
    normalise,
    overlap,
    per_end,
)
from faster_pruner.objectives.evaluation import gather
from faster_pruner.objectives.objective import Cotangents, Predicted, Predictions

TASK = Task(name="", text_column="question", pair_column="context", label_column="answers", kind="question-answering")
CPU = torch.device("cpu")


def encoded(rows: list[dict[str, Any]], *, limit: int = 24, left: bool = False, **changes: Any) -> EncodedRows:
    tokenizer = tiny.make_tokenizer()
    tokenizer.padding_side = "left" if left else "right"
    return encode(rows, TASK, tokenizer, config=None, limit=limit, **changes)


def windows_of(rows: EncodedRows) -> Windows:
    return cast(Windows, rows.context)


def told(inputs: dict[str, Tensor], rows: EncodedRows, batch: Batch, *, sure: float = 10.0) -> Any:
    """What a model that knows the answers would return."""
    assert batch.labels is not None
    shape = inputs["input_ids"].shape
    logits = torch.zeros(2, *shape)
    for end in (0, 1):
        logits[end, torch.arange(shape[0]), batch.labels[:, end]] = sure
    return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])


def predicted_by_truth(rows: EncodedRows) -> Predicted:
    batches = iter(tiny.make_batches(rows, 200))
    current: list[Batch] = []

    def call(inputs: dict[str, Any]) -> Any:
        current[:] = [next(batches)]
        return told(inputs, rows, current[0])

    return gather(call, ANSWERING, tiny.make_batches(rows, 200), context=rows.context)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("limit", [14, 20, 64])
@pytest.mark.parametrize("unanswerable", [False, True])
def test_gold_positions_give_back_every_answer(left: bool, limit: int, unanswerable: bool) -> None:
    """Answers that no window holds whole are not given: the windows overlap by at least the longest answer."""
    made = tiny.make_questions(40, 0, unanswerable=unanswerable)
    rows = encoded(made, limit=limit, left=left)
    assert (len(rows) > 40) == (limit < 64)
    assert max(rows.lengths) <= limit
    assert rows.judged == 40
    predicted = predicted_by_truth(rows)
    texts = [row["answers"]["text"] for row in made]
    assert answers_of(predicted) == [own[0] if own else "" for own in texts]
    assert ANSWERING.score(predicted) == {"f1": 100.0, "exact_match": 100.0}


@pytest.mark.parametrize("left", [False, True])
def test_windows_cover_the_context_and_overlap(left: bool) -> None:
    words = [f"w{i}" for i in range(60)]
    row = {"question": "w88 w89", "context": " ".join(words), "answers": {"text": [], "answer_start": []}}
    rows = encoded([row], limit=20, left=left)
    own = windows_of(rows)
    assert set(own.example) == {0}
    parts = [[own.contexts[0][a:b] for a, b in offsets if a >= 0] for offsets in own.offsets]
    # 20 - 3 special tokens - 2 of the question, and a quarter of the limit in common
    assert [len(part) for part in parts[:-1]] == [15] * (len(parts) - 1)
    assert all(one[-5:] == other[:5] for one, other in pairwise(parts))
    assert {word for part in parts for word in part} == set(words)
    names = tiny.make_tokenizer().convert_ids_to_tokens(rows.tokens[0]["input_ids"])
    assert names.index("w88") == (17 if left else 1)
    assert rows.labels == [[0, 0]] * len(parts)
    assert not rows.left_padded


def test_only_the_window_that_holds_the_whole_answer_says_where_it_is() -> None:
    words = [f"w{i}" for i in range(40)]
    context = " ".join(words)
    row = {"question": "w80", "context": context}
    answer = {"text": ["w13 w14 w15 w16"], "answer_start": [context.index("w13")]}
    rows = encoded([{**row, "answers": answer}], limit=20)
    assert rows.labels is not None
    for label, offsets in zip(cast("list[list[int]]", rows.labels), windows_of(rows).offsets, strict=True):
        spoken = {context[a:b] for a, b in offsets if a >= 0}
        if {"w13", "w14", "w15", "w16"} <= spoken:
            assert context[offsets[label[0], 0] : offsets[label[1], 1]] == "w13 w14 w15 w16"
        else:
            assert label == [0, 0]
    assert sum(label != [0, 0] for label in rows.labels) == 1


def test_an_answer_that_starts_inside_a_token_is_that_token() -> None:
    row = {"question": "w1", "context": "w2 w34 w5", "answers": {"text": ["34"], "answer_start": [4]}}
    (label,) = encoded([row]).labels or []
    # [CLS] w1 [SEP] w2 w34 w5 [SEP]
    assert label == [4, 4]


def test_long_questions_are_cut_and_short_rows_refused() -> None:
    row = {"question": "  " + "w1 " * 50, "context": "w2 " * 9, "answers": {"text": ["w2"], "answer_start": [0]}}
    rows = encoded([row], limit=12)
    assert all(row["input_ids"].count(5) == 6 for row in rows.tokens)
    assert sum((offsets[:, 0] >= 0).sum() for offsets in windows_of(rows).offsets) >= 9
    for limit in (3, 5):
        with pytest.raises(DataError, match=f"rows of {limit} tokens have no place for a question") as caught:
            encoded([row], limit=limit)
        assert caught.value.option == "max_length"


def test_a_context_without_a_token_has_no_answer() -> None:
    row = {"question": "w1", "context": "", "answers": {"text": ["w2"], "answer_start": [0]}}
    rows = encoded([row])
    assert rows.labels == [[0, 0]]
    assert answers_of(predicted_by_truth(rows)) == [""]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("w2", "row 2 .*: 'w2' in column 'answers' is no list of answers; it must be an object"),
        (None, "is no list of answers"),
        ({"text": "w2", "answer_start": 0}, "is no list of answers"),
        ({"text": ["w2"]}, "is no list of answers"),
        ({"text": ["w2"], "answer_start": []}, "two lists of one length"),
        ({"text": [2], "answer_start": [0]}, "an answer in column 'answers' is 2 at 0; a text and the number"),
        ({"text": ["w2"], "answer_start": ["0"]}, "is 'w2' at '0'"),
        ({"text": ["w2"], "answer_start": [True]}, "is 'w2' at True"),
        ({"text": ["w2"], "answer_start": [-1]}, "starts at character -1"),
    ],
)
def test_bad_answers_are_one_clear_error(answers: object, message: str) -> None:
    good = {"question": "w1", "context": "w2 w3", "answers": {"text": [], "answer_start": []}}
    with pytest.raises(DataError, match=message) as caught:
        encoded([good, {**good, "answers": answers}])
    assert "\n" not in str(caught.value)
    # without labels nobody reads them
    assert encoded([good, {**good, "answers": answers}], labelled=False).labels is None


def test_other_bad_rows_are_one_clear_error() -> None:
    good = {"question": "w1", "context": "w2 w3", "answers": {"text": [], "answer_start": []}}
    for row, message in (
        ({**good, "context": None}, "no text in column 'context'"),
        ({**good, "question": 7}, "no text in column 'question': 7"),
        ({"question": "w1", "answers": {}}, "no column 'context'"),
    ):
        with pytest.raises(DataError, match=message):
            encoded([row])
    with pytest.raises(DataError, match="no column 'answers'; it has: question, context"):
        encoded([{"question": "w1", "context": "w2"}])

    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(UnsupportedModelError, match="a Slow cannot tell where in a text a token comes from"):
        encode([good], TASK, slow, config=None, limit=9)


def brute_force(start: np.ndarray, end: np.ndarray, offsets: np.ndarray, longest: int) -> tuple[float, tuple[int, int]]:
    """Every span of one window."""
    best, span = -np.inf, (0, 0)
    for i in range(len(start)):
        for j in range(i, min(len(end), i + longest)):
            if offsets[i, 0] >= 0 and offsets[j, 0] >= 0 and start[i] + end[j] > best:
                best, span = start[i] + end[j], (offsets[i, 0], offsets[j, 1])
    return float(best), (int(span[0]), int(span[1]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_are_those_of_trying_every_span(seed: int, unanswerable: bool) -> None:
    """Windows of at most 20 tokens: the best starts and ends are all of them."""
    made = tiny.make_questions(12, seed, unanswerable=unanswerable)
    rows = encoded(made, limit=20)
    generator = torch.Generator().manual_seed(seed)
    # a logit for every token at every place; some questions are said to have no answer
    table = torch.randn(2, 20, tiny.VOCABULARY, generator=generator)
    table[:, 0] = 1.9

    def logits(ids: Tensor) -> Tensor:
        return table[:, torch.arange(ids.shape[-1]), ids]

    predicted = gather(
        lambda inputs: SimpleNamespace(
            **dict(zip(("start_logits", "end_logits"), logits(inputs["input_ids"]), strict=True))
        ),
        ANSWERING,
        tiny.make_batches(rows, 100),
        context=rows.context,
    )
    own = windows_of(rows)
    best, null = [(-np.inf, "")] * 12, [np.inf] * 12
    for row, example, offsets in zip(rows.tokens, own.example, own.offsets, strict=True):
        start, end = logits(torch.tensor(row["input_ids"])).numpy().astype(np.float64)
        score, (a, b) = brute_force(start, end, offsets, 30)
        null[example] = min(null[example], start[0] + end[0])
        best[example] = max(best[example], (score, own.contexts[example][a:b]), key=lambda found: found[0])
    expected = ["" if unanswerable and n > score else text for n, (score, text) in zip(null, best, strict=True)]
    assert answers_of(predicted) == expected
    assert 0 < sum(n > score for n, (score, _) in zip(null, best, strict=True)) < 12


def test_answers_are_at_most_thirty_tokens_long() -> None:
    words = " ".join(f"w{i}" for i in range(60))
    row = {"question": "w80", "context": words, "answers": {"text": ["w0"], "answer_start": [0]}}
    rows = encoded([row], limit=80)
    # [CLS] w80 [SEP] w0 ...
    for last, expected in ((29, 30), (30, 6)):
        start, end = torch.zeros(1, 64), torch.zeros(1, 64)
        start[0, 3], end[0, 3 + last] = 5.0, 5.0
        end[0, 8] = 4.0
        batch = tiny.make_batches(rows, 100)[0]
        found = per_end(SimpleNamespace(start_logits=start, end_logits=end), batch)
        predicted = Predicted(kept_of(found).numpy(), np.array([0, 0]), None, rows.context)
        assert answers_of(predicted) == [" ".join(f"w{i}" for i in range(expected))]


def test_what_is_kept_has_one_width_and_holds_the_best() -> None:
    for width in (3, 20, 57):
        values = torch.randn(4, width)
        values[0, 1:] = -torch.inf
        kept = kept_of(Predictions(values, torch.zeros(4)))
        assert kept.shape == (4, 41)
        assert torch.equal(kept[:, -1], values[:, 0])
        for row in range(4):
            order = values[row].argsort(descending=True, stable=True)[:20]
            assert torch.equal(kept[row, 20 : 20 + len(order)], values[row][order])
            assert kept[row, : len(order)].tolist() == (order.tolist() if row else [0] + [-1] * (len(order) - 1))
        assert (kept[:, width:20] == -1).all()
        assert (kept[:, 20 + width : 40] == -torch.inf).all()


@pytest.mark.parametrize("longest", [2, 9, 33, 70])
@pytest.mark.parametrize("labelled", [False, True])
def test_gradients_at_padding_are_zero_and_none_is_nan(longest: int, labelled: bool) -> None:
    """Two classes, up to 32 and more are computed in different ways."""
    mask = (torch.arange(longest) < torch.tensor([[1], [longest], [max(1, longest // 2)]])).long()
    labels = torch.tensor([[0, 0], [longest - 1, longest - 1], [0, 0]])
    logits = torch.randn(2, 3, longest, requires_grad=True)
    batch = Batch(inputs={"attention_mask": mask}, rows=torch.arange(3), labels=labels)
    found = per_end(SimpleNamespace(start_logits=logits[0], end_logits=logits[1]), batch)
    assert found.rows.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.labels is not None
    assert found.labels.tolist() == [0, longest - 1, 0, 0, longest - 1, 0]
    start = Cotangents(ANSWERING.likelihood, labelled=labelled, rows=3, seed=0).of(found)
    assert torch.isfinite(start).all()
    assert start[1].any() or longest == 1
    found.values.backward(start)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, ~mask.bool()].any()


def test_directions_have_the_covariance_of_the_fisher_information_over_what_is_possible() -> None:
    values = torch.tensor([[1.0, -0.5, 0.3, -torch.inf, -torch.inf]])
    p = values.softmax(dim=-1)[0]
    signs = torch.tensor([[1.0 if i >> k & 1 else -1.0 for k in range(5)] for i in range(32)])
    found = torch.cat([ANSWERING.likelihood.direction(values, each[None]) for each in signs])
    assert torch.allclose(found.T @ found / 32, torch.diag(p) - p[:, None] * p, atol=1e-6)


def test_texts_are_compared_as_in_the_official_script() -> None:
    """Worked out by hand from evaluate-v2.0.py."""
    assert normalise("The  Cat's, a (big) one.") == "cats big one"
    assert normalise("An apple; the thesis") == "apple thesis"
    assert normalise("a") == ""
    assert overlap("the cat sat", "cat sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert overlap("cat cat", "cat") == pytest.approx(2 / 3)
    assert overlap("dog", "cat") == 0.0
    assert overlap("", "") == 1.0
    assert overlap("the", "") == 1.0
    assert overlap("", "cat") == 0.0


def test_scores_take_the_best_right_answer_of_each_example() -> None:
    """Two examples: "w1 w2" against "w2" and "w1 w2 w3", and one that is not answered."""
    rows = encoded(
        [
            {
                "question": "w9",
                "context": "w1 w2 w3",
                "answers": {"text": ["w2", "w1 w2 w3"], "answer_start": [3, 0]},
            },
            {"question": "w9", "context": "w5 w6", "answers": {"text": [], "answer_start": []}},
        ]
    )
    start, end = torch.full((2, 7), -9.0), torch.full((2, 7), -9.0)
    # [CLS] w9 [SEP] w1 w2 w3 [SEP]
    start[0, 3], end[0, 4] = 9.0, 9.0
    start[1, 0], end[1, 0] = 9.0, 9.0
    (batch,) = tiny.make_batches(rows, 100)
    found = per_end(SimpleNamespace(start_logits=start, end_logits=end), batch)
    order = found.rows.argsort(stable=True)
    predicted = Predicted(kept_of(found)[order].numpy(), found.rows[order].numpy(), None, rows.context)
    assert answers_of(predicted) == ["w1 w2", ""]
    scores = ANSWERING.score(predicted)
    assert list(scores) == ["f1", "exact_match"]
    assert scores["f1"] == pytest.approx(100 * (0.8 + 1.0) / 2)
    assert scores["exact_match"] == pytest.approx(50.0)


def test_batches_of_collators_say_where_answers_start_and_end() -> None:
    ids = torch.ones(3, 6, dtype=torch.long)
    starts, ends = torch.tensor([1, 2, 0]), torch.tensor([4, 2, 0])
    (batch,) = adopt([{"input_ids": ids, "start_positions": starts, "end_positions": ends}], CPU)
    assert set(batch.inputs) == {"input_ids"}
    assert batch.positions is None
    found = per_end(SimpleNamespace(start_logits=torch.zeros(3, 6), end_logits=torch.zeros(3, 6)), batch)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 0, 4, 2, 0]
