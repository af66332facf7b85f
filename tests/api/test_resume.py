"""Runs that are killed go on where they were, to the same bits; and what they leave is never mixed with another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fresh
import several
import tiny
from command import run
from faster_pruner import (
    Budget,
    CalibrationOptions,
    Data,
    Distillation,
    LatencyLimit,
    Output,
    Run,
    cut_again,
    prune,
    prune_vocabulary,
    sweep,
)
from faster_pruner.errors import OptionError, OutputError
from faster_pruner.host import places
from faster_pruner.host.working import place_of, working
from faster_pruner.method import algorithm, distillation
from faster_pruner.options import Switches, customise, preset
from faster_pruner.progress import Silent
from machine import Machine

pytestmark = pytest.mark.usefixtures("quick_latency")

FEW = CalibrationOptions(rows=32)
# Prunes argv[1] with data argv[2] into argv[3]/out, and into argv[3]/whole without an interruption; in forked children,
# of which the n-th kills itself at the n-th of the places that argv[5] names: (stage, how often it has begun, what
# happens in it), where each stage that starts or ends, each step, and each file that is about to be put into its place,
# or was, is something that happens; or at the n-th of all these. What is kept goes on from child to child.
_CHILD = (
    fresh.AROUND
    + """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from faster_pruner import CalibrationOptions, Data, Output, Run, prune
from faster_pruner.host import folders
from faster_pruner.progress import Silent
from faster_pruner.runtimes import timing

timing._FEWEST_PAIRS, timing._SECONDS_PER_SHAPE = 1, 0.0
torch.set_num_threads(1)
model, data, place, options, deaths = sys.argv[1:6]


class Killer(Silent):
    def __init__(self, death): self.death, self.stage, self.begun, self.events, self.all = death, "", {}, 0, 0
    def event(self):
        self.events += 1
        self.all += 1
        # once the result is there nothing is left to go on with
        if self.death in ([self.stage, self.begun.get(self.stage), self.events], self.all):
            if not Path(place, "out", "result.json").exists(): os.kill(os.getpid(), signal.SIGKILL)
    def start(self, stage, total):
        self.stage, self.events = stage.split(":")[0], 0
        self.begun[self.stage] = self.begun.get(self.stage, 0) + 1
        self.event()
    def step(self): self.event()
    def end(self, seconds): self.event()


def pruned(killer, name, resume):
    output, given = Output(folder=Path(place) / name, resume=resume), json.loads(options)
    macs, method = given["macs"], given["method"]
    few = CalibrationOptions(rows=given["rows"], tokens_per_batch=128)
    return prune(model, Data(task="sst2", folder=data), macs=macs, output=output, run=Run(progress=killer),
                 calibration=few, method=method).report


for death in [None, *json.loads(deaths), None]:
    child = os.fork()
    if child == 0:
        killer = Killer(death)
        for owner, name in ((Path, "replace"), (Path, "rename"), (folders, "_system_exchange"), (shutil, "rmtree")):
            around(owner, name, killer)
        first = not (Path(place) / "whole").exists()
        print(json.dumps(pruned(killer, "whole" if first else "out", not first).resumed), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), flush=True)
    if Path(place, "out").exists(): break
"""
)


def without_times(result: Path) -> dict[str, Any]:
    """What result.json says of the model, whenever and in however many runs it was made."""
    found = json.loads((result / "result.json").read_text())
    for name in ("seconds", "latency", "resumed"):
        del found[name]
    found["warnings"] = [told for told in found["warnings"] if not told.startswith("gone on where")]
    return found


def same(one: Path, other: Path) -> None:
    """Two results are the same, byte for byte, but for times."""
    for name in ("model.safetensors", "masks.json", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert without_times(one) == without_times(other)


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def first_round(batches: int) -> list[Any]:
    """Each is further on than the one before; the stages of a run that goes on are fewer."""
    return [
        ["load", 1, 1],
        # what the folder belongs to is written, and not yet in its place
        ["rows", 1, 3],
        ["statistics", 1, 3],
        # the statistics are written, not in their place, and in their place
        ["statistics", 1, 3 + batches],
        ["statistics", 1, 4 + batches],
        ["evaluation", 1, 2],
        ["evaluation", 1, 4],
        ["selection", 1, 2],
        ["selection", 1, 4],
        ["selection", 1, 2],
        # a selection is kept, a sublayer is not yet, three are, and all of them
        ["recovery", 1, 1],
        ["recovery", 1, 2],
        ["recovery", 1, 9],
        ["recovery", 1, 8],
    ]


SECOND_ROUND: list[Any] = [
    # statistics of what the first one has left
    ["statistics", 2, 3],
    ["selection", 1, 2],
    ["recovery", 2, 2],
    ["recovery", 2, 6],
    ["recovery", 2, 5],
]
AFTERWARDS: list[Any] = [["evaluation", 1, 2], ["latency", 1, 2], ["save and verify", 1, 1], ["save and verify", 1, 3]]


@pytest.mark.parametrize(("method", "batches"), [("default", 8), ("kwon2022", 5)])
def test_killed_at_many_places_one_after_the_other(
    method: str, batches: int, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    options = json.dumps({"macs": 0.15, "rows": 48, "method": method})
    deaths = [*first_round(batches), *(SECOND_ROUND if method == "default" else []), *AFTERWARDS]
    lines = fresh.run(_CHILD, checkpoint, data, tmp_path, options, json.dumps(deaths)).stdout.splitlines()
    assert lines[0] == "[]"
    assert lines.count("killed") == len(deaths)
    rounds = ["recovery, 4 of 4 sublayers", *(["recovery, round 2, 4 of 4 sublayers"] if method == "default" else [])]
    assert json.loads(lines[-2]) == ["statistics", "evaluation of the dense model", *rounds]
    same(tmp_path / "whole", tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "whole"]


def test_killed_again_and_again_at_random(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Each run gets some way beyond what is kept, and dies anywhere."""
    generator = torch.Generator().manual_seed(0)
    deaths = torch.randint(14, 30, (20,), generator=generator).tolist()
    options = json.dumps({"macs": 0.15, "rows": 48, "method": "default"})
    lines = fresh.run(_CHILD, checkpoint, data, tmp_path, options, json.dumps(deaths)).stdout.splitlines()
    assert lines.count("killed") > 4
    same(tmp_path / "whole", tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "whole"]


class Ends(Silent):
    """Interrupts a run where a stage begins."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.started = list[str]()

    def start(self, stage: str, total: int | None) -> None:
        self.started.append(stage)
        if stage == self.stage:
            raise KeyboardInterrupt


def interrupted(work: Callable[[Run], object], stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        work(Run(progress=Ends(stage)))


def rows(data: Path, **more: Any) -> Data:
    return Data(task="sst2", folder=data, **more)


def test_what_was_taken_over_is_told(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "out", resume=True)

    def pruned(run: Run, **more: Any) -> Any:
        return prune(checkpoint, rows(data), macs=0.5, output=output, calibration=FEW, run=run, **more).report

    interrupted(pruned, "latency")
    listener = Ends("")
    report = pruned(Run(progress=listener))
    assert report.resumed == ["statistics", "evaluation of the dense model", "recovery, 4 of 4 sublayers"]
    assert "statistics: as kept" in listener.started
    assert "recovery: 4 of 4 done before" in listener.started
    assert "selection" not in listener.started
    assert told(tmp_path / "out")["resumed"] == report.resumed
    [said] = [warning for warning in report.warnings if warning.startswith("gone on where")]
    assert said.endswith("times are those of this run alone")
    assert said in (tmp_path / "out" / "report.html").read_text()
    prune(checkpoint, rows(data), macs=0.5, output=tmp_path / "whole", calibration=FEW)
    same(tmp_path / "whole", tmp_path / "out")
    assert told(tmp_path / "whole")["resumed"] == []


def test_on_the_command_line(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--task", "sst2", "--data", str(data), "--macs", "0.5", "--calibration-rows", "32"]
    command = ["prune", str(checkpoint), *options, "-o", str(tmp_path / "out"), "--resume"]

    def ends(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("faster_pruner.api.outcome.write_checkpoint", ends)
        code, _, errors = run(*command)
    assert code == 130
    assert f"nothing was written; the same command goes on where it was ({place_of(tmp_path / 'out')})" in errors
    code, out, errors = run(*command)
    assert code == 0, errors
    assert "statistics: as kept ..." in errors
    assert "recovery: 4 of 4 done before ..." in errors
    assert "gone on where an earlier run was interrupted" in " ".join(out.split())
    # what is repeated with the file of its options begins anew
    assert "resume" not in (tmp_path / "out.toml").read_text()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "out.toml"]


def test_a_later_cut_goes_on(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    prune(checkpoint, rows(data), macs=0.7, output=Output(statistics=tmp_path / "kept"), calibration=FEW)
    output = Output(folder=tmp_path / "out", resume=True)

    def cut(run: Run) -> Any:
        return cut_again(tmp_path / "kept", macs=0.2, data=rows(data), output=output, run=run).report

    interrupted(cut, "latency")
    report = cut(Run())
    assert report.resumed == ["recovery, 4 of 4 sublayers", "recovery, round 2, 4 of 4 sublayers"]
    cut_again(tmp_path / "kept", macs=0.2, data=rows(data), output=tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "out")
    # statistics of another calibration
    shutil.rmtree(tmp_path / "out")
    interrupted(cut, "latency")
    shutil.rmtree(tmp_path / "kept")
    other = CalibrationOptions(rows=32, seed=1)
    prune(checkpoint, rows(data), macs=0.7, output=Output(statistics=tmp_path / "kept"), calibration=other)
    with pytest.raises(OutputError, match=r"differs from this one \(calibration rows, calibration\)"):
        cut(Run())


def test_statistics_that_are_kept_for_later_cuts_are_kept_once(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "out", statistics=tmp_path / "kept", resume=True)

    def pruned(run: Run, seed: int = 0) -> Any:
        few = CalibrationOptions(rows=32, seed=seed)
        return prune(checkpoint, rows(data), macs=0.5, output=output, calibration=few, run=run).report

    interrupted(pruned, "latency")
    before = (tmp_path / "kept" / "statistics.json").stat().st_mtime_ns
    assert "statistics" in pruned(Run()).resumed
    assert (tmp_path / "kept" / "statistics.json").stat().st_mtime_ns == before
    cut_again(tmp_path / "kept", macs=0.5, output=tmp_path / "later")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "later"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # those of another run are not replaced, and not taken for its own
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutputError, match="holds statistics of another run"):
        pruned(Run(), seed=1)


def test_the_distillation_goes_on_behind_it(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Data(task="sst2", folder=tiny.save_rows(tmp_path / "many", "sst2", train=160))
    how = Distillation(rows=64, epochs=3, learning_rate=1e-3, rows_per_step=8, held_out=24)

    def pruned(name: str, *, resume: bool = True) -> Any:
        output = Output(folder=tmp_path / name, resume=resume)
        return prune(checkpoint, many, macs=0.5, calibration=FEW, output=output, distillation=how).report

    original, looks = distillation._look, list[int]()  # pyright: ignore[reportPrivateUsage]

    def look(course: Any, *args: Any, **kwargs: Any) -> None:
        looks.append(course.step)
        if len(looks) == 5:
            raise KeyboardInterrupt
        original(course, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(distillation, "_look", look)
        with pytest.raises(KeyboardInterrupt):
            pruned("out")
        report = pruned("out")
    assert looks == [3, 6, 9, 12, 15, 15, 18, 21, 24]
    assert "recovery, 4 of 4 sublayers" in report.resumed
    pruned("whole", resume=False)
    same(tmp_path / "whole", tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_a_search_for_the_smallest_goes_on(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    budget = Budget(max_drop=0.5)

    def pruned(run: Run, *, resume: bool = True) -> Any:
        output = Output(folder=tmp_path / ("out" if resume else "whole"), resume=resume)
        few = CalibrationOptions(rows=16)
        return prune(checkpoint, rows(data), macs=budget, output=output, calibration=few, run=run).report

    whole = pruned(Run(), resume=False)
    interrupted(pruned, "latency")
    report = pruned(Run())
    assert len(whole.probes) == 5
    assert report.probes == whole.probes
    assert sum(told.startswith("recovery, 4 of 4") for told in report.resumed) >= 5
    same(tmp_path / "whole", tmp_path / "out")


def test_another_budget_takes_over_the_statistics_alone(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(folder=tmp_path / "out", resume=True)
    interrupted(lambda run: prune(checkpoint, rows(data), macs=0.5, output=output, calibration=FEW, run=run), "latency")
    with monkeypatch.context() as patched:
        patched.setattr(algorithm, "take_statistics", None)
        report = prune(checkpoint, rows(data), macs=0.6, output=output, calibration=FEW).report
    assert report.resumed == ["statistics", "evaluation of the dense model"]
    prune(checkpoint, rows(data), macs=0.6, output=tmp_path / "whole", calibration=FEW)
    same(tmp_path / "whole", tmp_path / "out")


def test_another_run_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "out", resume=True)

    def pruned(run: Run | None = None, model: Path = checkpoint, **changes: Any) -> Any:
        own: dict[str, Any] = {"calibration": FEW, **changes}
        return prune(model, rows(data), macs=0.5, output=output, run=run, **own)

    other_calls: Any = pruned

    interrupted(pruned, "latency")
    other = tmp_path / "other"
    tiny.make_model(seed=1).save_pretrained(other)
    tiny.make_tokenizer().save_pretrained(other)
    # the same weights, and another activation
    changed = shutil.copytree(checkpoint, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    refused = "was left by an interrupted run that differs from this one"
    for what, changes in (
        ("model", {"model": other}),
        ("model", {"model": changed}),
        ("method", {"method": customise(preset("default"), Switches(ridge=0.5))}),
        ("calibration rows, method", {"method": "kwon2022"}),
        ("calibration rows, calibration", {"calibration": CalibrationOptions(rows=31)}),
        ("calibration", {"calibration": CalibrationOptions(rows=32, tokens_per_batch=64)}),
    ):
        with pytest.raises(OutputError) as caught:
            other_calls(**changes)
        assert f"{refused} ({what})" in str(caught.value)
        assert "remove that folder to begin anew" in str(caught.value)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(OutputError, match=rf"\(threads: {threads} then, {threads + 1} now\)"):
            pruned()
    finally:
        torch.set_num_threads(threads)
    # a limit of memory changes no bit, and a model may have been moved
    limited = CalibrationOptions(rows=32, memory_limit=0)
    assert "statistics" in pruned(model=moved, calibration=limited).report.resumed


def test_a_second_run_at_the_same_time_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "out", resume=True)
    with (
        working(tmp_path / "out"),
        pytest.raises(OutputError, match="another run writes .* at this moment; wait for it"),
    ):
        prune(checkpoint, rows(data), macs=0.5, output=output, calibration=FEW)
    prune(checkpoint, rows(data), macs=0.5, output=output, calibration=FEW)


def test_too_little_room_is_told_before_any_work(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 300_000

    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: Usage)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(OutputError, match="not enough disk space"):
        prune(checkpoint, rows(data), macs=0.5, output=Output(folder=tmp_path / "out", resume=True), calibration=FEW)
    assert list(tmp_path.iterdir()) == []
    prune(checkpoint, rows(data), macs=0.5, output=Output(folder=tmp_path / "out"), calibration=FEW)


def test_what_always_begins_anew_says_so(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="goes on beside its output, and there is none"):
        Output(resume=True)
    output = Output(folder=tmp_path / "out", resume=True)
    with pytest.raises(OptionError, match="a sweep does not go on"):
        sweep(checkpoint, rows(data), macs=[0.5], output=output)
    with pytest.raises(OptionError, match="pruning a vocabulary does not go on"):
        prune_vocabulary(checkpoint, ["w1 w2"], output=output)
    with pytest.raises(OptionError, match="pruning the vocabulary alone does not go on"):
        prune(checkpoint, macs=1.0, vocabulary=["w1 w2"], output=output)
    with pytest.raises(OptionError, match="resume is 1; it must be True or False"):
        Output(folder=tmp_path / "out", resume=1)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused_in_words(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    program = "import sys\nfrom faster_pruner import cli\nsys.argv[0] = 'faster-pruner'\ncli.main()\n"
    options = ["--task", "sst2", "--data", data, "--macs", "0.5", "-o", tmp_path / "out", "--resume"]
    first, second = several.run(program, "prune", checkpoint, *options, count=2)
    assert (first.returncode, second.returncode) == (2, 2)
    assert "a run that goes on after an interruption takes one process, and 2 were started" in first.said + second.said
    assert list(tmp_path.iterdir()) == []


def test_a_budget_in_time_takes_over_the_statistics(
    checkpoint: Path, data: Path, tmp_path: Path, machine: Machine
) -> None:
    del machine
    budget = Budget(latency=LatencyLimit(share=0.6, batch=1, tokens=32))
    output = Output(folder=tmp_path / "out", resume=True)

    def pruned(run: Run) -> Any:
        return prune(checkpoint, rows(data), macs=budget, output=output, calibration=FEW, run=run).report

    interrupted(pruned, "latency")
    report = pruned(Run())
    assert report.resumed[:2] == ["statistics", "evaluation of the dense model"]
    prune(checkpoint, rows(data), macs=budget, output=tmp_path / "whole", calibration=FEW)
    # on this machine times are what they were
    same(tmp_path / "whole", tmp_path / "out")
