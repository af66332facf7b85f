"""Ideas for pruning embeddings, each alone: name -> how a model is made of calibration texts.

What paid is in the package; what did not is here only, with its table in docs/embeddings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.method import recovery
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.statistics import tokens_of
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.objectives.likelihoods import Categorical, Gaussian
from faster_pruner.objectives.objective import Objective, Predictions
from faster_pruner.options import PRESETS, CalibrationOptions, Method, Rounds, SecondOrder, SolverOptions, Weights

# From a subject, calibration rows, budgets and a seed to pruned models, or whatever is called like them.
Idea = Callable[[Subject, EncodedRows, Sequence[float], int], Iterator[nn.Module]]
DEFAULT = PRESETS["default"]
# Texts of the bank that similarities are taken with.
_BANK = 1024


def pruned(method: Method = DEFAULT) -> Idea:
    """The package's own way, with another method."""

    def idea(subject: Subject, rows: EncodedRows, shares: Sequence[float], seed: int) -> Iterator[nn.Module]:
        found = calibrate(subject, rows, method, CalibrationOptions(rows=len(rows), seed=seed))
        for share in shares:
            yield cut(found, Budget(macs=share), method).model

    return idea


def of_first(count: int, method: Method = DEFAULT) -> Idea:
    """Fewer calibration texts."""
    return lambda subject, rows, share, seed: pruned(method)(
        subject, replace(rows, tokens=rows.tokens[:count]), share, seed
    )


def moments_of(tokens: int | None) -> Method:
    """Second moments of so many tokens per neuron, None for all."""
    assert isinstance(DEFAULT.selection, SecondOrder)
    return replace(DEFAULT, selection=replace(DEFAULT.selection, moment_tokens=tokens))


def recovered_with(*, ridge: float = 1e-2, align: float = 1e-2) -> Method:
    """Other ridges."""
    return replace(DEFAULT, recovery=Weights(solver=SolverOptions(name="auto", ridge=ridge), align=align))


TWO_ROUNDS = replace(DEFAULT, rounds=Rounds(count=2, below=1.0))


def in_metric(change: Callable[[Objective, Tensor], Objective]) -> Idea:
    """Another objective, which may look at the dense embeddings [N, d] of some calibration texts."""

    def idea(subject: Subject, rows: EncodedRows, shares: Sequence[float], seed: int) -> Iterator[nn.Module]:
        some = replace(rows, tokens=rows.tokens[:_BANK])
        bank = torch.from_numpy(predict_rows(subject.model, subject.objective, some).values)
        return pruned()(replace(subject, objective=change(subject.objective, bank)), rows, shares, seed)

    return idea


def alone(objective: Objective, bank: Tensor) -> Objective:
    """The vector by itself: the tangent space of the unit sphere."""
    del bank
    return replace(objective, likelihood=Gaussian())


def similarities(objective: Objective, bank: Tensor) -> Objective:
    """Nothing but cosines with other texts."""
    return replace(objective, readout=_against(objective, bank, 1.0), likelihood=Gaussian())


def neighbours(temperature: float) -> Callable[[Objective, Tensor], Objective]:
    """Which of the other texts is the nearest: a softmax over their cosines."""
    return lambda objective, bank: replace(
        objective, readout=_against(objective, bank, temperature), likelihood=Categorical()
    )


def _against(objective: Objective, bank: Tensor, temperature: float) -> Any:
    def readout(returned: Any, batch: Any) -> Predictions:
        found = objective.readout(returned, batch)
        return replace(found, values=found.values @ bank.T / temperature)

    return readout


class _Mapped(nn.Module):
    """An encoder whose pooled vector is mapped; for mean pooling the map may be applied to every token."""

    def __init__(self, model: Any, matrix: Tensor) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.register_buffer("matrix", matrix)

    def forward(self, **inputs: Tensor) -> Any:
        """What the encoder returns."""
        returned = self.model(**inputs)
        returned.last_hidden_state = returned.last_hidden_state @ self.matrix
        return returned


def mapped(ridge: float) -> Idea:
    """At the end one linear map [d, d] of the pooled vector to the dense model's, by ridge regression."""

    def idea(subject: Subject, rows: EncodedRows, shares: Sequence[float], seed: int) -> Iterator[nn.Module]:
        y = torch.from_numpy(predict_rows(subject.model, subject.objective, rows).values)
        for model in pruned()(subject, rows, shares, seed):
            x = torch.from_numpy(predict_rows(model, subject.objective, rows).values)
            gram = x.T @ x
            prior = torch.eye(len(gram)) * ridge * gram.trace() / len(gram)
            yield _Mapped(model, torch.linalg.solve(gram + prior, x.T @ y + prior))

    return idea


class _WeightedMoments:
    """What a fit asks of moments (`linalg.RegressionMoments`), with a weight for each token."""

    def __init__(self, n: int, d: int) -> None:
        self.gram, self.cross = torch.zeros(n + 1, n + 1).double(), torch.zeros(n + 1, d).double()
        self.square = 0.0

    def add(self, x: Tensor, r: Tensor, weights: Tensor) -> None:
        """Tokens x [T, n] with targets r [T, d] and weights [T]."""
        root = weights.sqrt()[:, None].double()
        wide = torch.cat([x.double(), torch.ones(len(x), 1).double()], dim=1) * root
        target = r.double() * root
        self.gram += wide.T @ wide
        self.cross += wide.T @ target
        self.square += float(target.square().sum())

    def normal_equations(self, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """Centred."""
        assert intercept
        total, rest = self.gram[-1, :-1], self.gram[-1, -1]
        return (
            self.gram[:-1, :-1] - torch.outer(total, total) / rest,
            self.cross[:-1] - torch.outer(total, self.cross[-1]) / rest,
        )

    def intercept(self, weight: Tensor) -> Tensor:
        """The bias that goes with a weight [d, n]."""
        return (self.cross[-1] - weight.double() @ self.gram[-1, :-1]) / self.gram[-1, -1]

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Relative root-mean-square error."""
        assert bias is not None
        whole = torch.cat([weight.double().T, bias.double()[None]])
        square = (whole * (self.gram @ whole)).sum() - 2 * (whole * self.cross).sum() + self.square
        return float((square.clamp(min=0) / self.square).sqrt())


def weighted(weigh: Callable[[Tensor, Tensor], Tensor]) -> Idea:
    """Tokens weighted in the recovery, by their targets [T, d] and the lengths [T] of their texts."""

    def idea(subject: Subject, rows: EncodedRows, shares: Sequence[float], seed: int) -> Iterator[nn.Module]:
        with _gathering(weigh):
            yield from pruned()(subject, rows, shares, seed)

    return idea


@contextmanager
def _gathering(weigh: Callable[[Tensor, Tensor], Tensor]) -> Generator[None]:
    """Within, the recovery weighs its tokens."""

    def gather(run: Any, targets: Any, sublayer: Any, tokens: Sequence[Tensor]) -> Any:
        moments = _WeightedMoments(sublayer.columns, sublayer.width)
        for arrival, target in zip(run.arrivals(sublayer), targets.of(sublayer, tokens), strict=True):
            chosen = tokens[arrival.batch]
            base = 0.0 if arrival.base is None else tokens_of(arrival.base, chosen)
            lengths = chosen.sum(dim=1, keepdim=True).expand_as(chosen)[chosen]
            moments.add(tokens_of(arrival.x, chosen), target.float() - base, weigh(target.float(), lengths.float()))
        return moments

    before = recovery._gather  # pyright: ignore[reportPrivateUsage]
    recovery._gather = gather  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        recovery._gather = before  # pyright: ignore[reportPrivateUsage]


IDEAS: dict[str, Idea] = {
    "moments of 8 tokens per neuron": pruned(),
    "512 texts": of_first(512),
    "2048 texts": of_first(2048),
    "metric: the vector alone": in_metric(alone),
    "metric: similarities alone": in_metric(similarities),
    "metric: nearest text, temperature 0.05": in_metric(neighbours(0.05)),
    "metric: nearest text, temperature 0.2": in_metric(neighbours(0.2)),
    "moments of 32 tokens per neuron (default)": pruned(moments_of(32)),
    "moments of all tokens": pruned(moments_of(None)),
    "ridge 1e-3": pruned(recovered_with(ridge=1e-3)),
    "alignment ridge 1e-3": pruned(recovered_with(align=1e-3)),
    "two rounds": pruned(TWO_ROUNDS),
    "recovery: texts weigh alike": weighted(lambda _, lengths: 1 / lengths),
    "recovery: tokens by the scale of their LayerNorm": weighted(lambda target, _: 1 / target.var(dim=1)),
    "a last linear map of the pooled vector": mapped(1e-2),
}
