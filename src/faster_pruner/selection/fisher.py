"""First-order importance: the empirical or true Fisher information of the mask (Kwon et al. 2022, eq. 6-9).

`gradients` [N, U] holds the mask gradient of one sublayer: row i is dL_i/dm for example i at m = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faster_pruner.linalg.solve import solve_dtype


def grouped(gradients: Tensor, examples_per_group: int) -> Tensor:
    """Mean gradient of each run of `examples_per_group` rows: [N, U] -> [ceil(N / examples_per_group), U].

    The reference implementation takes the gradient of a mini-batch of 32 as one "example"; the mask gradient is linear,
    so this reproduces it from per-example gradients. 1 returns them unchanged.
    """
    if examples_per_group == 1:
        return gradients
    return torch.stack([group.mean(dim=0) for group in gradients.split(examples_per_group)])


def diagonal(gradients: Tensor) -> Tensor:
    """Diagonal of the Fisher information, ``F[u] = sum_i g[i, u]^2``: [N, U] -> [U], float64."""
    return gradients.to(solve_dtype(gradients.device)).square().sum(dim=0)


def block(gradients: Tensor) -> Tensor:
    """Block of the Fisher information of one sublayer, ``g' g``: [N, U] -> [U, U], float64."""
    wide = gradients.to(solve_dtype(gradients.device))
    return wide.T @ wide
