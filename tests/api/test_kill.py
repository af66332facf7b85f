"""A process that is killed leaves the old folder or the complete new one, never anything between."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import fresh
from faster_pruner import load
from faster_pruner.host.folders import _exchange, _system_exchange

# Prunes argv[1] with data argv[2] into argv[3] again and again, in forked children that kill themselves at the n-th
# event (every second one): a stage starts, a stage ends, or a file system call of the save is about to happen.
_CHILD = (
    fresh.AROUND
    + """
import os, signal, sys, shutil
from pathlib import Path
import safetensors.torch
from faster_pruner import CalibrationOptions, Data, Output, Run, prune
from faster_pruner.host import folders
from faster_pruner.progress import Silent

class Killer(Silent):
    def __init__(self, at): self.left = at
    def event(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)
    def start(self, stage, total): self.event()
    def end(self, seconds): self.event()

from faster_pruner.runtimes import timing
timing._FEWEST_PAIRS, timing._SECONDS_PER_SHAPE = 1, 0.0
model, data, folder, macs, first = sys.argv[1:6]
import torch
torch.set_num_threads(1)
for at in range(int(first), 200, 2):
    child = os.fork()
    if child == 0:
        killer = Killer(at)
        around(Path, "write_text", killer); around(Path, "rename", killer); around(Path, "chmod", killer)
        around(folders, "_system_exchange", killer); around(shutil, "rmtree", killer)
        rows, output = Data(task="sst2", folder=data), Output(folder=folder, overwrite=True)
        few = CalibrationOptions(rows=16)
        prune(model, rows, macs=float(macs), output=output, run=Run(progress=killer), calibration=few)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = Path(folder, "result.json")
    print(at, os.WIFSIGNALED(status), found.stat().st_mtime_ns if found.exists() else None, flush=True)
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
sys.exit(3)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_stage_and_in_the_middle_of_the_save(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = fresh.run(_CHILD, checkpoint, data, folder, "0.6", "1").stdout.splitlines()
    # into an empty place: nothing, until all of it is there
    there = [line.split()[2] != "None" for line in first]
    assert len(first) > 12
    assert there == sorted(there)
    assert not there[0]
    load(folder)
    before = (folder / "result.json").stat().st_mtime_ns
    second = fresh.run(_CHILD, checkpoint, data, folder, "0.5", "2").stdout.splitlines()
    # over an old folder: the old one, then the new one, never none
    assert "None" not in {line.split()[2] for line in second}
    assert second[0].split()[2] == str(before)
    assert json.loads((folder / "result.json").read_text())["macs_asked"] == 0.5
    load(folder)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_clean_up_like_ctrl_c(name: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from faster_pruner import cli\n"
        "from faster_pruner.api import outcome\n"
        f"outcome.verify = lambda *a: os.kill(os.getpid(), signal.{name})\n"
        "sys.argv = ['faster-pruner', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    options = ["--task", "sst2", "--data", str(data), "--macs", "0.5", "--output", str(tmp_path / "out")]
    done = fresh.run(script, "prune", checkpoint, *options, check=False)
    assert done.returncode == 130
    assert "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_says_what_is_there(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from faster_pruner import cli\n"
        "from faster_pruner.api import outcome\n"
        "outcome.verify = lambda *a: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['faster-pruner', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    options = ["--task", "sst2", "--data", str(data), "--macs", "0.5", "--output", str(tmp_path / "out")]
    options += ["--keep-statistics", str(tmp_path / "kept")]
    done = fresh.run(script, "prune", checkpoint, *options, check=False)
    assert done.returncode == 130
    assert f"written before that, and complete: {tmp_path / 'kept'}" in done.stderr
    assert "nothing was written" not in done.stderr
    assert [place.name for place in tmp_path.iterdir()] == ["kept"]


def test_exchange_with_and_without_the_systems_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for helped in (True, False):
        if not helped:
            monkeypatch.setattr("faster_pruner.host.folders._system_exchange", lambda *paths: False)
        new, old = tmp_path / f"new{helped}", tmp_path / f"old{helped}"
        new.mkdir()
        old.mkdir()
        (new / "a").write_text("new")
        (old / "a").write_text("old")
        _exchange(new, old)
        assert (old / "a").read_text() == "new"
        assert not (tmp_path / f".old{helped}").exists()
    if sys.platform == "linux":
        assert not _system_exchange(b"/no/such/one", b"/no/such/other")
    assert signal.SIGKILL
