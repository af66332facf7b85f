"""Packing rows into batches, and batches that somebody else made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

import tiny
from faster_pruner.data.batches import EncodedRows, adopt, digest, pack, rows_with
from faster_pruner.errors import DataError

CPU = torch.device("cpu")


def test_packing_is_sorted_and_bounded() -> None:
    rows = tiny.make_rows(30)
    batches = tiny.make_batches(rows, 33)
    widths = [batch.inputs["input_ids"].shape for batch in batches]
    assert all(b * s <= 33 or b == 1 for b, s in widths)
    assert [s for _, s in widths] == sorted((s for _, s in widths), reverse=True)
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(30))
    for batch in batches:
        assert batch.mask is not None
        assert batch.labels is not None
        assert batch.mask.sum(dim=1).tolist() == [rows.lengths[i] for i in batch.rows.tolist()]
        for i, ids, mask, label in zip(
            batch.rows.tolist(), batch.inputs["input_ids"], batch.mask, batch.labels, strict=True
        ):
            assert ids[mask].tolist() == rows.tokens[i]["input_ids"]
            assert not ids[~mask].any()
            assert label == rows.labels[i]


def test_rows_that_differ_much_in_length_do_not_share_a_batch() -> None:
    tokens = [{"input_ids": [5] * length} for length in (40, 40, 40, 8, 8, 8)]
    batches = tiny.make_batches(EncodedRows(tokens=tokens, labels=None, padding={"input_ids": 0}), 200)
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(3, 40), (3, 8)]


def test_padding_may_lie_on_the_left() -> None:
    tokens = [{"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1]}, {"input_ids": [8], "token_type_ids": [1]}]
    rows = EncodedRows(tokens=tokens, labels=None, padding={"input_ids": 9, "token_type_ids": 0}, left_padded=True)
    (batch,) = tiny.make_batches(rows, 100)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_which_rows_are_differentiated_does_not_depend_on_the_packing() -> None:
    rows = tiny.make_rows(30)
    for tokens in (12, 1000):
        batches = pack(rows, tokens_per_batch=tokens, device=CPU, differentiated=11)
        flags = [batch.differentiated for batch in batches]
        assert flags == sorted(flags, reverse=True)
        chosen = [int(i) for batch in batches if batch.differentiated for i in batch.rows]
        assert sorted(chosen) == list(range(11))
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(30))


def test_rows_with_so_many_tokens() -> None:
    rows = tiny.make_rows(30)
    for tokens in (1, rows.lengths[0], rows.lengths[0] + 1, sum(rows.lengths) - 1, 10_000):
        count = rows_with(rows.lengths, tokens)
        assert count == 30 or sum(rows.lengths[:count]) >= tokens
        assert sum(rows.lengths[: count - 1]) < tokens


def test_batches_that_somebody_else_made() -> None:
    first = {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 4).long(), "labels": torch.arange(3)}
    second = BatchEncoding({"pixels": torch.ones(2, 3, 5, 5), "label": torch.ones(2, 6), "names": ["a", "b"]})
    batches = adopt([first, second], CPU)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    assert [set(batch.inputs) for batch in batches] == [{"input_ids", "attention_mask"}, {"pixels"}]
    assert [batch.labels.shape for batch in batches if batch.labels is not None] == [(3,), (2, 6)]
    assert [batch.mask is None for batch in batches] == [False, True]
    assert all(batch.differentiated for batch in batches)
    assert adopt([{"x": torch.ones(2, 1)}], CPU)[0].labels is None


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([torch.ones(2, 3)], "batch 0 is a Tensor; a dictionary of tensors is needed"),
        ([{"x": torch.ones(2, 3)}, [1, 2]], "batch 1 is a list"),
        ([{"text": ["a", "b"]}], "batch 0 is a dict; a dictionary of tensors is needed"),
        ([{"x": torch.ones(2, 3), "labels": torch.ones(3)}], "batch 0 do not have one first dimension"),
        ([{"x": torch.ones(2, 3), "scale": torch.tensor(1.0)}], "batch 0 do not have one first dimension"),
        ([{"x": torch.ones(0, 3)}], "batch 0 do not have one first dimension"),
        ([{"labels": torch.ones(3)}], "batch 0 do not have one first dimension"),
        ([], "no calibration batches"),
    ],
)
def test_anything_else_is_one_clear_error(made: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        adopt(made, CPU)


def test_a_generator_that_is_used_up_says_so() -> None:
    def batches() -> Iterator[dict[str, torch.Tensor]]:
        yield {"x": torch.ones(1, 2)}

    made = batches()
    assert len(adopt(made, CPU)) == 1
    with pytest.raises(DataError, match="generator, it may be used up"):
        adopt(made, CPU)


def test_the_digest_tells_every_difference_apart() -> None:
    batch = adopt([{"x": torch.arange(6.0).view(2, 3), "labels": torch.tensor([0, 1])}], CPU)[0]
    others = [
        replace(batch, inputs={"y": batch.inputs["x"]}),
        replace(batch, inputs={"x": batch.inputs["x"].view(2, 3, 1)}),
        replace(batch, inputs={"x": batch.inputs["x"].double()}),
        replace(batch, inputs={"x": batch.inputs["x"] + 1e-6}),
        replace(batch, labels=None),
        replace(batch, labels=torch.tensor([1, 0])),
    ]
    found = [digest([each]) for each in (batch, *others)] + [digest([batch, batch])]
    assert len(set(found)) == len(found)
    transposed = batch.inputs["x"].T.contiguous().T
    assert digest([replace(batch, inputs={"x": transposed})]) == found[0]


def test_the_digest_of_rows_is_of_their_tokens_labels_and_order() -> None:
    rows = tiny.make_rows()
    others = [replace(rows, labels=None), replace(rows, tokens=list(rows.tokens)[::-1]), tiny.make_rows(seed=1)]
    assert len({each.digest() for each in (rows, *others)}) == 4
    assert tiny.make_rows().digest() == rows.digest()


def positioned(**changes: Any) -> EncodedRows:
    """Three rows of 3, 1 and 2 tokens; the middle one has no position."""
    tokens = [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}, {"input_ids": [9, 4]}]
    rows = EncodedRows(tokens=tokens, labels=[[1, 0], [], [2]], padding={"input_ids": 0}, positions=[[0, 2], [], [1]])
    return replace(rows, **changes)


@pytest.mark.parametrize("left", [False, True])
def test_positions_and_their_labels_move_with_the_padding(left: bool) -> None:
    (batch,) = tiny.make_batches(positioned(left_padded=left), 100)
    assert batch.rows.tolist() == [0, 2, 1]
    assert batch.positions is not None
    assert batch.labels is not None
    assert batch.inputs["input_ids"][batch.positions].tolist() == [5, 7, 4]
    assert batch.labels[batch.positions].tolist() == [1, 0, 2]
    assert (batch.labels[~batch.positions] == -100).all()
    assert (batch.positions.shape, batch.positions.sum(dim=1).tolist()) == ((3, 3), [2, 1, 0])
    (bare,) = tiny.make_batches(positioned(left_padded=left, labels=None), 100)
    assert bare.labels is None
    assert bare.positions is not None
    assert torch.equal(bare.positions, batch.positions)


def test_some_rows_of_a_batch_are_a_batch() -> None:
    (batch,) = tiny.make_batches(positioned(), 100)
    some = batch.chosen(torch.tensor([2, 0]))
    assert some.rows.tolist() == [0, 1]
    assert some.inputs["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert some.positions is not None
    assert some.labels is not None
    assert some.positions.tolist() == [[False] * 3, [True, False, True]]
    assert some.labels.tolist() == [[-100] * 3, [1, -100, 0]]


def pictures(count: int = 5) -> EncodedRows:
    pixels = torch.arange(count * 12.0).view(count, 3, 2, 2)
    return EncodedRows(
        tokens=[{}] * count, labels=list(range(count)), padding={}, arrays={"pixel_values": pixels}, row_tokens=17
    )


def test_rows_of_arrays_alone_keep_their_order() -> None:
    rows = pictures()
    assert (rows.lengths, rows.mean_length) == ([17] * 5, 17.0)
    batches = tiny.make_batches(rows, 40)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(set(batch.inputs) == {"pixel_values"} and batch.mask is None for batch in batches)
    joined = torch.cat([batch.inputs["pixel_values"] for batch in batches])
    assert torch.equal(joined, rows.arrays["pixel_values"])
    assert [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert rows_with(rows.lengths, 18) == 2


def test_labels_without_a_class_say_where_predictions_are_read() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    labels = torch.tensor([[-100, 1, 2], [0, -100, -100]])
    (batch,) = adopt([{"input_ids": ids, "labels": labels}], CPU)
    assert batch.positions is not None
    assert batch.positions.tolist() == [[False, True, True], [True, False, False]]
    for other in (labels.clamp(min=0), labels.float(), labels[:, :2]):
        (batch,) = adopt([{"input_ids": ids, "labels": other}], CPU)
        assert batch.positions is None
        assert batch.labels is not None
        assert torch.equal(batch.labels, other)


def test_starts_and_ends_become_one_label() -> None:
    made = {
        "input_ids": torch.ones(2, 3),
        "start_positions": torch.tensor([1, 0]),
        "end_positions": torch.tensor([2, 0]),
    }
    (batch,) = adopt([made], CPU)
    assert set(batch.inputs) == {"input_ids"}
    assert batch.labels is not None
    assert batch.labels.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize("end", [3, -1])
def test_answers_that_are_not_in_the_row_are_one_clear_error(end: int) -> None:
    made = {"input_ids": torch.ones(1, 3), "start_positions": torch.tensor([1]), "end_positions": torch.tensor([end])}
    with pytest.raises(DataError, match="end_positions of batch 0 are no positions of its 3 tokens"):
        adopt([made], CPU)


def test_digests_tell_positions_and_arrays_apart() -> None:
    rows, images = positioned(), pictures()
    others = [replace(rows, positions=[[0, 1], [], [1]]), replace(rows, positions=None), images]
    others.append(replace(images, arrays={"pixel_values": images.arrays["pixel_values"] + 1}))
    assert len({each.digest() for each in (rows, *others)}) == 5
    (batch,) = tiny.make_batches(rows, 100)
    assert digest([batch]) != digest([replace(batch, positions=None)])
