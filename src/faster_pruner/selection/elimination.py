"""Second-order selection: Optimal Brain Surgeon on the input columns of an output projection, in the K-FAC metric.

For one sublayer with output projection W [d, n], input second moment A [n, n] and output-gradient second moment G [d,
d], removing the columns u of W while the other columns compensate raises the loss by

    ``tr(V_u' ((A^-1)_uu)^-1 V_u)``,  with ``V = W' G^(1/2)`` [n, d]

(Hassibi & Stork 1993; the K-FAC metric of Martens & Grosse 2015; eliminated in blocks as in ZipLM, Kurtic et al.
2023). After the removal

    ``V <- V - A^-1[:, u] ((A^-1)_uu)^-1 V_u``   and   ``A^-1 <- A^-1 - A^-1[:, u] ((A^-1)_uu)^-1 A^-1[u, :]``.

The n columns are U units of `group` adjacent columns. All arithmetic is in float64, where the device has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.errors import NumericalError
from faster_pruner.linalg.solve import solve_dtype

# Columns of removed units are dropped from the working matrices once they make up this share of them.
_COMPACT_AT = 0.2
# Columns of downdates that are collected before they are applied to the inverse.
_MOST_PENDING = 96
# Eigenvalues of G that make up less than this share of its trace are left out of V.
_NEGLIGIBLE = 1e-9
# A step removes at most this fraction, as 1 / n, of the units that are left.
_STEPS_PER_REMAINDER = 64
# A damping that does not make A positive definite is raised by this factor, from at least this share of the diagonal.
_MORE_DAMPING, _LEAST_DAMPING = 10.0, 1e-12


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Cumulative loss of one sublayer against the number of units removed.

    Attributes:
        order: [U], units in the order of their removal.
        removed: [K + 1], numbers of removed units for which the loss is known, from 0 to U.
        loss: [K + 1] float64, the loss of removing the first ``removed[k]`` units of `order` with the rest
            compensating.
    """

    order: Tensor
    removed: Tensor
    loss: Tensor


def additive(importance: Tensor, *, groups: int = 1) -> Curve:
    """The curve of units whose losses just add up, least important first (first-order selection).

    Args:
        importance: [U].
        groups: runs of units that stay equally large: of each one unit goes in every step.
    """
    by_group = importance.cpu().double().view(groups, importance.numel() // groups)
    ranked = by_group.sort(dim=1, stable=True)
    starts = torch.arange(groups)[:, None] * by_group.shape[1]
    loss = ranked.values.sum(dim=0).cumsum(dim=0)
    return Curve(
        order=(ranked.indices + starts).T.flatten(),
        removed=torch.arange(loss.numel() + 1) * groups,
        loss=torch.cat([loss.new_zeros(1), loss]),
    )


def square_root(matrix: Tensor) -> Tensor:
    """A factor R [d, r] with ``R R' = matrix`` for a symmetric semi-definite [d, d].

    The Cholesky factor where there is one. Otherwise r is the numerical rank: negative eigenvalues are clamped, and
    those that together make up less than 1e-9 of the trace are left out.
    """
    wide = matrix.to(solve_dtype(matrix.device))
    factor, info = torch.linalg.cholesky_ex(wide)
    if int(info) == 0:
        return factor
    values, vectors = torch.linalg.eigh(wide)
    values = values.clamp(min=0)
    needed = values.cumsum(dim=0) > _NEGLIGIBLE * values.sum()
    return vectors[:, needed] * values[needed].sqrt()


def damped_factor(gram: Tensor, damping: float) -> Tensor:
    """The Cholesky factor [n, n] of `gram` + damping * mean(diag(gram)) * I.

    The damping is raised until there is one (a Gram that was summed in float32 can have eigenvalues below zero); an
    all- zero Gram gets I.

    Raises:
        NumericalError: `gram` is not finite.
    """
    wide = gram.to(solve_dtype(gram.device), copy=True)
    mean = wide.diagonal().mean() if wide.numel() else wide.new_ones(())
    if not bool(torch.isfinite(wide).all()):
        raise NumericalError(
            "the inputs of a sublayer have NaN or infinite values; calibrate in float32, or on other rows"
        )
    level = torch.where(mean > 0, mean, torch.ones_like(mean))
    share, added = (damping if float(mean) > 0 else 1.0), 0.0
    while True:
        wide.diagonal().add_((share - added) * level)
        factor, info = torch.linalg.cholesky_ex(wide)
        if int(info) == 0:
            return factor
        share, added = max(share * _MORE_DAMPING, _LEAST_DAMPING), share


def eliminate(
    gram: Tensor, weighted: Tensor, *, damping: float = 0.0, group: int = 1, block: int = 1, groups: int = 1
) -> Curve:
    """Remove all units greedily and record what it costs.

    Args:
        gram: [n, n] A.
        weighted: [n, d] V.
        damping: share of A's mean diagonal that is added to its diagonal (`damped_factor`).
        group: columns per unit.
        block: most units removed per step: those that are cheapest one by one, removed together. Steps get finer as
            fewer units are left (1/64 of them), because strong budgets are decided among the last ones.
        groups: adjacent runs of units that stay equally large: a step removes one unit of each, the cheapest first,
            whatever `block` says.

    Returns:
        The curve; its losses are those of the joint removal of each prefix.

    Raises:
        NumericalError: `gram` is not finite.
    """
    n = gram.shape[0]
    dtype = solve_dtype(gram.device)
    state = _State(
        torch.cholesky_inverse(damped_factor(gram, damping)), weighted.to(gram.device, dtype, copy=True), group
    )
    order: list[Tensor] = []
    loss = [torch.zeros((), dtype=dtype, device=gram.device)]
    removed = [0]
    units = n // group
    while removed[-1] < units:
        take = max(1, min(block, (units - removed[-1]) // _STEPS_PER_REMAINDER))
        chosen, cost = state.remove_cheapest(take) if groups == 1 else state.remove_one_each(groups, units // groups)
        take = chosen.numel()
        order.append(chosen)
        loss.append(loss[-1] + cost)
        removed.append(removed[-1] + take)
    return Curve(
        order=torch.cat(order).cpu() if order else torch.empty(0, dtype=torch.long),
        removed=torch.tensor(removed),
        loss=torch.stack(loss).cpu().double(),
    )


class _State:
    """The inverse Gram and V of the units that are left; removed ones are dropped lazily.

    The inverse is ``stale - pending' pending``: its downdates are collected and applied together, because one thin
    update moves the whole matrix through memory. Its diagonal is always up to date.
    """

    def __init__(self, inverse: Tensor, weighted: Tensor, group: int) -> None:
        self.stale, self.weighted, self.group = inverse, weighted, group
        units = inverse.shape[0] // group
        self.unit = torch.arange(units, device=inverse.device)
        self.alive = torch.ones(units, dtype=torch.bool, device=inverse.device)
        self.dead = 0
        self.diagonal = inverse.diagonal().clone()
        self.pending = inverse.new_zeros(0, inverse.shape[0])

    def remove_one_each(self, groups: int, size: int) -> tuple[Tensor, Tensor]:
        """Remove one unit of every run of `size` units, the cheapest first, while the others compensate.

        Returns:
            Their original indices in this order, and the joint loss.
        """
        waiting = torch.ones(groups, dtype=torch.bool, device=self.unit.device)
        steps: list[tuple[Tensor, Tensor]] = []
        while bool(waiting.any()):
            steps.append(self.remove_cheapest(1, of=waiting[self.unit // size]))
            waiting[steps[-1][0] // size] = False
        return torch.cat([chosen for chosen, _ in steps]), torch.stack([cost for _, cost in steps]).sum()

    def remove_cheapest(self, take: int, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Remove the `take` units that are cheapest one by one, `of` [units] bool if only some may go.

        Returns:
            Their original indices, cheapest first, and the joint loss.
        """
        score = self._scores()
        score[~self.alive if of is None else ~(self.alive & of)] = torch.inf
        local = score.argsort(stable=True)[:take]
        columns = self._columns(local)
        inverse = torch.addmm(self.stale[columns], self.pending[:, columns].T, self.pending, alpha=-1)
        # unchecked: a check would make a GPU wait at every step
        factor = torch.linalg.cholesky_ex(inverse[:, columns]).L
        strip = torch.linalg.solve_triangular(factor, inverse, upper=False)
        rows = torch.linalg.solve_triangular(factor, self.weighted[columns], upper=False)
        self.weighted.addmm_(strip.T, rows, alpha=-1)
        self.diagonal -= strip.square().sum(dim=0)
        self.pending = torch.cat([self.pending, strip])
        self.alive[local] = False
        self.dead += take
        chosen = self.unit[local]
        if self.group > 1 or self.pending.shape[0] >= _MOST_PENDING:
            self._apply_pending()
        if self.dead > _COMPACT_AT * self.alive.numel():
            self._compact()
        return chosen, rows.square().sum()

    def _apply_pending(self) -> None:
        """Bring the inverse up to date."""
        self.stale.addmm_(self.pending.T, self.pending, alpha=-1)
        self.diagonal = self.stale.diagonal().clone()
        self.pending = self.pending[:0]

    def _scores(self) -> Tensor:
        """[units]: loss of removing each unit alone."""
        if self.group == 1:
            return torch.linalg.vector_norm(self.weighted, dim=1).square_() / self.diagonal.clamp(
                min=torch.finfo(self.diagonal.dtype).tiny
            )
        count, g = self.alive.numel(), self.group
        blocks = self.stale.view(count, g, count, g).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        eye = torch.eye(g, dtype=blocks.dtype, device=blocks.device)
        factor = torch.linalg.cholesky_ex(torch.where(self.alive[:, None, None], blocks, eye)).L
        rows = torch.linalg.solve_triangular(factor, self.weighted.view(count, g, -1), upper=False)
        return rows.square().sum(dim=(1, 2))

    def _columns(self, local: Tensor) -> Tensor:
        """Column indices of the given units."""
        return (local[:, None] * self.group + torch.arange(self.group, device=local.device)).flatten()

    def _compact(self) -> None:
        """Drop the removed units from the working matrices."""
        left = self.alive.nonzero().flatten()
        columns = self._columns(left)
        self._apply_pending()
        self.stale = self.stale[columns][:, columns].contiguous()
        self.diagonal = self.diagonal[columns]
        self.pending = self.pending[:, columns]
        self.weighted = self.weighted[columns].contiguous()
        self.unit = self.unit[left]
        self.alive = torch.ones(left.numel(), dtype=torch.bool, device=left.device)
        self.dead = 0
