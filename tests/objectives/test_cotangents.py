"""Where a backward pass starts: directions that belong to rows and predictions, gradients that need labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from faster_pruner.errors import OptionError
from faster_pruner.objectives.likelihoods import Bernoulli, Categorical, Compared, Gaussian
from faster_pruner.objectives.objective import Cotangents, Predictions


def zeros(rows: Tensor, classes: int) -> Predictions:
    return Predictions(torch.zeros(rows.numel(), classes), rows)


def test_signs_belong_to_rows_not_batches() -> None:
    rows = tiny.make_rows(12, labels=1)
    found: list[Tensor] = []
    for tokens in (20, 1000):
        cotangents = Cotangents(Bernoulli(), labelled=False, rows=12, seed=1)
        out = torch.zeros(12, 3)
        for batch in tiny.make_batches(rows, tokens):
            out[batch.rows] = cotangents.of(zeros(batch.rows, 3))
        found.append(out)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0].abs(), torch.full((12, 3), 0.5))
    assert len({tuple(row) for row in found[0].tolist()}) > 1


def test_several_predictions_of_a_row_have_the_same_signs_however_rows_are_packed() -> None:
    """Rows 0, 1, 2, 3 with 1, 4, 2 and 3 predictions, in two orders and two cuts."""
    counts = {0: 1, 1: 4, 2: 2, 3: 3}
    found: list[dict[int, Tensor]] = []
    for packing in ([[0, 1, 2, 3]], [[2], [3, 1], [0]]):
        cotangents = Cotangents(Gaussian(), labelled=False, rows=4, seed=5)
        by_row: dict[int, Tensor] = {}
        for batch in packing:
            rows = torch.tensor([row for row in batch for _ in range(counts[row])])
            signs = cotangents.of(zeros(rows, 6))
            by_row |= {row: signs[rows == row] for row in batch}
        found.append(by_row)
    assert all(torch.equal(found[0][row], found[1][row]) for row in counts)


def test_predictions_of_a_row_that_lie_apart_are_told_apart() -> None:
    """Starts of all rows first, then ends: the second of a row is its second wherever it stands."""
    together = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([0, 1, 0, 1])
    a, b = (Cotangents(Gaussian(), labelled=False, rows=2, seed=0).of(zeros(rows, 8)) for rows in (together, apart))
    for row in range(2):
        assert torch.equal(a[together == row], b[apart == row])


def test_signs_of_all_predictions_are_independent() -> None:
    """Over 2000 rows, products of two signs average to nothing: of classes, of predictions, of neighbouring rows."""
    rows = torch.arange(2000).repeat_interleave(3)
    signs = Cotangents(Gaussian(), labelled=False, rows=2000, seed=0).of(zeros(rows, 2)).view(2000, 6)
    correlation = signs.T @ signs / 2000
    assert (correlation - torch.eye(6)).abs().max() < 0.09
    assert (signs[1:].T @ signs[:-1] / 1999).abs().max() < 0.09
    assert signs.mean(dim=0).abs().max() < 0.09


def test_another_seed_gives_other_signs() -> None:
    rows = torch.arange(40).repeat_interleave(2)
    a, b, again = (Cotangents(Gaussian(), labelled=False, rows=40, seed=seed).of(zeros(rows, 2)) for seed in (0, 1, 0))
    assert torch.equal(a, again)
    agreeing = (a == b).float().mean()
    assert 0.3 < agreeing < 0.7


def test_labels_are_used_and_asked_for() -> None:
    cotangents = Cotangents(Categorical(), labelled=True, rows=2, seed=0)
    values, rows = torch.zeros(2, 2), torch.arange(2)
    expected = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])
    assert torch.equal(cotangents.of(Predictions(values, rows, torch.tensor([0, 1]))), expected)
    with pytest.raises(OptionError, match="gradients of labels, and the rows have none"):
        cotangents.of(Predictions(values, rows))


def test_predictions_over_positions_keep_their_signs_whatever_they_are_padded_to() -> None:
    """Two predictions a row, over as many positions as the longest row of the batch has."""
    found: list[dict[int, Tensor]] = []
    for packing in ([([0, 1], 9), ([2], 5)], [([2, 0], 7), ([1], 9)]):
        cotangents = Cotangents(Gaussian(), labelled=False, rows=3, seed=2)
        by_row: dict[int, Tensor] = {}
        for batch, width in packing:
            rows = torch.tensor([*batch, *batch])
            signs = cotangents.of(zeros(rows, width))
            by_row |= {row: signs[rows == row, :5] for row in batch}
        found.append(by_row)
    assert all(torch.equal(found[0][row], found[1][row]) for row in range(3))


def test_one_prediction_per_row_may_be_as_wide_as_its_batch() -> None:
    cotangents = Cotangents(Gaussian(), labelled=False, rows=200, seed=0)
    narrow, wide, again = (cotangents.of(zeros(torch.arange(200), width)) for width in (3, 7, 3))
    assert torch.equal(narrow, again)
    assert torch.equal(wide[:, :3], narrow)
    assert (wide.T @ wide / 200 - torch.eye(7)).abs().max() < 0.3


def test_vectors_that_are_compared_move_by_themselves_and_in_their_similarities() -> None:
    """Over many signs the covariance is half the identity and half the spread of the batch, of the same trace."""
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1])
    signs = torch.randint(0, 2, (200_000, 5), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    spread = values.T @ values * (5 / values.square().sum())
    found = Compared().direction(values, signs)
    covariance = found.T @ found / len(found)
    torch.testing.assert_close(covariance, (torch.eye(5) + spread) / 2, atol=0.02, rtol=0)


def test_a_small_change_of_all_vectors_costs_what_it_does_to_their_similarities() -> None:
    """Without the identity, the metric is that of the squared change of a vector's similarities with all of them."""
    generator = torch.Generator().manual_seed(0)
    values, change = torch.randn(4000, 4, generator=generator), torch.randn(4, generator=generator)
    values *= torch.tensor([2.0, 1.0, 0.5, 0.25])
    moved = 1e-3 * change
    similarities = ((values @ (values[0] + moved) - values @ values[0]).square().sum()) / values.square().sum() * 4
    root = Compared().direction(values, torch.eye(4))
    metric = root.T @ root * 2 - torch.eye(4)
    torch.testing.assert_close(moved @ metric @ moved, similarities, rtol=1e-3, atol=0)


def test_vectors_that_are_all_zero_still_have_directions() -> None:
    assert torch.equal(Compared().direction(torch.zeros(2, 3), torch.ones(2, 3)), torch.full((2, 3), 0.5**0.5))
