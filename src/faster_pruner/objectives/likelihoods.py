"""Likelihoods: what a prediction means, and the directions that its Fisher information is made of.

values [P, C] are predictions before any softmax or sigmoid. A likelihood gives

* `gradient`: dL/dvalues of the loss of given labels, [P, C];
* `direction`: random directions [P, C] whose covariance over random signs [P, C] is the Fisher information of the
  model's own prediction: with them one backward pass gives the true Fisher, without labels, whatever C is;
* `divergence`: how far predictions are from those of another model, [P]; `kept` is what of that model's has to be
  known for it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.errors import DataError
from faster_pruner.linalg.solve import solve_dtype

# Of more classes than this, only the most likely ones are kept to compare with, and what is left to the others.
_MOST_CLASSES_TO_KEEP, _MOST_LIKELY = 1024, 128
# Probability that these have at least.
_LEAST_REST = 1e-6
# Up to this many classes the softmax Fisher is diagonalised per prediction; beyond, a cheaper exact factor is used.
_MOST_CLASSES_TO_DIAGONALISE = 32


class Likelihood(Protocol):
    """What an objective asks of a likelihood."""

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """[P, C]: gradient of the loss of `labels`."""
        ...

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """[P, C]: directions with the covariance of the model's own Fisher information over `signs` [P, C]."""
        ...

    def kept(self, values: Tensor) -> Tensor:
        """[P, K]: what of a model's predictions [P, C] others are compared with."""
        ...

    def divergence(self, values: Tensor, aim: Tensor) -> Tensor:
        """[P]: how far predictions [P, C] are from those that `aim` [P, K] was kept of; 0 where they are equal."""
        ...


class Categorical:
    """One of C classes: softmax and cross entropy; labels [P] are class indices.

    The direction is ``sum_j e_j sqrt(l_j) q_j`` with the signs e and the eigenpairs (l, q) of ``diag(p) - p p'``.
    For two classes there is one eigenpair, so it is exactly the gradient of the gap between the two values times
    ``sqrt(p (1 - p))``.
    """

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """``p - onehot(label)``."""
        count = values.shape[-1]
        classes = _fitting(labels, values[:, 0], f"one class index, 0 to {count - 1}, per prediction").long()
        if not bool(((classes >= 0) & (classes < count)).all()):
            raise DataError(f"a label is {_outside(classes, count)}; the model has the classes 0 to {count - 1}")
        return values.softmax(dim=-1) - functional.one_hot(classes, count)

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance ``diag(p) - p p'``."""
        p = values.softmax(dim=-1)
        classes = p.shape[-1]
        if classes == 2:
            # the closed form of the only eigenpair: no rounding however confident the prediction
            gap = p.prod(dim=-1, keepdim=True).sqrt() * signs[:, :1]
            return torch.cat([gap, -gap], dim=-1)
        if classes > _MOST_CLASSES_TO_DIAGONALISE:
            root = p.sqrt() * signs
            return root - p * root.sum(dim=-1, keepdim=True)
        # in float32 the eigenvalue that is zero would come out near 1e-8, and its root is no rounding
        wide = values.to(solve_dtype(values.device)).softmax(dim=-1)
        eigenvalues, vectors = torch.linalg.eigh(torch.diag_embed(wide) - wide[:, :, None] * wide[:, None, :])
        return (vectors * (eigenvalues.clamp(min=0).sqrt() * signs)[:, None, :]).sum(dim=-1).to(p.dtype)

    def kept(self, values: Tensor) -> Tensor:
        """[P, C] log-probabilities; of many classes [P, 2 k], those of the most likely ones and which these are."""
        logs = values.log_softmax(dim=-1)
        if values.shape[-1] <= _MOST_CLASSES_TO_KEEP:
            return logs
        best = logs.topk(_MOST_LIKELY, dim=-1)
        # float32 holds whole numbers up to 16 million exactly
        return torch.cat([best.values, best.indices.to(logs.dtype)], dim=-1)

    def divergence(self, values: Tensor, aim: Tensor) -> Tensor:
        """``KL(aim || values)``; where not all classes were kept, with all others as one class."""
        logs = values.log_softmax(dim=-1)
        if values.shape[-1] > _MOST_CLASSES_TO_KEEP:
            aim, classes = aim.chunk(2, dim=-1)
            logs = logs.gather(-1, classes.long())
            rests = [(-own.exp().sum(dim=-1, keepdim=True)).clamp(min=-1 + _LEAST_REST).log1p() for own in (aim, logs)]
            aim, logs = (torch.cat([own, rest], dim=-1) for own, rest in zip((aim, logs), rests, strict=True))
        # what is impossible (a position of padding) has a part in neither
        possible = aim > -torch.inf
        gap = aim.masked_fill(~possible, 0.0) - logs.masked_fill(~possible, 0.0)
        return (aim.exp() * gap).sum(dim=-1)


class Bernoulli:
    """C independent yes-or-no answers: sigmoid and binary cross entropy; labels [P, C] are 0 or 1."""

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """``p - label``."""
        return values.sigmoid() - _fitting(labels, values, "0 or 1 for each of the classes").float()

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance ``diag(p (1 - p))``."""
        p = values.sigmoid()
        return signs * (p * (1 - p)).sqrt()

    def kept(self, values: Tensor) -> Tensor:
        """All of them."""
        return values

    def divergence(self, values: Tensor, aim: Tensor) -> Tensor:
        """Sum over the classes of the KL divergence of one answer."""
        p = aim.sigmoid()
        return (p * (functional.logsigmoid(aim) - functional.logsigmoid(values))).sum(dim=-1) + (
            (1 - p) * (functional.logsigmoid(-aim) - functional.logsigmoid(-values))
        ).sum(dim=-1)


class Gaussian:
    """C numbers with unit variance: squared error; labels [P] or [P, C] are targets."""

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """``2 (value - target)``, of the squared error itself."""
        return 2 * (values - _fitting(labels, values, "one number per output").float())

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance I."""
        del values
        return signs

    def kept(self, values: Tensor) -> Tensor:
        """All of them."""
        return values

    def divergence(self, values: Tensor, aim: Tensor) -> Tensor:
        """Squared distance."""
        return (values - aim).square().sum(dim=-1)


class Compared(Gaussian):
    """A vector that is compared with others: half of what counts are its C numbers, half are its similarities.

    A change of all vectors by D [P, C] changes the similarities of those of a batch, V V', by D V' + V D'. Its square,
    summed over the pairs, weighs directions by how far the vectors spread along them: V' V. That alone would leave
    directions to chance in which few texts differ, so that the vectors themselves have as large a part
    (docs/embeddings.md).
    """

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance ``(I + C V'V / ||V||^2) / 2``, both parts of the same trace."""
        wide = values.to(solve_dtype(values.device))
        metric = wide.T @ wide
        metric *= values.shape[1] / metric.trace().clamp(min=torch.finfo(metric.dtype).tiny)
        metric.diagonal().add_(1)
        root = torch.linalg.cholesky(metric / 2)
        return (signs.to(root.dtype) @ root.T).to(values.dtype)

    def divergence(self, values: Tensor, aim: Tensor) -> Tensor:
        """Half the squared distance of the vector, half that of its similarities to the others of the batch.

        To second order it is the metric of `direction`.
        """
        apart = super().divergence(values, aim)
        scale = values.shape[1] / aim.square().sum().clamp(min=torch.finfo(aim.dtype).tiny)
        between = (values @ values.T - aim @ aim.T).square().sum(dim=-1) / 2
        return (apart + scale * between) / 2


def _fitting(labels: Tensor, like: Tensor, needed: str) -> Tensor:
    """Labels in the shape of something [P] or [P, C]. Raises DataError where they are more or fewer."""
    if labels.numel() != like.numel():
        raise DataError(f"labels {list(labels.shape)} do not fit {like.shape[0]} predictions; needed is {needed}")
    return labels.reshape(like.shape)


def _outside(classes: Tensor, count: int) -> int:
    """The first that is none of the classes."""
    return int(classes[(classes < 0) | (classes >= count)][0])
