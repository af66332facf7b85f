"""Hidden states in memory and in files look the same; a pass that spills gives the same model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import OutputError
from faster_pruner.host import spill
from faster_pruner.host.spill import HiddenStates, Parking, Shelf, room
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.model.spec import resolve
from faster_pruner.model.table import FAMILIES
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import PRESETS, CalibrationOptions


def test_beyond_the_limit_tensors_go_to_files_and_come_back() -> None:
    shelf = Shelf(100)
    kept = HiddenStates(shelf)
    tensors = [torch.randn(4, 5), torch.randn(3, 5, dtype=torch.float64), torch.randn(2, 2).bfloat16()]
    for tensor in tensors:
        kept.append(tensor)
    assert shelf.held == 80 + 8
    assert shelf.spilled == 120
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True))
    assert torch.equal(kept[-2:][0], tensors[1])


def test_what_is_parked_finds_the_room_that_was_set_aside_for_it() -> None:
    shelf = Shelf(100, aside=60)
    kept = HiddenStates(shelf)
    parking = Parking(shelf)
    for _ in range(3):
        kept.append(torch.zeros(5))
    assert (shelf.held, shelf.spilled) == (40, 20)
    parking.park(0, 50, lambda: pytest.fail("it fits"))
    # what is parked already lies in the room that is set aside
    kept.append(torch.zeros(1))
    assert (shelf.held, shelf.spilled) == (90, 24)
    kept.clear()
    kept.append(torch.zeros(10))
    assert shelf.held == 90
    # and goes beyond it where nobody else needs that
    parking.park(1, 10, lambda: pytest.fail("it fits"))
    other = torch.ones(3)
    parking.park(2, 12, lambda: [other])
    assert (shelf.held, shelf.spilled) == (100, 36)
    kept.append(torch.zeros(1))
    assert shelf.spilled == 40
    for place in range(3):
        parking.fetch(place)
    assert shelf.held == 40
    assert other.sum() == 3


def test_more_than_all_cannot_be_set_aside() -> None:
    shelf = Shelf(100, aside=1000)
    assert not shelf.reserve(1)
    assert shelf.park(100)
    assert shelf.held == 100


def test_the_folder_goes_with_the_shelf() -> None:
    shelf = Shelf(0)
    file = shelf.write(torch.zeros(3))
    folder = file.parent
    assert folder.is_dir()
    del shelf
    assert not folder.exists()


def test_parking_frees_memory_and_brings_the_same_values_back() -> None:
    shelf = Shelf(0)
    parking = Parking(shelf)
    base = torch.arange(12.0)
    view, other = base.view(3, 4)[:, 1:], torch.randn(5).bfloat16()
    before, before_other = view.clone(), other.clone()
    parking.park(7, 58, lambda: (base, view, other))
    assert base.untyped_storage().nbytes() == 0
    # one storage that two tensors share is written once
    assert shelf.spilled == 48 + 10
    parking.fetch(7)
    assert torch.equal(view, before)
    assert torch.equal(other, before_other)
    parking.fetch(7)


def test_parking_inside_the_limit_leaves_tensors_alone() -> None:
    shelf = Shelf(1000)
    parking = Parking(shelf)
    x = torch.randn(10)

    def never() -> list[torch.Tensor]:
        raise AssertionError("nobody looks for tensors that may stay in memory")

    parking.park(0, 40, never)
    assert x.untyped_storage().nbytes() == 40
    assert shelf.held == 40
    parking.fetch(0)
    assert shelf.held == 0


def test_a_place_that_is_parked_twice_brings_both_back() -> None:
    shelf = Shelf(0)
    parking = Parking(shelf)
    one, other = torch.randn(3), torch.randn(4)
    before = one.clone(), other.clone()
    parking.park(1, 12, lambda: [one])
    parking.park(1, 16, lambda: [other, one])
    parking.fetch(1)
    assert torch.equal(one, before[0])
    assert torch.equal(other, before[1])


@pytest.mark.parametrize("name", ["default", "kwon2022"])
def test_a_memory_limit_changes_where_things_lie_and_nothing_else(name: str) -> None:
    model, method = tiny.make_model("bert"), PRESETS[name]
    subject = Subject(model, resolve(model, FAMILIES["bert"]), objective_of(model))
    pruned = []
    for limit in (sys.maxsize, 0, 5000):
        options = CalibrationOptions(memory_limit=limit, tokens_per_batch=64)
        calibrated = calibrate(subject, tiny.make_rows(24), method, options)
        pruned.append(cut(calibrated, Budget(macs=0.5), method).model.state_dict())
        shelf = calibrated.data.setting.shelf
        assert (shelf.spilled > 0) == (limit < sys.maxsize)
        assert shelf.held <= limit
    for other in pruned[1:]:
        assert all(torch.equal(other[key], value) for key, value in pruned[0].items())


def test_room_that_memory_does_not_have_is_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It looks the same from outside, goes with its tensor, and a full disk is an error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spill, "free_memory", lambda device: 2 * 12 * 4)
    mapped: list[int] = []
    from_file = torch.from_file

    def seen(*given: Any, size: int, **options: Any) -> torch.Tensor:
        mapped.append(size)
        return from_file(*given, size=size, **options)

    monkeypatch.setattr(torch, "from_file", seen)
    assert room((3, 4), torch.float32).shape == (3, 4)
    assert mapped == []
    found = room((4, 4), torch.float32)
    assert mapped == [16]
    values = torch.randn(4, 4)
    found[:] = values
    assert torch.equal(found, values)
    assert torch.equal(found[1:3].clone(), values[1:3])
    assert list(tmp_path.iterdir()) == []

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match="fit neither into memory nor into .*: No space left on device; use few"):
        room((4, 4), torch.float32)
    assert list(tmp_path.iterdir()) == []
