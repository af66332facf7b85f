"""Mask tuning: one scale per unit (Kwon et al. 2022, section 4.3), from the Gram matrices alone.

``min_m || (X * m) W' - R ||^2`` over the scales m of the U units of g adjacent columns has the normal matrix
``blocksum_g(A * (W' W))`` and the right-hand side ``blocksum_g(diag(M W))``, with A = X' X and M = X' R:
heads and neurons alike.
"""

from __future__ import annotations

from torch import Tensor

from faster_pruner.linalg.solve import solve_dtype


def mask_normal_equations(gram: Tensor, cross: Tensor, weight: Tensor, unit_size: int) -> tuple[Tensor, Tensor]:
    """Normal matrix [U, U] and right-hand side [U] of mask tuning, float64.

    Args:
        gram: [n, n] A.
        cross: [n, d] M, with R = target - residual - bias.
        weight: [d, n] the output projection.
        unit_size: g.
    """
    dtype = solve_dtype(gram.device)
    w = weight.to(gram.device, dtype)
    units = gram.shape[0] // unit_size
    matrix = gram.to(dtype) * (w.T @ w)
    matrix = matrix.view(units, unit_size, units, unit_size).sum(dim=(1, 3))
    right_side = (cross.to(dtype) * w.T).sum(dim=1).view(units, unit_size).sum(dim=1)
    return matrix, right_side
