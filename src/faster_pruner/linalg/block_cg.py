"""Block conjugate gradient: all right-hand sides share one Krylov space.

O'Leary 1980, in the form of Dubrulle 2001 (BCGrQ): the block of residuals is kept as ``Q C`` with orthonormal Q [n, s],
so nearly dependent right-hand sides do no harm. One iteration multiplies the matrix with s directions at once and looks
for every solution in the space that all of them span; n / s iterations reach the solution in exact arithmetic. Shapes
as in `solve.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.linalg.solve import Solution, System, solve_iteratively


@dataclass(frozen=True, kw_only=True)
class BlockConjugateGradient:
    """Block conjugate gradient with the symmetric Jacobi (diagonal) preconditioner.

    Attributes:
        tolerance: stop when ``||b - A x|| <= tolerance ||b||`` for every right-hand side (in the preconditioned norm
            during the iteration; the true one decides the status).
        max_iterations: give up after this many products of the matrix with a block.
        ridge: relative ridge, see `solve.py`.
        check_every: iterations between two looks at the residual (each makes a GPU wait).
    """

    tolerance: float = 1e-6
    max_iterations: int = 200
    ridge: float = 0.0
    check_every: int = 2

    @property
    def name(self) -> str:
        """`block-cg`."""
        return "block-cg"

    def solve(self, matrix: Tensor, right_side: Tensor, prior: Tensor | None = None) -> Solution:
        """Solve as described in `solve.py`. Raises ValueError on shapes that do not fit."""
        return solve_iteratively(
            self._iterate,
            matrix,
            right_side,
            prior,
            name=self.name,
            tolerance=self.tolerance,
            ridge=self.ridge,
        )

    def _iterate(self, system: System) -> tuple[Tensor, int, bool]:
        """The recurrence: (x [n, m], iterations used, whether a block of non-positive curvature was met)."""
        if system.matrix.shape[0] == 0 or system.right_side.shape[1] == 0:
            return system.prior.clone(), 0, False
        diagonal = system.matrix.diagonal()
        root = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()[:, None]
        a = root * system.matrix * root.T
        x = system.prior / root
        b = root * system.right_side
        q, c = torch.linalg.qr(b - a @ x)
        p = q
        norm = b.norm(dim=0)
        goal = self.tolerance * torch.where(norm > 0, norm, torch.ones_like(norm))
        usable = torch.ones((), dtype=torch.bool, device=a.device)
        iterations = 0
        while iterations < self.max_iterations:
            if iterations % self.check_every == 0:
                going, sound = torch.stack([(c.norm(dim=0) > goal).any(), usable]).tolist()
                if not (going and sound):
                    break
            ap = a @ p
            factor, info = torch.linalg.cholesky_ex(p.T @ ap)
            usable = usable & (info == 0)
            # after a block of non-positive curvature nothing moves any more
            x = torch.where(usable, x + p @ torch.cholesky_solve(c, factor), x)
            q, step = torch.linalg.qr(q - ap @ torch.cholesky_inverse(factor))
            c = step @ c
            p = q + p @ step.T
            iterations += 1
        return root * x, iterations, not bool(usable)
