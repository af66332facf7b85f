"""Likelihoods against the exact Fisher information and against torch's own losses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.objectives.likelihoods import Bernoulli, Categorical, Compared, Gaussian, Likelihood


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


LIKELIHOODS = [Categorical(), Bernoulli(), Gaussian(), Compared()]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda own: type(own).__name__)
def test_a_divergence_is_zero_at_what_it_is_from_and_only_there(likelihood: Likelihood) -> None:
    dense = 2 * torch.randn(6, 4)
    aim = likelihood.kept(dense)
    values = dense.clone().requires_grad_()
    at_zero = likelihood.divergence(values, aim)
    at_zero.sum().backward()
    assert values.grad is not None
    assert torch.allclose(at_zero, torch.zeros(6), atol=1e-6)
    assert torch.allclose(values.grad, torch.zeros(6, 4), atol=1e-6)
    assert bool((likelihood.divergence(dense + torch.randn(6, 4), aim) > 1e-3).all())


def test_the_divergence_of_classes_is_torchs() -> None:
    dense, values = 3 * torch.randn(5, 7), 3 * torch.randn(5, 7)
    found = Categorical().divergence(values, Categorical().kept(dense))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=dense), torch.distributions.Categorical(logits=values)
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_divergence_of_answers_is_torchs() -> None:
    dense, values = 3 * torch.randn(5, 7), 3 * torch.randn(5, 7)
    found = Bernoulli().divergence(values, Bernoulli().kept(dense))
    one, other = (torch.distributions.Bernoulli(logits=own) for own in (dense, values))
    assert torch.allclose(found, torch.distributions.kl_divergence(one, other).sum(-1), atol=1e-4)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=lambda own: type(own).__name__)
def test_to_second_order_a_divergence_is_the_fisher_information(likelihood: Likelihood) -> None:
    """``D(v + e, v) = e' F e / 2``"""
    values = torch.randn(4)

    def divergence(at: Tensor) -> Tensor:
        return likelihood.divergence(at[None], likelihood.kept(values[None])).sum()

    hessian = torch.autograd.functional.hessian(divergence, values)
    assert torch.allclose(hessian, covariance(likelihood, values), atol=1e-5)


def test_to_second_order_vectors_are_compared_by_their_own_metric() -> None:
    """A small change of all vectors costs what the directions' covariance says, where it changes each by itself.

    The metric counts how similarities change as one of two vectors moves; both do, so that a change has twice the
    square and what both have in common. Along directions that no other vector has a part in, nothing is in common.
    """
    dense = torch.zeros(3, 6)
    dense[0, 0] = dense[1, 1] = dense[2, 2] = 1.0
    change = torch.zeros(3, 6)
    change[:, 3:] = 1e-3 * torch.randn(3, 3)
    found = Compared().divergence(dense + change, dense)
    # outside of what the vectors span, similarities change to fourth order only
    assert torch.allclose(found, change.square().sum(-1) / 2, rtol=1e-3)
    along = torch.zeros(3, 6)
    along[:, :3] = 1e-3 * torch.randn(3, 3)
    gap = along @ dense.T + dense @ along.T
    expected = (along.square().sum(-1) + (6 / 3) * gap.square().sum(-1) / 2) / 2
    assert torch.allclose(Compared().divergence(dense + along, dense), expected, rtol=5e-3)


def test_positions_of_padding_have_no_part() -> None:
    dense, values = torch.randn(2, 5), torch.randn(2, 5)
    short = [own[:, :3] for own in (dense, values)]
    padded = [torch.cat([own, torch.full((2, 2), -torch.inf)], -1).requires_grad_() for own in short]
    found = Categorical().divergence(padded[1], Categorical().kept(padded[0].detach()))
    assert torch.allclose(found, Categorical().divergence(short[1], Categorical().kept(short[0])), atol=1e-6)
    found.sum().backward()
    assert padded[1].grad is not None
    assert bool(padded[1].grad[:, :3].isfinite().all())


def test_of_many_classes_the_likely_ones_are_kept_and_the_rest_together() -> None:
    dense, values = 3 * torch.randn(4, 3000), 3 * torch.randn(4, 3000)
    likelihood = Categorical()
    aim = likelihood.kept(dense)
    assert aim.shape == (4, 256)
    assert torch.allclose(likelihood.divergence(dense, aim), torch.zeros(4), atol=1e-5)
    found = likelihood.divergence(values.requires_grad_(), aim)
    whole = (dense.softmax(-1) * (dense.log_softmax(-1) - values.log_softmax(-1))).sum(-1)
    # classes put together are never further apart
    assert bool((found <= whole + 1e-4).all())
    assert bool((found > 0.3 * whole).all())
    # by hand: one class for all that are not among the likeliest
    p, q = dense.softmax(-1), values.softmax(-1)
    best = p.topk(128).indices
    own, other = p.gather(-1, best), q.gather(-1, best)
    rest = [1 - each.sum(-1) for each in (own, other)]
    expected = (own * (own / other).log()).sum(-1) + rest[0] * (rest[0] / rest[1]).log()
    assert torch.allclose(found, expected, rtol=1e-3)
    found.sum().backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())
