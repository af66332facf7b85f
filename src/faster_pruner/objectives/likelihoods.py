"""Likelihoods: what a prediction means, and the directions that its Fisher information is made of.

values [P, C] are predictions before any softmax or sigmoid. A likelihood gives

* `gradient`: dL/dvalues of the loss of given labels, [P, C];
* `direction`: random directions [P, C] whose covariance over random signs [P, C] is the Fisher information of the
  model's own prediction: with them one backward pass gives the true Fisher, without labels, whatever C is.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.errors import DataError
from faster_pruner.linalg.solve import solve_dtype

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


class Bernoulli:
    """C independent yes-or-no answers: sigmoid and binary cross entropy; labels [P, C] are 0 or 1."""

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """``p - label``."""
        return values.sigmoid() - _fitting(labels, values, "0 or 1 for each of the classes").float()

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance ``diag(p (1 - p))``."""
        p = values.sigmoid()
        return signs * (p * (1 - p)).sqrt()


class Gaussian:
    """C numbers with unit variance: squared error; labels [P] or [P, C] are targets."""

    def gradient(self, values: Tensor, labels: Tensor) -> Tensor:
        """``2 (value - target)``, of the squared error itself."""
        return 2 * (values - _fitting(labels, values, "one number per output").float())

    def direction(self, values: Tensor, signs: Tensor) -> Tensor:
        """Covariance I."""
        del values
        return signs


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


def _fitting(labels: Tensor, like: Tensor, needed: str) -> Tensor:
    """Labels in the shape of something [P] or [P, C]. Raises DataError where they are more or fewer."""
    if labels.numel() != like.numel():
        raise DataError(f"labels {list(labels.shape)} do not fit {like.shape[0]} predictions; needed is {needed}")
    return labels.reshape(like.shape)


def _outside(classes: Tensor, count: int) -> int:
    """The first that is none of the classes."""
    return int(classes[(classes < 0) | (classes >= count)][0])
