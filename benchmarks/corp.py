"""Our reading of CORP (Zhang & Yang 2026, arXiv 2602.05243): one-shot pruning in closed form, without labels.

Every layer loses the same share of its units: those with the least activation energy, the sum of their squares in the
dense model. What is removed is predicted from what is kept by ridge regression on the dense model's activations, and
the prediction is folded into weights; no layer sees what pruning the others has changed.

* `pruned_units`: neurons and whole attention heads. With S kept, P removed, X what the projection W is given in the
  dense model: ``W' = W_S + W_P B, b' = b + W_P (mean_P - B mean_S)``, ``B = Cov_PS (Cov_SS + ridge)^-1``.
* `pruned_logits`: neurons as above, and in every head dimensions of queries and keys, with the paper's aim: the
  attention logits. ``min_M || Q_P K_P' - Q_S M K_S' ||^2 + ridge ||M||^2`` over all images; ``I + M`` goes into the
  queries. transformers' ViT has no place for queries that are narrower than values, so the dimensions are set to zero
  here: the model returns what the smaller one would, but is not faster.

The paper's code was not at hand: the ranking of dimensions (energy of the logits that one gives) and the ridge are
ours. The ridge is relative to the mean of the diagonal; of 1e-4 to 1e-1 the two smallest were the best, and alike, on
training images outside the calibration set. Moments are over the tokens that the objective reads, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.costs.cost import Macs, total
from faster_pruner.linalg import solve_or_fall_back
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.model.network import Network
from faster_pruner.model.passes import inference
from faster_pruner.model.spec import Sublayer, bias_of, set_matrix
from faster_pruner.options import Method, SecondOrder, SolverOptions

RIDGE = 1e-3
SOLVER = SolverOptions(name="cholesky", ridge=RIDGE)
# What it needs from a calibration: second moments of all rows.
METHOD = Method(name="corp", labels=False, selection=SecondOrder(), recovery=None)


@dataclass(frozen=True)
class Result:
    """A pruned model.

    Attributes:
        model: it.
        macs_kept: share of the sublayers' multiply-accumulates.
        smaller: whether it is physically smaller, so that its speed can be measured.
    """

    model: nn.Module
    macs_kept: float
    smaller: bool


def pruned_units(calibrated: Calibrated, share: float) -> Result:
    """The same share of neurons and heads in every layer, with compensation."""
    cost = Macs(calibrated.data.lengths)
    pruned = _compensated(calibrated, {s.name: share for s in calibrated.sublayers})
    return Result(pruned.model, total(cost, pruned.sublayers) / total(cost, calibrated.sublayers), smaller=True)


def pruned_logits(calibrated: Calibrated, share: float) -> Result:
    """The same share of neurons, and of query and key dimensions of every head, with compensation."""
    mixing = [s for s in calibrated.sublayers if s.spec.mixes_tokens]
    pruned = _compensated(calibrated, {s.name: 1.0 if s.spec.mixes_tokens else share for s in calibrated.sublayers})
    cost = Macs(calibrated.data.lengths)
    outputs = _outputs(calibrated, [producer.path for s in mixing for producer in s.parts.producers[:2]])
    gone = sum(_compensate_logits(calibrated, pruned.model, s, share, outputs=outputs) for s in mixing)
    left = total(cost, pruned.sublayers) - gone
    return Result(pruned.model, left / total(cost, calibrated.sublayers), smaller=False)


def _compensated(calibrated: Calibrated, shares: Mapping[str, float]) -> Network:
    """A smaller copy of the dense model, with what it has lost folded into its output projections."""
    dense, kept = calibrated.network, {}
    for s in dense.sublayers:
        energy = _moment(calibrated, s).plain().diagonal().view(s.units, s.unit_size).sum(dim=1)
        kept[s.name] = energy.topk(max(1, round(shares[s.name] * s.units))).indices.sort().values
    pruned = dense.copied().shrunk(kept)
    for whole, s in zip(dense.sublayers, pruned.sublayers, strict=True):
        if s.units < whole.units:
            _fold(calibrated, whole, s, pruned.model, kept[s.name])
    return pruned


def _moment(calibrated: Calibrated, s: Sublayer) -> Any:
    return calibrated.statistics[s.name].x


def _fold(calibrated: Calibrated, whole: Sublayer, s: Sublayer, model: nn.Module, kept: Tensor) -> None:
    """Ridge regression of the removed columns on the kept ones, into the projection.

    As in Optimal Brain Surgeon this is ``(Cov_SS + ridge) W'' = Cov_S: W' + ridge W_S'``.
    """
    moment = _moment(calibrated, s)
    weight, bias = whole.weight(calibrated.model).detach().double(), bias_of(whole.projection(calibrated.model))
    assert bias is not None
    columns = (kept[:, None] * s.unit_size + torch.arange(s.unit_size)).flatten()
    covariance, mean = moment.centred(), moment.total / moment.count
    solution, note = solve_or_fall_back(
        SOLVER, covariance[columns][:, columns], covariance[columns] @ weight.T, weight.T[columns]
    )
    assert solution.converged, note
    offset = bias.detach().double() + weight @ mean - solution.value.T @ mean[columns]
    set_matrix(s.projection(model), solution.value.T, offset)


def _compensate_logits(
    calibrated: Calibrated, model: Any, s: Sublayer, share: float, *, outputs: Mapping[str, Tensor]
) -> float:
    """Set query and key dimensions of every head to zero; the multiply-accumulates per row that this saves."""
    paths = [producer.path for producer in s.parts.producers[:2]]
    # [N, U, S, g]
    query, key = (outputs[path].unflatten(2, (s.units, s.unit_size)).transpose(1, 2).double() for path in paths)
    left = max(1, round(share * s.unit_size))
    energy = query.square().sum(dim=(0, 2)) * key.square().sum(dim=(0, 2))
    keep = energy.topk(left, dim=1).indices
    modules = [model.get_submodule(path) for path in paths]
    for head in range(s.units):
        gone = torch.ones(s.unit_size, dtype=torch.bool).index_fill(0, keep[head], False)
        m = _logit_map(query[:, head], key[:, head], gone)
        rows = head * s.unit_size + torch.arange(s.unit_size)
        for module, change in zip(modules, (torch.eye(left, dtype=m.dtype) + m, None), strict=True):
            for tensor in (module.weight.data, module.bias.data):
                if change is not None:
                    # q_S (I + M), i.e. its rows of the weight from the left with (I + M)'
                    tensor[rows[~gone]] = (change.T @ tensor[rows[~gone]].double()).float()
                tensor[rows[gone]] = 0
    length = calibrated.data.lengths[s.stack.name]
    dimensions = s.units * (s.unit_size - left)
    return dimensions * length * (sum(producer.inputs for producer in s.parts.producers[:2]) + length)


def _outputs(calibrated: Calibrated, paths: Sequence[str]) -> dict[str, Tensor]:
    """[N, S, n] by path: what producers of the dense model give for every calibration image."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    with ExitStack() as stack, inference(calibrated.model):
        for path, own in found.items():
            module = calibrated.model.get_submodule(path)
            stack.callback(module.register_forward_hook(lambda _m, _x, y, own=own: own.append(y)).remove)
        for batch in calibrated.data.batches:
            calibrated.model(**batch.inputs)
    return {path: torch.cat(own) for path, own in found.items()}


def _logit_map(query: Tensor, key: Tensor, gone: Tensor) -> Tensor:
    """M [k, k] of one head from queries and keys [N, S, g]: normal equations in all of its entries at once."""
    q, k = query[:, :, ~gone], key[:, :, ~gone]
    size = q.shape[2]
    # sum over images of (Q_S' Q_S) M (K_S' K_S) = sum of (Q_S' Q_P) (K_P' K_S)
    matrix = torch.einsum("nij,nlm->iljm", q.mT @ q, k.mT @ k)
    right = ((q.mT @ query[:, :, gone]) @ (key[:, :, gone].mT @ k)).sum(dim=0)
    solution, note = solve_or_fall_back(
        SOLVER, matrix.reshape(size**2, size**2), right.flatten(), torch.zeros(size**2, dtype=right.dtype)
    )
    assert solution.converged, note
    return solution.value.view(size, size)
