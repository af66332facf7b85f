"""Recovery of layers that run several times in one forward (ALBERT's): in closed form, from second moments alone.

No place in the forward exists where such a projection could be fitted to what it is really given: its own later inputs
depend on the fit. So it is fitted to what the dense model gives it, over all calls together: with the columns K that
are left of X and A, the (centred) second moment of X,

    ``min_W',b' || X_K W'' + b' - X W' - b ||^2 + ridge ||W' - W_K||^2``,   i.e. ``A_KK W'' = A_K: W'``

(the weight update of Optimal Brain Surgeon, Hassibi & Stork 1993, for blocks of columns).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.linalg import SecondMoment, solve_or_fall_back
from faster_pruner.method.recovery import solved, untouched
from faster_pruner.method.statistics import Statistics
from faster_pruner.model.network import Network
from faster_pruner.model.spec import Sublayer, bias_of, set_matrix
from faster_pruner.options import Method, Weights
from faster_pruner.results import SublayerResult


def compensate(
    dense: Network, pruned: Network, statistics: Statistics, left: Mapping[str, Tensor], method: Method
) -> dict[str, SublayerResult]:
    """Fit the output projections of a pruned network that run several times in one forward, in place.

    Args:
        dense: what to aim at.
        pruned: with the same sublayers, cut from it.
        statistics: of the dense network.
        left: by name of sublayer [k], the units that are left.
        method: its recovery.

    Returns:
        Results by name of those sublayers; empty for most models.
    """
    found: dict[str, SublayerResult] = {}
    whole = {s.name: s for s in dense.sublayers}
    for s in pruned.sublayers:
        if s.stack.calls == 1:
            continue
        moment = statistics[s.name].x
        if not isinstance(method.recovery, Weights):
            note = f"it runs {s.stack.calls} times in a forward: only a reconstruction of weights can recover it"
            found[s.name] = untouched(s, "skipped", note)
        elif moment is None:
            found[s.name] = untouched(s, "skipped", "no second moments were taken: its weights are as they were")
        else:
            projection = whole[s.name].projection(dense.model)
            branch = _Branch(whole[s.name].weight(dense.model).detach(), bias_of(projection), moment)
            found[s.name] = _fit(branch, pruned, s, left[s.name], method.recovery)
    return found


@dataclass(frozen=True)
class _Branch:
    """A projection of the dense model.

    Attributes:
        weight: [d, n].
        bias: [d], or None.
        moment: second moment of what it is given.
    """

    weight: Tensor
    bias: Tensor | None
    moment: SecondMoment


def _fit(dense: _Branch, pruned: Network, s: Sublayer, keep: Tensor, recovery: Weights) -> SublayerResult:
    """Solve for one sublayer and write the solution into the pruned model."""
    gram = dense.moment.plain() if dense.bias is None else dense.moment.centred()
    target = dense.weight.T.to(gram)
    columns = (keep[:, None] * s.unit_size + torch.arange(s.unit_size)).flatten().to(gram.device)
    matrix, cross, start = gram[columns][:, columns], gram[columns] @ target, target[columns]
    whole = (target * (gram @ target)).sum().clamp(min=torch.finfo(gram.dtype).tiny)

    def error(value: Tensor) -> float:
        """Relative root-mean-square error of columns [k, d]."""
        rest = whole - 2 * (value * cross).sum() + (value * (matrix @ value)).sum()
        return float((rest.clamp(min=0) / whole).sqrt())

    solution, note = solve_or_fall_back(recovery.solver, matrix, cross, start)
    value, before, after = solution.value, error(start), error(solution.value)
    if not solution.converged or after > before:
        value, after, note = start, before, note or "the solution fits worse than the sliced weights"
    bias = None
    if dense.bias is not None:
        mean = dense.moment.total / max(1, dense.moment.count)
        bias = dense.bias.detach().to(gram) + target.T @ mean - value.T @ mean[columns]
    set_matrix(s.projection(pruned.model), value.T, bias, transposed=s.parts.transposed)
    return solved(s, solution, before=before, after=after, note=note)
