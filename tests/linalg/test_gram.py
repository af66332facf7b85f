"""Second moments against sums over the tokens in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from faster_pruner.host.arithmetic import agreed
from faster_pruner.linalg import RegressionMoments, SecondMoment
from faster_pruner.linalg.gram import reduced_products

CPU = torch.device("cpu")


def moment_of(x: Tensor, size: int = 100) -> SecondMoment:
    """The moment of tokens x [T, n] that arrive in parts."""
    moment = SecondMoment(x.shape[1], CPU)
    for part in x.split(size):
        moment.add(part)
    return moment


def plain_of(x: Tensor) -> Tensor:
    """Sum of x' x, float64."""
    return x.double().T @ x.double()


def centred_of(x: Tensor) -> Tensor:
    """Sum of (x - mean)' (x - mean), float64."""
    return plain_of(x.double() - x.double().mean(dim=0))


def far_from_zero(tokens: int, n: int, *, ratio: float = 1e6) -> Tensor:
    """[T, n] float32 tokens whose squared mean is `ratio` times their variance in every column."""
    mixed = torch.randn(tokens, n) @ torch.randn(n, n)
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    return mixed / mixed.std(dim=0) + signs * ratio**0.5


def least_eigenvalue(matrix: Tensor) -> float:
    """The smallest eigenvalue, as a share of the mean diagonal."""
    return float(torch.linalg.eigvalsh(matrix)[0] / matrix.diagonal().mean())


class RoundedFactors(TorchFunctionMode):
    """Every product that is added to a float32 sum rounds its factors to bfloat16, as hardware that has them does."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.addmm_ and torch.get_float32_matmul_precision() == "medium":
            self.products += 1
            args = (args[0], *(factor.bfloat16().float() for factor in args[1:]))
        return func(*args, **(kwargs or {}))


def test_moments_equal_direct_sums_and_centre() -> None:
    x = torch.randn(50, 6) + 3.0
    moment = moment_of(x, 17)
    assert moment.count == 50
    assert torch.allclose(moment.plain(), plain_of(x), rtol=1e-5)
    assert torch.allclose(moment.centred(), centred_of(x), atol=1e-4)
    assert torch.allclose(moment.total, x.double().sum(dim=0), atol=1e-4)
    z = x.double() - moment.centre.double()
    assert torch.allclose(moment.about_centre.double(), z.T @ z, atol=1e-3)
    assert torch.allclose(moment.total_about_centre, z.sum(dim=0), atol=1e-4)


def test_sums_do_not_depend_on_how_tokens_arrive() -> None:
    """More tokens than are multiplied at once, in parts of any size, and more after the sums have been read."""
    x, r = torch.randn(2600, 300).bfloat16(), torch.randn(2600, 7)
    moments = RegressionMoments(300, 7, CPU)
    done = 0
    for size in (1, 1022, 1, 1500, 0, 76):
        moments.add(x[done : done + size], r[done : done + size])
        done += size
        seen = x[:done].float()
        assert moments.count == moments.x.count == done
        # factors may be rounded to bfloat16: off by less than half of what one token adds
        assert float((moments.x.plain() - plain_of(seen)).norm()) < 0.5 * 300
        assert float((moments.plain_cross() - seen.double().T @ r[:done].double()).norm()) < 0.5 * (300 * 7) ** 0.5
        assert torch.equal(moments.x.about_centre, moments.x.about_centre.T)
        assert torch.allclose(moments.x.total, seen.double().sum(dim=0), atol=1e-3)
        assert torch.allclose(moments.target_total, r[:done].double().sum(dim=0), atol=1e-3)
        assert float(moments.target_square) == pytest.approx(float(r[:done].double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("tokens", [32, 3000])
def test_a_moment_about_a_far_mean_stays_semi_definite(tokens: int) -> None:
    """Summed about zero in float32 and centred afterwards, eigenvalues would go far below zero."""
    x = far_from_zero(tokens, 24)
    about_zero = (x.T @ x).double()
    naive = about_zero - x.double().sum(dim=0).outer(x.double().sum(dim=0)) / tokens
    assert least_eigenvalue(naive) < -1e-3
    moment = moment_of(x)
    assert least_eigenvalue(moment.centred()) > -1e-6
    assert torch.allclose(moment.centred(), centred_of(x), atol=1e-5 * tokens)
    assert torch.allclose(moment.plain(), plain_of(x), rtol=1e-9)


def test_rounded_factors_do_no_harm_to_a_nearly_constant_neuron() -> None:
    """bfloat16 has eight bits: about zero, a neuron that is 1 +- 0.0001 would have no variance left."""
    x = torch.randn(3000, 16)
    x[:, 5] = 1.0 + 1e-4 * x[:, 5]
    x[:, 9] = -30.0 + 1e-3 * x[:, 9]
    expected = centred_of(x)
    with RoundedFactors() as rounding, agreed(True):
        moment = moment_of(x)
        found = moment.centred()
    assert rounding.products > 0
    scale = expected.diagonal().sqrt()
    assert torch.allclose(found / scale / scale[:, None], expected / scale / scale[:, None], atol=5e-3)
    assert least_eigenvalue(found / scale / scale[:, None]) > 0.5
    assert torch.allclose(moment.plain(), plain_of(x), rtol=1e-3, atol=5.0)


def test_products_are_reduced_inside_the_block_only() -> None:
    before = torch.get_float32_matmul_precision()
    for pays, expected in ((True, "medium"), (False, "highest")):
        with pytest.raises(ZeroDivisionError), agreed(pays), reduced_products(CPU):
            assert torch.get_float32_matmul_precision() == expected
            _ = 1 // 0
        assert torch.get_float32_matmul_precision() == before
    with agreed(False), reduced_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "medium"


def test_few_tokens_whatever_they_are() -> None:
    """No token at all, one token, and the same token again and again."""
    empty = SecondMoment(3, CPU)
    assert empty.count == 0
    assert not empty.plain().any()
    assert not empty.centred().any()
    x = torch.tensor([[1.5, -1000.25, 0.0]])
    for tokens in (1, 700, 2100):
        moment = moment_of(x.expand(tokens, 3))
        assert torch.allclose(moment.plain(), plain_of(x) * tokens, rtol=1e-6)
        assert float(moment.centred().abs().max()) <= 1e-6 * tokens


@pytest.mark.parametrize("sizes", [(2500, 40), (40, 2500), (0, 60), (60, 0)])
def test_plus_is_the_moment_of_both(sizes: tuple[int, int]) -> None:
    """And as exact far from zero as the two are."""
    x = far_from_zero(sum(sizes), 12)
    one, other = (moment_of(part) for part in x.split(sizes))
    both = one.plus(other)
    assert both.count == sum(sizes)
    assert torch.allclose(both.total, x.double().sum(dim=0), rtol=1e-9)
    assert torch.allclose(both.plain(), plain_of(x), rtol=1e-9)
    assert torch.allclose(both.centred(), centred_of(x), atol=1e-5 * sum(sizes))
    assert least_eigenvalue(both.centred()) > -1e-6
    # the two are as they were
    assert one.count == sizes[0]
    assert torch.allclose(other.plain(), plain_of(x[sizes[0] :]), rtol=1e-9)


def test_a_moment_can_be_put_together_from_its_parts_and_added_to() -> None:
    x, more = far_from_zero(1500, 10), far_from_zero(300, 10)
    seen = moment_of(x)
    parts = (seen.about_centre.clone(), seen.total_about_centre.clone(), seen.centre.clone(), seen.count)
    again = SecondMoment.of(*parts)
    assert torch.equal(again.plain(), seen.plain())
    assert torch.equal(again.centred(), seen.centred())
    again.add(more)
    both = torch.cat([x, more])
    assert again.count == 1800
    assert torch.allclose(again.plain(), plain_of(both), rtol=1e-9)
    assert torch.allclose(again.centred(), centred_of(both), atol=1e-5 * 1800)


def test_regression_moments_far_from_zero() -> None:
    """Cross moments, sums of squares and the error of a fit, centred and not."""
    x, noise = far_from_zero(1300, 8), torch.randn(1300, 3)
    r = (x.double() @ torch.randn(8, 3).double()).float() + noise + torch.tensor([500.0, -800.0, 0.0])
    moments = RegressionMoments(8, 3, CPU)
    for a, b in zip(x.split(90), r.split(90), strict=True):
        moments.add(a, b)
    wide_x, wide_r = x.double(), r.double()
    centred = (wide_x - wide_x.mean(dim=0)).T @ (wide_r - wide_r.mean(dim=0))
    assert torch.allclose(moments.centred_cross(), centred, atol=1e-2)
    assert torch.allclose(moments.plain_cross(), wide_x.T @ wide_r, rtol=1e-7)
    assert float(moments.target_square) == pytest.approx(float(wide_r.square().sum()), rel=1e-9)
    weight, bias = torch.randn(3, 8), torch.randn(3)
    left = wide_x @ weight.double().T + bias.double() - wide_r
    assert moments.error(weight, bias) == pytest.approx(float(left.norm() / wide_r.norm()), rel=1e-6)
    matrix, right_side = moments.normal_equations(intercept=False)
    assert torch.equal(matrix, moments.x.plain())
    assert torch.equal(right_side, moments.plain_cross())
