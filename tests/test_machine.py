"""Work on several cores."""

from __future__ import annotations

import pytest
import torch

from faster_pruner.machine import on_all_cores
from faster_pruner.selection.obs import damped, eliminate

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_results_come_in_order_and_the_threads_are_put_back(two_threads: int) -> None:
    found = on_all_cores(lambda n: (n, torch.get_num_threads()), range(9), CPU)
    assert found == [(n, 1) for n in range(9)]
    assert torch.get_num_threads() == two_threads
    assert on_all_cores(lambda n: n, [], CPU) == []


def test_an_error_in_one_item_arrives_and_the_threads_are_put_back(two_threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        on_all_cores(lambda n: 1 // n, [1, 0, 1], CPU)
    assert torch.get_num_threads() == two_threads


def test_one_core_works_in_the_caller(two_threads: int) -> None:
    del two_threads
    torch.set_num_threads(1)
    assert on_all_cores(lambda _: torch.get_num_threads(), range(3), CPU) == [1, 1, 1]


def test_eliminations_side_by_side_are_those_one_after_another(two_threads: int) -> None:
    del two_threads
    torch.manual_seed(0)
    problems = [(damped(x.T @ x, 1e-2), torch.randn(n, 5)) for n in (8, 40, 24) for x in [torch.randn(4 * n, n)]]
    together = on_all_cores(lambda problem: eliminate(*problem, block=2), problems, CPU)
    for problem, curve in zip(problems, together, strict=True):
        alone = eliminate(*problem, block=2)
        assert torch.equal(curve.order, alone.order)
        assert torch.allclose(curve.loss, alone.loss)
