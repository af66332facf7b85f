"""LSMR (Fong & Saunders 2011), the solver of Kwon et al. 2022.

It minimises ``||matrix x - right_side||^2 + damp^2 ||x - prior||^2``. Kwon et al. give it the *normal matrix* of the
least-squares problem, so its conditioning is squared twice, and stop it at 1e-6: on real systems it then sits 8-78 %
away from the solution, which acts as a hidden regularisation. It is kept to reproduce their pipeline. scipy runs it on
the CPU; on other devices the same recurrence runs in torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.sparse.linalg import lsmr as scipy_lsmr
from torch import Tensor

from faster_pruner.linalg.solve import Solution, Status, System, relative_residual, ridged_system, worst

_ITERATIONS_PER_UNKNOWN = 5
# scipy's `istop`: 1, 2 met atol/btol; 4, 5 the same at machine precision; 0 means that x = 0 is the solution.
_STOP_CONVERGED = frozenset({0, 1, 2, 4, 5})
_STOP_ILL_CONDITIONED = frozenset({3, 6})
_STOP_LIMIT = 7


@dataclass(frozen=True, kw_only=True)
class Lsmr:
    """LSMR with damping, one right-hand side after the other.

    Attributes:
        damp: absolute damping, 1 in Kwon et al. 2022.
        tolerance: both of LSMR's tolerances (`atol`, `btol`); 1e-6 in the reference.
        condition_limit: LSMR's `conlim`; 1e8 in the reference.
        max_iterations: `None` stands for 5 n, the default of cupy's LSMR, which the reference calls.
        ridge: relative ridge added to the matrix itself, see `solve.py`; 0 in the reference.
    """

    damp: float = 1.0
    tolerance: float = 1e-6
    condition_limit: float = 1e8
    max_iterations: int | None = None
    ridge: float = 0.0

    @property
    def name(self) -> str:
        """`lsmr`."""
        return "lsmr"

    def solve(self, matrix: Tensor, right_side: Tensor, prior: Tensor | None = None) -> Solution:
        """Solve as described above. Raises ValueError on shapes that do not fit."""
        system = ridged_system(matrix, right_side, prior, self.ridge)
        limit = self.max_iterations
        if limit is None:
            limit = _ITERATIONS_PER_UNKNOWN * max(1, matrix.shape[0])
        one = self._scipy if matrix.device.type == "cpu" else self._torch
        columns: list[Tensor] = []
        stops: set[int] = set()
        iterations = 0
        for start, b in zip(system.prior.T, system.right_side.T, strict=True):
            update, stop, used = one(system, b - system.matrix @ start, limit)
            columns.append(start + update)
            stops.add(stop)
            iterations = max(iterations, used)
        value = torch.stack(columns, dim=1) if columns else system.prior
        if stops <= _STOP_CONVERGED:
            status = Status.CONVERGED
        else:
            status = Status.ILL_CONDITIONED if stops & _STOP_ILL_CONDITIONED else Status.MAX_ITERATIONS
        return Solution(
            value=value.reshape(right_side.shape).to(right_side.dtype),
            status=status,
            iterations=iterations,
            residual=worst(relative_residual(system, value)),
            solver=self.name,
        )

    def _scipy(self, system: System, b: Tensor, limit: int) -> tuple[Tensor, int, int]:
        """(x [n], istop, iterations) from scipy."""
        found = scipy_lsmr(
            system.matrix.numpy(),
            b.numpy(),
            damp=self.damp,
            atol=self.tolerance,
            btol=self.tolerance,
            conlim=self.condition_limit,
            maxiter=limit,
        )
        # scipy says that zero is the solution, too, when it may not take a step
        stop = int(found[1]) if limit > 0 or not b.any() else _STOP_LIMIT
        return torch.from_numpy(found[0]), stop, int(found[2])

    def _torch(self, system: System, b: Tensor, limit: int) -> tuple[Tensor, int, int]:
        """(x [n], istop, iterations) from `torch_lsmr`."""
        return torch_lsmr(
            system.matrix,
            b,
            damp=self.damp,
            tolerance=self.tolerance,
            condition_limit=self.condition_limit,
            limit=limit,
        )


def torch_lsmr(
    a: Tensor, b: Tensor, *, damp: float, tolerance: float, condition_limit: float, limit: int
) -> tuple[Tensor, int, int]:
    """LSMR in torch for a symmetric `a` [n, n] and `b` [n]: (x [n], stop, iterations).

    Fong & Saunders 2011, sections 2.8-5.2; `stop` has the meaning of scipy's `istop` (0, 1, 2, 3 and 7 are used).
    """
    beta, alpha, u, v = _start(a, b)
    x = torch.zeros_like(b)
    if float(alpha * beta) == 0.0:
        return x, 0, 0
    zeta_bar, alpha_bar = float(alpha * beta), float(alpha)
    rho, rho_bar, c_bar, s_bar = 1.0, 1.0, 1.0, 0.0
    h, h_bar = v.clone(), torch.zeros_like(x)
    norms = _Norms(beta=float(beta), alpha=float(alpha))
    for iteration in range(1, limit + 1):
        u = a @ v - alpha * u
        beta = u.norm()
        u = u / torch.where(beta > 0, beta, torch.ones_like(beta))
        v = a.T @ u - beta * v
        alpha = v.norm()
        v = v / torch.where(alpha > 0, alpha, torch.ones_like(alpha))
        beta_f, alpha_f = float(beta), float(alpha)
        c_hat, s_hat, alpha_hat = _rotate(alpha_bar, damp)
        rho_old = rho
        c, s, rho = _rotate(alpha_hat, beta_f)
        theta_new, alpha_bar = s * alpha_f, c * alpha_f
        rho_bar_old, zeta_old = rho_bar, norms.zeta
        theta_bar, rho_temp = s_bar * rho, c_bar * rho
        c_bar, s_bar, rho_bar = _rotate(rho_temp, theta_new)
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        h_bar = h - (theta_bar * rho / (rho_old * rho_bar_old)) * h_bar
        x = x + (zeta / (rho * rho_bar)) * h_bar
        h = v - (theta_new / rho) * h
        norms.update(
            rotation=(c_hat, s_hat, c, s),
            bars=(theta_bar, rho_temp, rho_bar, rho_bar_old),
            new=(theta_new, zeta, zeta_old),
        )
        norms.grow(alpha_f, beta_f)
        stop = norms.stop(abs(zeta_bar), float(x.norm()), tolerance, condition_limit)
        if stop:
            return x, stop, iteration
    return x, _STOP_LIMIT, limit


def _start(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First step of the Golub-Kahan bidiagonalisation: beta, alpha, u, v."""
    beta = b.norm()
    u = b / torch.where(beta > 0, beta, torch.ones_like(beta))
    v = a.T @ u
    alpha = v.norm()
    v = v / torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    return beta, alpha, u, v


def _rotate(a: float, b: float) -> tuple[float, float, float]:
    """Symmetric Givens rotation: c, s, r with ``[c s; s -c] [a; b] = [r; 0]``."""
    r = (a * a + b * b) ** 0.5
    return (a / r, b / r, r) if r > 0 else (1.0, 0.0, 0.0)


class _Norms:
    """Running estimates of ||r||, ||A||, cond(A) (Fong & Saunders 2011, sections 3.2-3.4) and the stopping rules."""

    def __init__(self, *, beta: float, alpha: float) -> None:
        self.b_norm = beta
        self.beta_dd, self.beta_d, self.rho_dold, self.tau_old, self.theta_old, self.d = (
            beta,
            0.0,
            1.0,
            0.0,
            0.0,
            0.0,
        )
        self.zeta = 0.0
        self.a_squared = alpha * alpha
        self.rho_bar_max, self.rho_bar_min = 0.0, 1e100
        self.r_norm, self.condition = beta, 1.0

    def update(
        self,
        *,
        rotation: tuple[float, float, float, float],
        bars: tuple[float, float, float, float],
        new: tuple[float, float, float],
    ) -> None:
        """Fold one iteration's rotations into the estimates of ||r|| and cond(A)."""
        c_hat, s_hat, c, s = rotation
        theta_bar, rho_temp, rho_bar, rho_bar_old = bars
        theta_new, zeta, zeta_old = new
        beta_acute, beta_check = c_hat * self.beta_dd, -s_hat * self.beta_dd
        beta_hat, self.beta_dd = c * beta_acute, -s * beta_acute
        theta_tilde_old = self.theta_old
        c_tilde, s_tilde, rho_tilde = _rotate(self.rho_dold, theta_bar)
        self.theta_old, self.rho_dold = s_tilde * rho_bar, c_tilde * rho_bar
        self.beta_d = -s_tilde * self.beta_d + c_tilde * beta_hat
        self.tau_old = (zeta_old - theta_tilde_old * self.tau_old) / rho_tilde
        tau_d = (zeta - self.theta_old * self.tau_old) / self.rho_dold
        self.d += beta_check * beta_check
        self.r_norm = (self.d + (self.beta_d - tau_d) ** 2 + self.beta_dd**2) ** 0.5
        self.rho_bar_max = max(self.rho_bar_max, rho_bar_old)
        if zeta_old != 0.0:
            self.rho_bar_min = min(self.rho_bar_min, rho_bar_old)
        self.condition = max(self.rho_bar_max, rho_temp) / min(self.rho_bar_min, rho_temp)
        self.zeta = zeta
        self._theta_new = theta_new

    def grow(self, alpha: float, beta: float) -> None:
        """Add this iteration's bidiagonal entries to the estimate of ||A||_F."""
        self.a_norm = (self.a_squared + beta * beta) ** 0.5
        self.a_squared += beta * beta + alpha * alpha

    def stop(self, ar_norm: float, x_norm: float, tolerance: float, condition_limit: float) -> int:
        """0 to go on; 1 compatible, 2 least squares, 3 condition limit (scipy's numbers)."""
        if self.r_norm <= tolerance * self.b_norm + tolerance * self.a_norm * x_norm:
            return 1
        if ar_norm <= tolerance * self.a_norm * self.r_norm:
            return 2
        return 3 if self.condition >= condition_limit else 0
