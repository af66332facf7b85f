"""Gradients of the loss with respect to the logits: where every backward pass of the calibration starts.

A cotangent is a function of the logits [B, C] and a batch, [B, C] -> [B, C]: row i is dL_i/dlogits_i of example i's
own loss, so a backward from it gives every example's gradient at once, undisturbed by the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.batches import Batch

Problem = Literal["single_label_classification", "regression", "multi_label_classification"]
Cotangent = Callable[[Tensor, Batch], Tensor]

# Up to this many classes the softmax Fisher is diagonalised per example; beyond, a cheaper exact factor is used.
_MOST_CLASSES_TO_DIAGONALISE = 32


def problem_of(config: Any) -> Problem:
    """The kind of task that a model's head was trained for, from its config."""
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return "multi_label_classification"
    return "regression" if int(config.num_labels) == 1 else "single_label_classification"


def labelled(problem: Problem) -> Cotangent:
    """Gradient of the given labels' loss: cross entropy, squared error, or binary cross entropy (empirical Fisher)."""

    def cotangent(logits: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None
        wide = logits.detach().float()
        if problem == "regression":
            return 2 * (wide - batch.labels.float().view_as(wide))
        if problem == "multi_label_classification":
            return wide.sigmoid() - batch.labels.float()
        return wide.softmax(dim=-1) - functional.one_hot(batch.labels, wide.shape[-1])

    return cotangent


def true_fisher(problem: Problem, *, rows: int, seed: int) -> Cotangent:
    """A random direction whose covariance is the Fisher information of the model's own prediction; needs no labels.

    For a softmax it is ``sum_j e_j sqrt(l_j) q_j`` with random signs e and the eigenpairs (l, q) of ``diag(p) - p p'``:
    for two classes there is one eigenpair, so this is exactly the gradient of the logit gap times ``sqrt(p (1 -
    p))``. C classes cost
    one pass.

    Args:
        problem: kind of task.
        rows: number of calibration rows; the signs belong to rows, whatever the batches look like.
        seed: of the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    signs: list[Tensor] = []

    def cotangent(logits: Tensor, batch: Batch) -> Tensor:
        wide = logits.detach().float()
        if not signs:
            signs.append(torch.randint(0, 2, (rows, wide.shape[-1]), generator=generator).float() * 2 - 1)
        sign = signs[0][batch.rows.cpu()].to(wide.device)
        if problem == "regression":
            return sign
        if problem == "multi_label_classification":
            p = wide.sigmoid()
            return sign * (p * (1 - p)).sqrt()
        return _softmax_direction(wide.softmax(dim=-1), sign)

    return cotangent


def _softmax_direction(p: Tensor, sign: Tensor) -> Tensor:
    """[B, C] directions with covariance ``diag(p) - p p'`` over random signs [B, C]."""
    classes = p.shape[-1]
    if classes == 2:
        # the closed form of the only eigenpair: no rounding however confident the prediction
        gap = p.prod(dim=-1, keepdim=True).sqrt() * sign[:, :1]
        return torch.cat([gap, -gap], dim=-1)
    if classes > _MOST_CLASSES_TO_DIAGONALISE:
        root = p.sqrt() * sign
        return root - p * (p.sqrt() * root).sum(dim=-1, keepdim=True)
    wide = p.double()
    values, vectors = torch.linalg.eigh(torch.diag_embed(wide) - wide[:, :, None] * wide[:, None, :])
    return (vectors * (values.clamp(min=0).sqrt() * sign)[:, None, :]).sum(dim=-1).to(p.dtype)
