"""An objective is a readout, a likelihood and metrics: everything that anyone needs to know about what a model is for.

* The readout maps what a model returns, and the batch it was given, to predictions [P, C]: one per row (a class, a
  target), several per row (one per labelled token), each with the row it belongs to and its label, if there is one.
* The likelihood says what a prediction means: its gradients start every backward pass.
* The metrics judge predictions against labels.

Nothing outside this folder knows what a model returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faster_pruner.data.batches import Batch
from faster_pruner.errors import OptionError
from faster_pruner.objectives.likelihoods import Likelihood

# Between the seeds of the parts of a row's predictions.
_APART = 2_000_003_003


@dataclass(frozen=True)
class Predictions:
    """What a model says about one batch.

    Attributes:
        values: [P, C], before any softmax or sigmoid.
        rows: [P], the row that each belongs to (`Batch.rows`).
        labels: [P] or [P, C], None where the batch has none.
    """

    values: Tensor
    rows: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Chosen:
    """Tokens of a batch that have a prediction each.

    Attributes:
        at: [B, S] bool, P of them.
        rows: [P], the row of each (`Batch.rows`), in the order of `at`.
        labels: [P].
    """

    at: Tensor
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TokenReadout:
    """A readout of which some tokens can be read at a time, of the states that the model's base leaves.

    Attributes:
        chosen: the tokens of a batch.
        values: [B, T, C] of what the model returns for T tokens.
    """

    chosen: Callable[[Batch], Chosen]
    values: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for a split, sorted by row.

    Attributes:
        values: [P, k], as the objective keeps predictions.
        rows: [P], the row of each.
        labels: [P] or [P, C]; None without.
        context: what metrics need of the rows beside labels (`EncodedRows.context`).
    """

    values: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    context: object = None


@dataclass(frozen=True)
class ByRow:
    """A metric that is a function of sums over rows: an F1 of entities, a mean over the questions.

    Attributes:
        counts: sufficient statistics [R, k], a line for each row, or for each example where several rows make one.
            Metrics that share the function share its work.
        value: their sum [k] -> the metric.
    """

    counts: Callable[[Predicted], np.ndarray]
    value: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class OfRows:
    """A metric of a table with a line for each row, or pair of rows: a mean, a correlation.

    Attributes:
        table: lines [R, k] from the predictions of a model and those of the dense model; None where the rows do not
            allow for it (no pairs, no queries).
        value: lines [n, k] -> the metric.
        compares: whether the dense model's predictions have a part in it.
    """

    table: Callable[[Predicted, Predicted], np.ndarray | None]
    value: Callable[[np.ndarray], float]
    compares: bool = False


# A number from sums over rows, or from a table of them; or from all predictions [P, k], as `Objective.keep` leaves
# them, and labels [P] or [P, C].
Metric = ByRow | OfRows | Callable[[np.ndarray, np.ndarray], float]


def _values_alone(predictions: Predictions) -> Tensor:
    return predictions.values


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a model is pruned for, and judged by.

    Attributes:
        name: how reports call it.
        readout: from what the model returns and the batch to predictions.
        likelihood: what a prediction means.
        tokens: the same readout token by token, where predictions are so large that they are taken in parts.
        metrics: by name. Percent for shares and correlations, natural units for losses.
        reported: names of the metrics that are reported, the first one judges; empty for all of them.
        keep: what is kept of predictions until the metrics are computed, [P, k]; by default all of them.
        auto_class: name of transformers' auto class for such models; empty for none.
        pipeline_tag: the hub's name for the task; empty for none.
        library: by which the hub says such models are opened.
        opener: its class that does, where that is no auto class of transformers.
        moment_factor: how many times as many tokens as a classifier's second moments are taken from (`SecondOrder`):
            where a prediction has many directions, and each row draws one of them.
        descent_factor: how many times as much of the dense model as a classifier a budget may leave and be worth a
            descent (`Descent.below`): where every prediction hangs on every token, little is lost without a trace.
    """

    name: str
    readout: Callable[[Any, Batch], Predictions]
    likelihood: Likelihood
    tokens: TokenReadout | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict[str, Metric])
    reported: tuple[str, ...] = ()
    keep: Callable[[Predictions], Tensor] = _values_alone
    auto_class: str = ""
    pipeline_tag: str = ""
    library: str = "transformers"
    opener: str = ""
    moment_factor: int = 1
    descent_factor: float = 1.0

    def values(self, returned: Any, batch: Batch) -> Tensor:
        """[P, C]: the predictions alone."""
        return self.readout(returned, batch).values

    def judged_by(self, names: tuple[str, ...]) -> Objective:
        """The same, with these metrics reported; as it is when there are none or it does not have all of them."""
        return replace(self, reported=names) if names and all(name in self.metrics for name in names) else self

    def score(self, predicted: Predicted, dense: Predicted | None = None) -> dict[str, float]:
        """The reported metrics of predictions; those that compare them with the dense model's only where these are
        given.
        """
        sums: dict[object, np.ndarray] = {}
        found: dict[str, float] = {}
        for name in self.reported or self.metrics:
            metric = self.metrics[name]
            if isinstance(metric, ByRow):
                if metric.counts not in sums:
                    sums[metric.counts] = metric.counts(predicted).sum(axis=0)
                found[name] = metric.value(sums[metric.counts])
            elif isinstance(metric, OfRows):
                table = None if metric.compares and dense is None else metric.table(predicted, dense or predicted)
                if table is not None:
                    found[name] = metric.value(table)
            else:
                assert predicted.labels is not None
                found[name] = metric(predicted.values, predicted.labels)
        return found


class Cotangents:
    """dL/dvalues for the predictions of any batch: where a backward pass starts.

    Each prediction has its own loss, so one backward gives every row's gradient, undisturbed by the others.

    Args:
        likelihood: what a prediction means.
        labelled: the gradient of the loss of the given labels (empirical Fisher); otherwise a random direction whose
            covariance is the Fisher information of the model's own prediction (true Fisher).
        rows: number of rows.
        seed: of the random directions, which belong to rows, however these are packed. The parts of a row's predictions
            come one after the other, once.
    """

    def __init__(self, likelihood: Likelihood, *, labelled: bool, rows: int, seed: int) -> None:
        self._likelihood, self._labelled, self._rows, self._seed = likelihood, labelled, rows, seed
        self._generator = torch.Generator().manual_seed(seed)
        self._signs: Tensor | None = None
        self._first = 0
        self._drawn = Counter[int]()

    @property
    def width(self) -> int:
        """C of the first predictions that random directions were drawn for; 0 before."""
        return self._first

    def draw_as_wide(self, width: int) -> None:
        """Draw as if the first predictions had been so wide: in every process that shares the rows, alike."""
        if width and self._signs is None:
            self._first, self._signs = width, _random_signs((self._rows, width), self._generator)

    def of(self, predictions: Predictions) -> Tensor:
        """[P, C]. Raises OptionError when labels are needed and there are none."""
        values = predictions.values.detach().float()
        if not self._labelled:
            signs = self._draw(predictions.rows.cpu(), values.shape[-1])
            return self._likelihood.direction(values, signs.to(values.device))
        if predictions.labels is None:
            raise OptionError("this method takes gradients of labels, and the rows have none", option="no_labels")
        return self._likelihood.gradient(values, predictions.labels)

    def _draw(self, rows: Tensor, width: int) -> Tensor:
        """[P, C] random signs; those of several predictions of a row are drawn for this row."""
        self.draw_as_wide(width)
        assert self._signs is not None
        missing = width - self._signs.shape[1]
        if missing > 0:
            # predictions over positions are as wide as their batch is long
            self._signs = torch.cat([self._signs, _random_signs((missing, self._rows), self._generator).T], dim=1)
        signs = self._signs[rows, :width]
        found, counts = rows.unique(return_counts=True)
        for row, count in zip(found.tolist(), counts.tolist(), strict=True):
            if count == 1 and not self._drawn[row]:
                continue
            # parts of a row's predictions have directions of their own
            before = self._drawn[row] * _APART
            generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + row + before)
            signs[rows == row] = _random_signs((width, count), generator).T
            self._drawn[row] += count
        return signs


def _random_signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """-1 and 1."""
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
