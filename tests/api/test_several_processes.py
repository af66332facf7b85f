"""`prune` by several processes: the result of one, one voice, and an end when one of them is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AlbertConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

import several
import tiny
from faster_pruner import Budget, CalibrationOptions, Data, Output, prune
from faster_pruner.api.prune import Asked
from faster_pruner.costs.latency import LatencyLimit
from faster_pruner.errors import OptionError
from faster_pruner.host.arithmetic import agreed
from faster_pruner.host.ranks import Exchange, Ranks
from faster_pruner.options import Distillation, PrecisionName, as_method

pytestmark = pytest.mark.usefixtures("quick_latency")

# What is pruned, by name: the folder of the model, the data, the budget, the method, the precision.
_CASES: dict[str, tuple[str, dict[str, str], float, str, PrecisionName]] = {
    "default": ("bert", {"task": "sst2", "folder": "data"}, 0.5, "default", "float32"),
    "in bfloat16, as the first process finds": ("bert", {"task": "sst2", "folder": "data"}, 0.5, "default", "auto"),
    "descent in two rounds": ("bert", {"task": "sst2", "folder": "data"}, 0.2, "default", "float32"),
    "kwon2022": ("bert", {"task": "sst2", "folder": "data"}, 0.5, "kwon2022", "float32"),
    "shared layers": ("albert", {"task": "sst2", "folder": "data"}, 0.5, "default", "float32"),
    "answers": ("answering/model", {"folder": "answering/data"}, 0.4, "default", "float32"),
}
_ALL = """
import json, sys
from faster_pruner import CalibrationOptions, Data, prune
from faster_pruner.host import arithmetic
from faster_pruner.runtimes import timing
timing._FEWEST_PAIRS, timing._SECONDS_PER_SHAPE = 2, 0.0
import os
os.chdir(sys.argv[1])
for name, (model, data, macs, method, precision) in json.loads(sys.argv[2]).items():
    options = CalibrationOptions(rows=64, tokens_per_batch=64, precision=precision)
    arithmetic._own_answer = lambda: precision == "auto" and os.environ["RANK"] == "0"
    found = prune(model, Data(**data), macs=macs, output=f"several/{name}", method=method, calibration=options)
    assert found.report.precision == ("bfloat16" if precision == "auto" else "float32")
    assert len(found.report.processes) == 3 and found.report.verified
    # every process has the model that the first one wrote
    from safetensors.torch import load_file
    weights = found.model.state_dict()
    assert all(weights[key].equal(value) for key, value in load_file(f"several/{name}/model.safetensors").items())
print("done")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows for all cases."""
    found = tmp_path_factory.mktemp("several")
    tiny.save_checkpoint(found / "bert")
    tiny.save_rows(found / "data", "sst2", train=64)
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": tiny.VOCABULARY, "embedding_size": 16, "pad_token_id": 0}
    config = AlbertConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, num_labels=2, **sizes
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(found / "albert")
    tiny.make_tokenizer().save_pretrained(found / "albert")
    answering = tiny.make_model(auto=AutoModelForQuestionAnswering)
    rows = tiny.make_questions(64, 0), tiny.make_questions(24, 1)
    tiny.save_task(found / "answering", answering, *rows)
    return found


# How far weights of tiny models may be apart, relatively: sums of float32 differ in their last bits, of which
# ill-conditioned fits of 24 columns on few tokens make this much.
_APART = 5e-5


def _compare(one: Path, other: Path, *, most: float = _APART) -> None:
    """The same masks, and weights that are no further apart than that."""
    assert (one / "masks.json").read_text() == (other / "masks.json").read_text()
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # descent moves a bias of keys by rounding errors: it shifts all scores of a query, and nothing depends on it
        if not name.endswith("key.bias") and tensor.numel():
            off = float((tensor - second[name]).norm() / tensor.norm().clamp(min=1e-12))
            assert off <= most, (one.name, name, off)


@pytest.mark.on_the_cpu
def test_three_processes_find_what_one_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ended in several.run(_ALL, place, json.dumps(_CASES), count=3):
        assert ended.said == ""
        assert (ended.returncode, ended.stdout) == (0, "done\n")
    monkeypatch.chdir(place)
    for name, (model, data, macs, method, precision) in _CASES.items():
        options = CalibrationOptions(rows=64, tokens_per_batch=64, precision=precision)
        # where the passes or the products are in bfloat16, the last bit of a weight flips the rounding of what follows
        with agreed(precision == "auto"):
            found = prune(model, Data(**data), macs=macs, output=f"one/{name}", method=method, calibration=options)
        assert found.report.processes == []
        most = _APART if precision == "float32" else 5e-2
        _compare(place / "one" / name, place / "several" / name, most=most)
        reports = [json.loads((place / by / name / "result.json").read_text()) for by in ("one", "several")]
        for key in ("calibration_hash", "calibration_rows", "lengths", "precision", "macs_kept", "before", "options"):
            assert reports[0][key] == reports[1][key], key
        assert [set(each) >= {"load", "statistics", "recovery", "waiting"} for each in reports[1]["processes"]] == [
            True
        ] * 3


def _launched(place: Path, *options: str, program: tuple[str, ...] = ("-m", "faster_pruner")) -> Any:
    """A command by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*command, "prune", "bert", "--task", "sst2", "--data", "many", *options],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def many(place: Path) -> Path:
    """Rows enough for several batches of the usual size."""
    return tiny.save_rows(place / "many", "sst2", train=1200)


def test_torchrun_needs_no_flag_and_one_process_speaks(place: Path, many: Path) -> None:
    done = _launched(place, "--macs", "0.5", "--precision", "float32", "-o", "launched")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("recovery ...") == 1
    assert done.stdout.count("saved in launched") == 1
    assert "W" not in {line[:1] for line in done.stderr.splitlines() if "faster_pruner" in line}
    options = CalibrationOptions(precision="float32")
    prune(place / "bert", Data(task="sst2", folder=many), macs=0.5, output=place / "alone", calibration=options)
    _compare(place / "alone", place / "launched", most=1e-3)
    assert len(json.loads((place / "launched" / "result.json").read_text())["processes"]) == 2
    assert sorted(each.name for each in place.glob("launched*")) == ["launched", "launched.toml"]


# A process that fails in the recovery: argv[1] says how, argv[2] which.
_FAILS = """
import os, signal, sys, time
from faster_pruner import cli, errors
from faster_pruner.method import recovery

how, rank = sys.argv[1:3]
sys.argv[:] = ["faster-pruner", *sys.argv[3:]]
original, calls = recovery._gather, []

def gather(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == rank:
        if how == "fails":
            open("died", "w").write(str(time.time()))
            raise errors.NumericalError("these rows are on fire")
        open("died", "w").write(str(time.time()))
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(1)
    return original(*args, **kwargs)

recovery._gather = gather
cli.main()
"""
_ARGUMENTS = ("prune", "bert", "--task", "sst2", "--data", "many", "--macs", "0.5", "--output", "failed")


@pytest.mark.parametrize(
    ("how", "rank", "message"),
    [
        ("SIGKILL", 1, "process 1 of 2 ended, or has hung"),
        ("SIGKILL", 0, "process 0 of 2 ended, or has hung"),
        ("SIGSTOP", 1, "process 1 of 2 ended, or has hung"),
        ("SIGTERM", 1, "process 1 of 2 was interrupted; nothing was written"),
        ("fails", 1, "in process 1 of 2: these rows are on fire"),
        ("fails", 0, "these rows are on fire"),
    ],
)
def test_a_process_that_is_gone_ends_the_run(
    how: str, rank: int, message: str, place: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import os\nos.chdir({str(place)!r})\n{_FAILS}"
    ended = several.run(program, how, str(rank), *_ARGUMENTS, count=2, stopped=rank if how == "SIGSTOP" else -1)
    said = [each.stderr.count("faster-pruner: error: ") for each in ended]
    assert sorted(said) == [0, 1], [each.stderr for each in ended]
    assert message in ended[said.index(1)].stderr
    assert all(each.returncode for each in ended)
    died = float((place / "died").read_text())
    assert max(each.at for each in ended) - died < 30
    assert not [each.name for each in place.iterdir() if "failed" in each.name]


def test_a_killed_process_under_torchrun(place: Path, many: Path) -> None:
    (place / "fails.py").write_text(_FAILS)
    done = _launched(place, "--macs", "0.5", "-o", "failed", program=("fails.py", "SIGKILL", "1"))
    assert done.returncode
    assert done.stderr.count("faster-pruner:") == 1
    assert "faster-pruner: error: process 1 of 2 ended" in done.stderr
    assert not [each.name for each in place.iterdir() if "failed" in each.name]


_SHARED: Any = Ranks(rank=0, count=2, exchange=Exchange(None))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("keep_statistics", {"output": Output(folder="out", statistics="kept")}),
        ("distill", {"distillation": Distillation(rows=64)}),
        ("latency", {"budget": Budget(latency=LatencyLimit(share=0.5))}),
        ("max_drop", {"budget": Budget(max_drop=0.01)}),
    ],
)
def test_what_one_process_must_do(option: str, given: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"budget": Budget(macs=0.5), "output": Output(folder="out")}
    asked: dict[str, Any] = {"place": "m", "data": Data(), "method": as_method("default"), **usual}
    Asked(calibration=CalibrationOptions(), **asked).check_shared(_SHARED)
    wanted = Asked(calibration=CalibrationOptions(), **{**asked, **given})
    wanted.check_shared(Ranks())
    with pytest.raises(OptionError, match="takes one process, and 2 were started") as raised:
        wanted.check_shared(_SHARED)
    assert raised.value.option == option


def test_too_few_batches_for_the_processes(place: Path) -> None:
    program = f"import os\nos.chdir({str(place)!r})\nfrom faster_pruner import cli\ncli.main()\n"
    few = ["bert", "--task", "sst2", "--data", "data", "--macs", "0.5", "-o", "few", "--calibration-rows", "8"]
    first, second = several.run(program, "prune", *few, count=2)
    assert first.returncode == second.returncode == 2
    assert "error: the calibration set makes 1 batches, which 2 processes cannot share" in first.stderr
    assert second.said == ""
    assert not (place / "few").exists()
