"""Tensors in files look like others, and are gone when nobody holds them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import cases
import fresh
from faster_pruner.errors import OutputError
from faster_pruner.host import heap, mapped
from faster_pruner.model.network import Network

CPU = torch.device("cpu")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def lies_in_file(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is that of a file, as Linux lists it."""
    address = tensor.untyped_storage().data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return "faster-pruner" in line
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed as Linux does it")
def test_what_is_made_inside_lies_in_files(place: Path) -> None:
    x = torch.randn(130, 140)
    with mapped.in_files():
        assert mapped.are_in_files()
        made = [mapped.zeros((200, 100), device=CPU), mapped.copied(x), mapped.settled(x), mapped.copied(x.T)]
        with mapped.in_files(False):
            assert not lies_in_file(mapped.copied(x))
        # biases and norms: as many as matrices, and of no size
        assert not lies_in_file(mapped.copied(x[0]))
    assert all(map(lies_in_file, made))
    assert torch.equal(made[0], torch.zeros(200, 100))
    assert torch.equal(made[1], x)
    assert torch.equal(made[3], x.T)
    assert not mapped.are_in_files()
    assert mapped.settled(x) is x
    assert not lies_in_file(mapped.copied(x))
    # the files have no names any more
    assert list(place.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed as Linux does it")
def test_all_weights_of_a_model_that_was_cut_lie_in_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_SMALL", 1)
    case = cases.make("bert")
    with mapped.in_files():
        student = Network(case.model, case.sublayers).copied()
        for left in (3, 2, 1):
            kept = {s.name: torch.arange(min(s.units, left)) for s in student.sublayers}
            student = student.shrunk(kept)
            paths = [path for s in student.sublayers for path in (s.parts.projection, s.parts.producers[0].path)]
            tensors = [own for path in paths for own in student.model.get_submodule(path).parameters(recurse=False)]
            assert all(map(lies_in_file, tensors))


def test_a_copy_is_of_another_dtype(place: Path) -> None:
    x = torch.randn(200, 300)
    for wanted in (True, False):
        with mapped.in_files(wanted):
            assert torch.equal(mapped.copied(x, dtype=torch.bfloat16), x.bfloat16())
            assert mapped.copied(x).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_nothing_has_no_file(place: Path) -> None:
    with mapped.in_files():
        assert mapped.zeros((0, 4), device=CPU).shape == (0, 4)
        assert mapped.copied(torch.empty(3, 0)).shape == (3, 0)


def test_a_full_disk_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        mapped.in_files(),
        pytest.raises(OutputError, match="No space left on device; use fewer rows, or let .*TMP"),
    ):
        mapped.zeros((400, 400), device=CPU)
    assert list(place.iterdir()) == []


def test_without_glibc_freed_memory_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", missing)
    with heap.freed_at_once():
        assert torch.zeros(1 << 20).sum() == 0


_GAPS = (
    fresh.OWN_MEMORY
    + """
import sys
from contextlib import nullcontext
import torch
from faster_pruner.host.heap import freed_at_once

with freed_at_once() if sys.argv[1] == "at once" else nullcontext():
    before = own_memory()
    for _ in range(3):
        # in between is what stays
        large, small = [], []
        for _ in range(24):
            large.append(torch.ones(1 << 20))
            small.append(torch.ones(1 << 14))
        del large
    print((own_memory() - before) >> 20)
"""
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc does that")
def test_freed_tensors_are_the_systems_again() -> None:
    """Of 96 MiB that were freed nothing stays; left to itself, the library keeps most of them."""
    left = {when: int(fresh.run(_GAPS, when).stdout) for when in ("at once", "as usual")}
    assert left["at once"] < 20
    assert left["as usual"] > 3 * left["at once"]
