"""A search over allocations by the loss of models that are cut and recovered, as EvoPress and Tyr search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Generations, candidates of each, and how far, as a standard deviation of logarithms, the losses that a candidate
# assumes are from those of its parent.
GENERATIONS, CANDIDATES, STEP = 3, 6, 0.3


def searched(
    best: nn.Module,
    count: int,
    *,
    made: Callable[[Tensor], nn.Module],
    loss: Callable[[nn.Module], float],
    seed: int,
    generations: int = GENERATIONS,
) -> nn.Module:
    """The best of a model and the candidates of some generations, each drawn around the best before it.

    Args:
        best: from our curves.
        count: of loss curves.
        made: from a factor [count] for each curve to a model.
        loss: of a model.
        seed: of what is drawn.
        generations: of `CANDIDATES` each.
    """
    generator = torch.Generator().manual_seed(seed)
    least, scales = loss(best), torch.zeros(count)
    for _ in range(generations):
        parent = scales
        for _ in range(CANDIDATES):
            tried = parent + STEP * torch.randn(count, generator=generator)
            model = made(tried.exp())
            found = loss(model)
            if found < least:
                least, scales, best = found, tried, model
    return best
