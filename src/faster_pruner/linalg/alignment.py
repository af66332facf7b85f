"""Alignment: re-aim the producers of a sublayer at the inputs that they had in the dense model.

What was removed and refitted before a sublayer leaves its producers with inputs x [T, d] that differ from the dense
model's x* [T, d]. The best linear map between them, ``min_P,c ||x P + c - x*||^2 + ridge ||P - I||^2``, is folded into
every producer: ``W <- W P'`` and ``b <- b + W c``. One d x d system serves all producers of a sublayer, because a
least-squares fit of their outputs W x* is W times the fit of x*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.linalg.direct import Cholesky
from faster_pruner.linalg.gram import RegressionMoments
from faster_pruner.linalg.solve import Solution


@dataclass(frozen=True)
class Alignment:
    """The fitted map.

    Attributes:
        matrix: [d, d] P, float64.
        offset: [d] c, zero when fitted without.
        solution: of the solve.
    """

    matrix: Tensor
    offset: Tensor
    solution: Solution

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """New weight [n, d] and bias [n] of one producer."""
        wide = weight.to(self.matrix)
        return wide @ self.matrix.T, None if bias is None else bias.to(wide) + wide @ self.offset


def fit_alignment(moments: RegressionMoments, *, ridge: float, offset: bool) -> Alignment:
    """The map from what `moments` has as inputs, x, to its targets, x*.

    Args:
        moments: of x and x*, both [T, d].
        ridge: relative ridge towards the identity.
        offset: fit c too (the producers have biases to take it).
    """
    matrix, right_side = moments.normal_equations(intercept=offset)
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    solution = Cholesky(ridge=ridge).solve(matrix, right_side, identity)
    shift = moments.intercept(solution.value.T) if offset else torch.zeros_like(moments.target_total)
    return Alignment(solution.value, shift, solution)
