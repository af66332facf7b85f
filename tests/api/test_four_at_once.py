"""Four runs at once on one machine, whose outputs lie side by side: each finishes as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fresh
from faster_pruner import CalibrationOptions, Data, Output, prune
from faster_pruner.host import cache

# Runs the lists of arguments in argv[1], each in a process of its own that is forked from this one. At two moments all
# wait for the last one: before they make their temporary folders, and before they put them in their places.
_AT_ONCE = (
    fresh.CODE_OF
    + """
import json, multiprocessing, os
from faster_pruner.host import folders
from faster_pruner.runtimes import timing

timing._FEWEST_PAIRS, timing._SECONDS_PER_SHAPE = 2, 0.0
runs = json.loads(sys.argv[1])
together = multiprocessing.get_context("fork").Barrier(len(runs), timeout=120)

def met(name):
    original = getattr(folders, name)
    def wrapped(*given, **options):
        together.wait()
        return original(*given, **options)
    setattr(folders, name, wrapped)

met("_make_parents")
met("_put")
children = []
for arguments in runs:
    child = os.fork()
    if not child:
        sys.argv[:] = ["faster-pruner", *arguments]
        code = 70
        try:
            code = code_of("from faster_pruner import cli; cli.main()", unforeseen=70)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
)
# Name of the output -> share of the MACs and preset. Names that begin alike, so that nobody takes another's temporary
# folder, or what lies beside its output, for its own.
_RUNS = {
    "out": (0.5, "default"),
    "out.1": (0.6, "default"),
    "out-1": (0.5, "kwon2022"),
    "out.partial": (0.4, "default"),
}


def _files(folder: Path) -> dict[str, bytes]:
    """What a run is to write alike every time."""
    names = ("model.safetensors", "masks.json", "config.json", "tokenizer.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.on_the_cpu
@pytest.mark.usefixtures("quick_latency")
def test_each_of_four_runs_finishes_as_if_alone(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, temporary = tmp_path / "several" / "results", tmp_path / "temporary"
    temporary.mkdir()
    usual = ["prune", str(checkpoint), "--task", "sst2", "--data", str(data), "--calibration-rows", "32", "--quiet"]
    # hidden states of all of them go to files in one folder
    usual += ["--precision", "float32", "--memory-limit", "0"]
    runs = [
        [*usual, "--macs", str(macs), "--preset", method, "-o", str(parent / name)]
        for name, (macs, method) in _RUNS.items()
    ]
    program = f"import os\nos.environ['TMPDIR'] = {str(temporary)!r}\n{_AT_ONCE}"
    done = fresh.run(program, json.dumps(runs))
    assert (json.loads(done.stdout.splitlines()[-1]), done.stderr) == ([0, 0, 0, 0], "")
    assert sorted(each.name for each in parent.iterdir()) == sorted([*_RUNS, *(f"{name}.toml" for name in _RUNS)])
    assert [*temporary.iterdir()] == []
    options = CalibrationOptions(rows=32, precision="float32")
    for name, (macs, method) in _RUNS.items():
        alone = Output(folder=tmp_path / "alone" / name)
        prune(checkpoint, Data(task="sst2", folder=data), macs=macs, output=alone, method=method, calibration=options)
        assert _files(parent / name) == _files(tmp_path / "alone" / name), name
        said = json.loads((parent / name / "result.json").read_text())
        assert set(said["files"]) == {each.name for each in (parent / name).iterdir()}


_KEEPS = """
import os, sys
from faster_pruner.host import cache

children = []
for number in range(4):
    child = os.fork()
    if not child:
        wrong = 0
        for step in range(200):
            cache.keep("tables", {"of": step % 3}, [number] * 500)
            found = cache.recall("tables", {"of": step % 3})
            wrong += not (isinstance(found, list) and len(found) == 500 and len(set(found)) == 1)
        os._exit(min(wrong, 255))
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_what_four_processes_keep_is_always_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}\n{_KEEPS}"
    assert fresh.run(program).stdout == "[0, 0, 0, 0]\n"
    kept = [each.name for each in (tmp_path / "faster-pruner" / "tables").iterdir()]
    assert len(kept) == 3
    assert not [name for name in kept if not name.endswith(".json")]
    for of in range(3):
        found = cache.recall("tables", {"of": of})
        assert found is not None
        assert len(found) == 500
