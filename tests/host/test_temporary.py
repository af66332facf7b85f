"""Temporary folders vanish, also those of processes that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from faster_pruner.errors import OutputError
from faster_pruner.host import temporary
from faster_pruner.host.spill import Shelf
from faster_pruner.host.temporary import temporary_folder

pytest.importorskip("fcntl")

_WRITING = """
import sys, tempfile, time, torch
from faster_pruner.host.spill import Shelf
from faster_pruner.host.temporary import temporary_folder
tempfile.tempdir = sys.argv[1]
shelf = Shelf(0)
print(shelf.write(torch.zeros(3)).parent.name)
with temporary_folder() as folder:
    (folder / "weights").write_text("half")
    print(folder.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(place: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(each.name for each in place.iterdir())


def test_a_folder_vanishes_however_its_block_ends(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), temporary_folder() as folder:
        (folder / "inside").mkdir()
        assert folder.parent == place
        assert f"-{os.getpid()}-" in folder.name
        _ = 1 // 0
    assert names(place) == []


def test_what_a_killed_process_left_goes_with_the_next_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living process keeps what it has, also where its number says nothing, as in another container."""
    writing = subprocess.Popen([sys.executable, "-c", _WRITING, place], stdout=subprocess.PIPE, text=True)
    try:
        assert writing.stdout is not None
        left = sorted(writing.stdout.readline().strip() for _ in range(2))
        for knows in (True, False):
            if not knows:
                monkeypatch.setattr(temporary, "_alive", lambda process: False)
            with temporary_folder() as folder, temporary_folder() as other:
                assert names(place) == sorted([*left, folder.name, other.name])
            assert names(place) == left
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
    finally:
        writing.kill()
        writing.communicate()
    assert names(place) == left
    shelf = Shelf(0)
    own = shelf.write(torch.zeros(3)).parent
    assert names(place) == [own.name]
    del shelf
    assert names(place) == []


def test_what_is_not_ours_stays(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other names, and links, which anybody may put there."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_text("mine")
    kept = [f"faster-pruner-{dead.pid}", f"faster-pruner-{dead.pid}-a-b", f"faster-prunes-{dead.pid}-abc", "else"]
    for name in (*kept, f"faster-pruner-{dead.pid}-abc"):
        (place / name).mkdir()
    link = f"faster-pruner-{dead.pid}-link"
    (place / link).symlink_to(elsewhere)
    with temporary_folder():
        pass
    assert names(place) == sorted([*kept, link])
    assert (elsewhere / "precious").read_text() == "mine"


def test_leftovers_make_room_before_room_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(temporary, "check_space", lambda wanted: seen.append(names(place)))
    monkeypatch.setattr(temporary, "_alive", lambda process: False)
    (place / "faster-pruner-1-abc").mkdir()
    with temporary_folder(size=10):
        assert seen == [[]]
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with pytest.raises(OutputError, match="not enough disk space"), temporary_folder(size=10**18):
        pass
    assert names(place) == []
