"""Conjugate gradient for symmetric positive definite systems, many right-hand sides at once.

Hestenes & Stiefel 1952; Li, Zhu & Sun 2024 use it in the recovery stage of post-training pruning. Each right-hand side
runs its own recurrence; they share the one product ``matrix @ directions`` per iteration. Shapes as in `solve.py`.

Departures from the textbook: columns that have converged are frozen instead of removed (no data-dependent shapes, so
nothing waits for the device), and the status is looked at every `check_every` iterations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from faster_pruner.linalg.solve import Solution, System, solve_iteratively


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient:
    """Conjugate gradient, optionally with the Jacobi (diagonal) preconditioner.

    Attributes:
        preconditioner: `"none"` is the paper's solver, `"jacobi"` divides by the diagonal.
        tolerance: stop when ``||b - A x|| <= tolerance ||b||`` for every right-hand side.
        max_iterations: give up after this many products with the matrix.
        ridge: relative ridge, see `solve.py`.
        check_every: iterations between two looks at the residual.
    """

    preconditioner: Literal["none", "jacobi"] = "jacobi"
    tolerance: float = 1e-6
    max_iterations: int = 1000
    ridge: float = 0.0
    check_every: int = 4

    @property
    def name(self) -> str:
        """`cg` or `jacobi-cg`."""
        return "cg" if self.preconditioner == "none" else "jacobi-cg"

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
        """The recurrence: (x [n, m], iterations used, whether a direction of non-positive curvature was met)."""
        a, b = system.matrix, system.right_side
        inverse_diagonal = self._inverse_diagonal(a)
        x = system.prior.clone()
        r = b - a @ x
        z = inverse_diagonal * r
        p = z.clone()
        rz = (r * z).sum(dim=0)
        goal = self.tolerance * torch.where(b.norm(dim=0) > 0, b.norm(dim=0), torch.ones_like(rz))
        active = r.norm(dim=0) > goal
        broke = torch.zeros((), dtype=torch.bool, device=a.device)
        iterations = 0
        while iterations < self.max_iterations:
            if iterations % self.check_every == 0 and not bool(active.any()):
                break
            ap = a @ p
            curvature = (p * ap).sum(dim=0)
            usable = curvature > 0
            broke = broke | (active & ~usable).any()
            active = active & usable
            alpha = torch.where(active, rz / torch.where(usable, curvature, torch.ones_like(rz)), torch.zeros_like(rz))
            x += alpha * p
            r -= alpha * ap
            active = active & (r.norm(dim=0) > goal)
            z = inverse_diagonal * r
            rz_next = (r * z).sum(dim=0)
            beta = torch.where(active, rz_next / torch.where(rz > 0, rz, torch.ones_like(rz)), torch.zeros_like(rz))
            p = z + beta * p
            rz = rz_next
            iterations += 1
        return x, iterations, bool(broke)

    def _inverse_diagonal(self, a: Tensor) -> Tensor:
        """[n, 1]: the Jacobi preconditioner, ones without one; a zero diagonal entry counts as one."""
        diagonal = a.diagonal()
        if self.preconditioner == "none":
            return torch.ones_like(diagonal)[:, None]
        return torch.where(diagonal > 0, 1.0 / diagonal, torch.ones_like(diagonal))[:, None]
