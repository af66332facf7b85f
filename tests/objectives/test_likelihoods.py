"""Likelihoods against the exact Fisher information and against torch's own losses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.objectives.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood


def every_sign(count: int) -> Tensor:
    """[2^count, count]"""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)))


def covariance(likelihood: Likelihood, values: Tensor) -> Tensor:
    """[C, C]: mean outer product of the directions of one prediction [C] over all vectors of signs."""
    signs = every_sign(values.numel())
    directions = likelihood.direction(values.expand(len(signs), -1), signs)
    return directions.T @ directions / len(signs)


def softmax_fisher(values: Tensor) -> Tensor:
    """[C, C]: the covariance of ``p - onehot(y)`` with y drawn from p, outcome by outcome."""
    p = values.double().softmax(-1)
    eye = torch.eye(p.numel(), dtype=torch.float64)
    return sum((p[y] * torch.outer(p - eye[y], p - eye[y]) for y in range(p.numel())), torch.zeros_like(eye))


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_directions_of_a_softmax_have_its_fisher_information(classes: int) -> None:
    for values in (torch.zeros(classes), 3 * torch.randn(classes), torch.tensor([9.0] + [0.0] * (classes - 1))):
        found = covariance(Categorical(), values)
        assert torch.allclose(found, softmax_fisher(values).float(), atol=1e-6)


@pytest.mark.parametrize("classes", [33, 100])
def test_directions_of_many_classes_have_the_same_fisher_information(classes: int) -> None:
    """Too many for all vectors of signs: the directions are linear in the signs, so those of unit vectors tell."""
    values, likelihood = 2 * torch.randn(classes), Categorical()
    columns = likelihood.direction(values.expand(classes, -1), torch.eye(classes)).T
    signs = torch.randint(0, 2, (5, classes)).float() * 2 - 1
    assert torch.allclose(likelihood.direction(values.expand(5, -1), signs), signs @ columns.T, atol=1e-6)
    assert torch.allclose(columns @ columns.T, softmax_fisher(values).float(), atol=1e-6)


def test_two_classes_lose_nothing_however_sure_the_model_is() -> None:
    values = torch.tensor([[40.0, 0.0]])
    direction = Categorical().direction(values, torch.ones(1, 2)).double()
    exact = torch.tensor(40.0).double().neg().exp().sqrt()
    assert torch.allclose(direction, torch.tensor([[1.0, -1.0]]).double() * exact, rtol=1e-5)


def test_directions_of_yes_or_no_answers() -> None:
    values = torch.randn(5)
    p = values.sigmoid()
    assert torch.allclose(covariance(Bernoulli(), values), torch.diag(p * (1 - p)), atol=1e-6)


def test_directions_of_targets() -> None:
    assert torch.equal(covariance(Gaussian(), torch.randn(4)), torch.eye(4))


def by_autograd(loss: Tensor, values: Tensor) -> Tensor:
    return torch.autograd.grad(loss, values)[0]


@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_gradient_of_cross_entropy(classes: int, dtype: torch.dtype) -> None:
    values, labels = torch.randn(9, classes, requires_grad=True), torch.randint(0, classes, (9,))
    expected = by_autograd(functional.cross_entropy(values, labels, reduction="sum"), values)
    assert torch.allclose(Categorical().gradient(values.detach(), labels.to(dtype)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_gradient_of_binary_cross_entropy(dtype: torch.dtype) -> None:
    values, labels = torch.randn(9, 4, requires_grad=True), torch.randint(0, 2, (9, 4))
    loss = functional.binary_cross_entropy_with_logits(values, labels.float(), reduction="sum")
    assert torch.allclose(Bernoulli().gradient(values.detach(), labels.to(dtype)), by_autograd(loss, values), atol=1e-6)


@pytest.mark.parametrize(("shape", "targets"), [((9, 1), (9,)), ((9, 1), (9, 1)), ((9, 3), (9, 3))])
def test_gradient_of_squared_error(shape: tuple[int, int], targets: tuple[int, ...]) -> None:
    values, labels = torch.randn(shape, requires_grad=True), torch.randn(targets)
    loss = functional.mse_loss(values, labels.view(shape), reduction="sum")
    assert torch.allclose(Gaussian().gradient(values.detach(), labels), by_autograd(loss, values), atol=1e-6)
