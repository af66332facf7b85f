"""The device at hand, and work on several cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from faster_pruner.errors import OptionError
from faster_pruner.host import devices
from faster_pruner.host.devices import environment, on_all_cores, pick_device
from faster_pruner.selection.elimination import eliminate

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def eight_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield 8
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


@pytest.mark.parametrize(("most", "threads_each"), [(100, 2), (4, 2), (3, 2), (2, 4), (1, 8), (0, 8), (-1, 8)])
def test_no_more_at_once_than_memory_has_room_for(eight_threads: int, most: int, threads_each: int) -> None:
    """Never more than four, whatever is asked for, and one where there is hardly room for any; cores are shared out."""
    at_work, peak, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(max(1, min(4, most)))

    def work(n: int) -> tuple[int, int]:
        nonlocal at_work, peak
        with lock:
            at_work += 1
            peak = max(peak, at_work)
        meet.wait(timeout=30)
        with lock:
            at_work -= 1
        return n, torch.get_num_threads()

    assert on_all_cores(work, range(12), CPU, most=most) == [(n, threads_each) for n in range(12)]
    assert peak == max(1, min(4, most))
    assert torch.get_num_threads() == eight_threads


def test_elsewhere_than_on_a_cpu_one_after_another(eight_threads: int) -> None:
    names = on_all_cores(lambda _: threading.current_thread(), range(3), torch.device("meta"))
    assert names == [threading.current_thread()] * 3
    del eight_threads


def test_eliminations_side_by_side_are_those_one_after_another(two_threads: int) -> None:
    del two_threads
    torch.manual_seed(0)
    problems = [(x.T @ x, torch.randn(n, 5)) for n in (8, 40, 24) for x in [torch.randn(4 * n, n)]]
    together = on_all_cores(lambda problem: eliminate(*problem, damping=1e-2, block=2), problems, CPU)
    for problem, curve in zip(problems, together, strict=True):
        alone = eliminate(*problem, damping=1e-2, block=2)
        assert torch.equal(curve.order, alone.order)
        assert torch.allclose(curve.loss, alone.loss)


def test_devices_by_name() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cpu:x", "cuda:99"):
        with pytest.raises(OptionError, match=f"device '{name}' cannot be used here: ") as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)


def test_the_environment_names_what_a_measurement_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert found["device"].startswith("cpu: ")
    assert len(found["device"]) > len("cpu: ")
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "nothing")
    assert environment(CPU)["device"].startswith("cpu: ")
