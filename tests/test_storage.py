"""Hidden states in memory and in files look the same; a pass that spills gives the same model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from faster_pruner.families import FAMILIES
from faster_pruner.options import PRESETS, Budget, CalibrationOptions
from faster_pruner.pipeline import calibrate_model, cut
from faster_pruner.storage import HiddenStates, Parking, Shelf
from tiny import make_model, make_rows

CPU = torch.device("cpu")


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
    view, other = base.view(3, 4)[:, 1:], torch.randn(5)
    before, before_other = view.clone(), other.clone()
    parking.park(7, (base, view, other))
    assert base.untyped_storage().nbytes() == 0
    parking.fetch(7)
    assert torch.equal(view, before)
    assert torch.equal(other, before_other)
    parking.fetch(7)


def test_parking_inside_the_limit_leaves_tensors_alone() -> None:
    shelf = Shelf(1000)
    parking = Parking(shelf)
    x = torch.randn(10)
    parking.park(0, (x,))
    assert x.untyped_storage().nbytes() == 40
    assert shelf.held == 40
    parking.fetch(0)
    assert shelf.held == 0


@pytest.mark.parametrize("name", ["default", "kwon2022"])
def test_a_memory_limit_changes_where_things_lie_and_nothing_else(name: str, tmp_path: Path) -> None:
    model, family, method = make_model("bert"), FAMILIES["bert"], PRESETS[name]
    pruned = []
    for limit in (sys.maxsize, 0, 5000):
        options = CalibrationOptions(memory_limit=limit, tokens_per_batch=64)
        calibrated = calibrate_model(model, family, make_rows(24), method, options)
        pruned.append(cut(calibrated, Budget(macs=0.5), method).model.state_dict())
        shelf = calibrated.data.setting.shelf
        assert (shelf.spilled > 0) == (limit < sys.maxsize)
        assert shelf.held <= limit
    for other in pruned[1:]:
        assert all(torch.equal(other[key], value) for key, value in pruned[0].items())
