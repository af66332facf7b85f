"""Rearrangement against swaps whose costs are computed from scratch."""

from __future__ import annotations

import pytest
import torch

import oracles
from faster_pruner.selection.fisher import diagonal
from faster_pruner.selection.rearrange import rearrange


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep_count", [1, 3, 6])
def test_rearrangement_is_the_brute_force_swap(seed: int, keep_count: int) -> None:
    torch.manual_seed(seed)
    gradients = torch.randn(20, 8) + torch.randn(20, 1)
    keep = diagonal(gradients).argsort(descending=True)[:keep_count].sort().values
    found = rearrange(keep, gradients)
    assert found.tolist() == oracles.rearrange_by_brute_force(keep.tolist(), gradients)

    def cost(kept: torch.Tensor) -> float:
        gone = torch.ones(8, dtype=torch.bool)
        gone[kept] = False
        return float(gradients.double()[:, gone].sum(dim=1).square().sum())

    assert found.numel() == keep_count
    assert cost(found) <= cost(keep) + 1e-9


def test_rearrangement_leaves_full_and_empty_masks_alone() -> None:
    gradients = torch.randn(5, 4)
    assert rearrange(torch.arange(4), gradients).tolist() == [0, 1, 2, 3]
    assert rearrange(torch.empty(0, dtype=torch.long), gradients).tolist() == []
