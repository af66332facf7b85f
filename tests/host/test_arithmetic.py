"""Whether bfloat16 pays: measured once, kept, and the same for all who share a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from faster_pruner.host import arithmetic, cache
from faster_pruner.host.arithmetic import agreed, bfloat16_pays

_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


class Machine:
    """A machine that is made up: what it has, how fast it is, and how often it was measured."""

    def __init__(self, patch: pytest.MonkeyPatch, home: Path) -> None:
        self.patch, self.home, self.measured = patch, home, 0
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.setattr(arithmetic, "_speed_up", self._speed_up)
        self.speed_up = math.nan
        self.has()

    def _speed_up(self) -> float:
        self.measured += 1
        return self.speed_up

    def has(self, *, avx512: bool = False, amx: bool = False) -> None:
        """Its instructions."""
        for check, there in zip(_CHECKS, (avx512, amx), strict=True):
            self.patch.setattr(torch.cpu, check, lambda there=there: there, raising=False)

    def pays(self, speed_up: float = math.nan) -> bool:
        """The answer of a new process, which would measure this."""
        self.speed_up = speed_up
        arithmetic._own_answer.cache_clear()
        return bfloat16_pays()

    @property
    def files(self) -> list[Path]:
        """All that is kept."""
        return [file for file in self.home.rglob("*") if file.is_file()]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A machine of which nothing is known yet."""
    yield Machine(monkeypatch, tmp_path / "home")
    arithmetic._own_answer.cache_clear()


@pytest.mark.parametrize(("speed_up", "pays"), [(0.6, False), (1.1, False), (1.25, True), (2.6, True)])
@pytest.mark.parametrize("has", [{"avx512": True}, {"amx": True}, {"avx512": True, "amx": True}])
def test_a_clear_gain_is_taken_and_kept(made_up: Machine, speed_up: float, pays: bool, has: dict[str, bool]) -> None:
    made_up.has(**has)
    assert made_up.pays(speed_up) is pays
    # whatever a later run would find, in the same process or another
    assert bfloat16_pays() is pays
    assert made_up.pays(3.0 - speed_up) is pays
    assert made_up.measured == 1
    (file,) = made_up.files
    kept = json.loads(file.read_text())
    assert kept["value"] == speed_up
    assert kept["key"]["torch"] == torch.__version__
    # other instructions are another machine
    made_up.has()
    assert not made_up.pays(9.0)
    assert made_up.measured == 1
    made_up.has(avx512=True, amx=not has.get("amx", False))
    assert made_up.pays(9.0)
    assert made_up.measured == 2


def test_nothing_is_measured_where_the_hardware_has_nothing(made_up: Machine) -> None:
    assert not made_up.pays(9.0)
    assert made_up.measured == 0
    assert made_up.files == []


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("speed_up", [0.5, 9.0])
def test_without_a_cache_hardware_decides(made_up: Machine, amx: bool, speed_up: float) -> None:
    """Each run would measure anew, and one of them something else."""
    made_up.home.write_text("a file where the folder would be")
    made_up.has(avx512=True, amx=amx)
    assert made_up.pays(speed_up) is amx


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1, "value": 2}'])
def test_a_damaged_file_is_measured_again(made_up: Machine, content: str) -> None:
    made_up.has(amx=True)
    assert made_up.pays(9.0)
    (file,) = made_up.files
    file.write_text(content)
    assert not made_up.pays(1.0)
    assert not made_up.pays(9.0)
    assert made_up.files == [file]


def test_of_processes_that_measure_at_once_the_first_is_followed(made_up: Machine) -> None:
    made_up.has(avx512=True)

    def while_another_is_quicker() -> float:
        arithmetic._speed_up = lambda: 2.0
        arithmetic._own_answer.__wrapped__()
        return 0.5

    made_up.patch.setattr(arithmetic, "_speed_up", while_another_is_quicker)
    assert made_up.pays()
    assert len(made_up.files) == 1


@pytest.mark.parametrize("links", [True, False])
def test_what_is_kept_first_stays(made_up: Machine, links: bool) -> None:
    """Also on file systems without hard links."""
    if not links:

        def refused(self: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        made_up.patch.setattr(Path, "hardlink_to", refused)
    assert cache.keep_first("kind", {"a": 1}, "first") == "first"
    assert cache.keep_first("kind", {"a": 1}, "second") == "first"
    assert cache.keep_first("kind", {"a": 2}, "second") == "second"
    assert cache.recall("kind", {"a": 1}) == "first"
    cache.keep("kind", {"a": 1}, "third")
    assert cache.recall("kind", {"a": 1}) == "third"
    assert len(made_up.files) == 2


def test_others_are_agreed_with_for_a_run(made_up: Machine) -> None:
    made_up.has(amx=True)
    assert made_up.pays(9.0)
    with pytest.raises(ZeroDivisionError), agreed(False):
        assert not bfloat16_pays()
        with agreed(True):
            assert bfloat16_pays()
        assert not bfloat16_pays()
        _ = 1 // 0
    assert bfloat16_pays()


def test_measuring_leaves_no_trace() -> None:
    """The run that measures and those that follow give the same bytes."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    try:
        for mode in (torch.enable_grad, torch.inference_mode):
            with mode(), torch.autocast("cpu", torch.bfloat16):
                assert 0.01 < arithmetic._speed_up() < 100
                assert torch.is_autocast_enabled("cpu")
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
