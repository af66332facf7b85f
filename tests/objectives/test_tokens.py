"""Token classification: words to tokens, predictions where words start, and entities as seqeval counts them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

import tiny
from faster_pruner.data.batches import Batch, adopt
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.objectives.evaluation import confidence, predict_rows
from faster_pruner.objectives.objective import Predicted
from faster_pruner.objectives.tokens import encode, objective_for, per_word

TASK = Task(name="", text_column="tokens", label_column="ner_tags", kind="token-classification")
CLASSES = tiny.ENTITY_CLASSES


def config(names: tuple[str, ...] = CLASSES) -> Any:
    return SimpleNamespace(
        num_labels=len(names), id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )


def encoded(words: list[Any], tags: list[Any], *, limit: int = 64, task: Task = TASK, **changes: Any) -> Any:
    rows = [{"tokens": own, "ner_tags": tag} for own, tag in zip(words, tags, strict=True)]
    return encode(rows, task, tiny.make_tokenizer(), config=config(), limit=limit, **changes)


def test_predictions_are_read_at_the_first_token_of_each_word() -> None:
    # [CLS] w1 - w2 w3 [SEP]: the tokenizer splits the first word; the third one has no token
    found = encoded([["w1-w2", "w3", " "], []], [[1, 2, 0], []])
    assert found.positions == [[1, 4], []]
    assert found.labels == [[1, 2], []]
    assert found.lengths == [6, 2]
    assert found.truncated == 0


@pytest.mark.parametrize("left", [False, True])
def test_labels_lie_at_their_words_wherever_padding_goes(left: bool) -> None:
    rows = replace(encoded([["w1-w2", "w3"], ["w4"]], [[1, 2], [3]]), left_padded=left)
    (batch,) = tiny.make_batches(rows, 100)
    assert batch.positions is not None
    assert batch.labels is not None
    words = {i: word for word, i in tiny.make_tokenizer().get_vocab().items()}
    at = [words[i] for i in batch.inputs["input_ids"][batch.positions].tolist()]
    assert at == ["w1", "w3", "w4"]
    assert batch.labels[batch.positions].tolist() == [1, 2, 3]
    assert (batch.labels[~batch.positions] == -100).all()


def test_words_behind_the_limit_are_neither_predicted_nor_judged() -> None:
    found = encoded([["w1", "w2", "w3"], ["w4"]], [[1, 2, 2], [0]], limit=4)
    assert found.positions == [[1, 2], [1]]
    assert found.labels == [[1, 2], [0]]
    assert found.truncated == 1


def test_rows_need_no_labels() -> None:
    rows = [{"tokens": ["w1", "w2"]}]
    found = encode(rows, TASK, tiny.make_tokenizer(), config=config(), limit=9, labelled=False)
    assert (found.labels, found.positions) == (None, [[1, 2]])


def test_classes_come_by_index_or_name_in_any_order() -> None:
    assert encoded([["w1", "w2", "w3"]], [["B-B", "i-b", "O"]]).labels == [[3, 4, 0]]
    named = replace(TASK, label_names=("b-b", "i-b", "b-a", "i-a", "o"))
    assert encoded([["w1", "w2", "w3"]], [[0, 1, 4]], task=named).labels == [[3, 4, 0]]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ("w1 w2", [0, 0], "row 2 .* has no list of words in column 'tokens': 'w1 w2'"),
        (["w1", 3], [0, 0], "row 2 .* has no text in column 'tokens': 3"),
        (["w1", "\ud800"], [0, 0], "half a character"),
        (["w1"], 0, "row 2 .* has no list of labels in column 'ner_tags', one per word: 0"),
        (["w1", "w2"], [0], "row 2 .* has 2 words in column 'tokens', but 1 labels"),
        (["w1"], [5], "label 5 in column 'ner_tags' is not a class of the model, which has 5"),
        (["w1"], [-100], "label -100 .* is not a class"),
        (["w1"], ["B-C"], "label 'B-C' .* is not one of the model's: o, b-a"),
    ],
)
def test_bad_rows_are_one_clear_error(words: object, tags: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encoded([["w1"], words], [[0], tags])
    assert "\n" not in str(caught.value)


def test_columns_that_are_missing_and_tokenizers_that_cannot_tell_words_apart_are_refused() -> None:
    with pytest.raises(DataError, match="no column 'ner_tags'; it has: tokens"):
        encode([{"tokens": ["w1"]}], TASK, tiny.make_tokenizer(), config=config(), limit=9)

    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(
        UnsupportedModelError, match="a Slow cannot tell which word a token belongs to; a fast tokenizer"
    ):
        encode([{"tokens": ["w1"], "ner_tags": [0]}], TASK, slow, config=config(), limit=9)


def random_predicted(seed: int, rows: int = 40) -> tuple[Predicted, list[list[str]], list[list[str]]]:
    """Predictions that are right more often than not, and both sides' names."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, rows)
    labels = generator.choice(len(CLASSES), lengths.sum(), p=[0.4, 0.2, 0.15, 0.15, 0.1])
    said = np.where(generator.random(labels.size) < 0.6, labels, generator.integers(0, len(CLASSES), labels.size))
    predicted = Predicted(np.eye(len(CLASSES))[said].astype(np.float32), np.repeat(np.arange(rows), lengths), labels)
    cuts = lengths.cumsum()[:-1]
    names = [[[CLASSES[i] for i in part] for part in np.split(each, cuts)] for each in (labels, said)]
    return predicted, names[0], names[1]


@pytest.mark.parametrize("seed", range(8))
def test_entities_are_those_of_seqeval(seed: int) -> None:
    predicted, true, said = random_predicted(seed)
    found = objective_for(config()).score(predicted)
    for name, oracle in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(100 * oracle(true, said, mode="strict", scheme=IOB2))
    assert found["accuracy"] == pytest.approx(100 * float((predicted.values.argmax(1) == predicted.labels).mean()))
    assert next(iter(found)) == "f1"


def test_intervals_are_those_of_scoring_every_sample_anew() -> None:
    before, after = random_predicted(0)[0], replace(random_predicted(1)[0], labels=None)
    # the same rows and labels, other predictions
    values = np.random.default_rng(3).permutation(before.values)
    after = replace(before, values=values)
    objective = objective_for(config())
    found = confidence("f1", objective, before, after, resamples=200)
    generator, samples = np.random.default_rng(0), []
    parts = [np.flatnonzero(before.rows == row) for row in range(40)]
    for _ in range(200):
        chosen = generator.integers(0, 40, 40)
        places = np.concatenate([parts[row] for row in chosen])
        rows = np.repeat(np.arange(40), [len(parts[row]) for row in chosen])
        scores = [
            objective.score(Predicted(each.values[places], rows, before.labels[places]))["f1"]
            for each in (before, after)
            if before.labels is not None
        ]
        samples.append((*scores, scores[1] - scores[0]))
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    assert found.before == pytest.approx((low[0], high[0]))
    assert found.after == pytest.approx((low[1], high[1]))
    assert found.change == pytest.approx((low[2], high[2]))


def test_no_entities_at_all_score_nothing_without_a_warning() -> None:
    predicted = Predicted(np.eye(5)[[0, 0]].astype(np.float32), np.array([0, 1]), np.array([0, 0]))
    found = objective_for(config()).score(predicted)
    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (0.0, 0.0, 0.0, 100.0)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("O", "B-A", "I-A"), "f1"),
        (("B-A", "I-A"), "f1"),
        (("O", "B-A"), "f1"),
        (("NOUN", "VERB"), "accuracy"),
        (("O", "I-A"), "accuracy"),
        (("O", "B-A", "I-B"), "accuracy"),
        (("LABEL_0", "LABEL_1"), "accuracy"),
        (("O",), "accuracy"),
        (("O", "B-A", "I-A", "S-A"), "accuracy"),
    ],
)
def test_what_judges_is_decided_by_the_names_of_the_classes(names: tuple[str, ...], first: str) -> None:
    objective = objective_for(config(names))
    assert next(iter(objective.metrics)) == first
    assert ("f1" in objective.metrics) == (first == "f1")
    assert objective.auto_class == "AutoModelForTokenClassification"


def test_predictions_are_those_of_every_row_alone() -> None:
    model = tiny.make_tagger()
    rows = encode(tiny.make_tagged(9, 0), TASK, tiny.make_tokenizer(), config=model.config, limit=64)
    found = predict_rows(model, objective_for(model.config), rows)
    assert rows.positions is not None
    assert rows.labels is not None
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([row["input_ids"]])).logits[0, torch.tensor(places)]
            for row, places in zip(rows.tokens, rows.positions, strict=True)
        ]
    assert np.allclose(found.values, torch.cat(alone).numpy(), atol=1e-5)
    assert found.rows.tolist() == [i for i, places in enumerate(rows.positions) for _ in places]
    assert found.labels is not None
    assert found.labels.tolist() == [label for own in rows.labels for label in own]


def test_batches_that_somebody_made_say_by_their_labels_where_predictions_are_read() -> None:
    labels = torch.tensor([[-100, 1, -100, 2], [-100, 0, -100, -100]])
    ids = torch.arange(8).view(2, 4)
    (batch,) = adopt([{"input_ids": ids, "attention_mask": torch.ones(2, 4), "labels": labels}], torch.device("cpu"))
    returned = SimpleNamespace(logits=torch.arange(8.0).view(2, 4, 1))
    found = per_word(returned, batch)
    assert found.values.flatten().tolist() == [1.0, 3.0, 5.0]
    assert found.rows.tolist() == [0, 0, 1]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 0]


def test_without_positions_all_real_tokens_are_read_and_without_a_mask_all() -> None:
    returned = SimpleNamespace(logits=torch.arange(6.0).view(2, 3, 1))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    masked = Batch(inputs={"attention_mask": mask}, rows=torch.tensor([4, 2]), labels=None)
    assert per_word(returned, masked).values.flatten().tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert per_word(returned, masked).rows.tolist() == [4, 4, 2, 2, 2]
    assert per_word(returned, replace(masked, inputs={})).values.numel() == 6
