"""What is foreseen of a run, against the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sentences
import tiny
from badness import bad_input
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, LatencyLimit, Limit, plan, prune
from faster_pruner.api.rows import (
    calibration_rows,
    describe,
    evaluation_splits,
    few_calibration_rows,
    few_evaluation_rows,
)
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.cost import Macs, total
from faster_pruner.errors import BudgetError
from faster_pruner.host import mapped
from faster_pruner.model.network import Network
from faster_pruner.planned import PlanReport

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than a rehearsal looks at."""
    return tiny.save_rows(tmp_path_factory.mktemp("many"), "sst2", train=1500, validation=700)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Time passes with the tokens that a model is given, and with nothing else: a second for each."""
    passed = [0.0]
    original = nn.Embedding.forward

    def embed(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        # positions are one row for all
        passed[0] += ids.numel() if self.num_embeddings == tiny.VOCABULARY else 0
        return original(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", embed)
    monkeypatch.setattr(time, "perf_counter", lambda: passed[0])
    return lambda: passed[0]


def rows_in(folder: Path) -> Data:
    return Data(task="sst2", folder=folder)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_stages_take_what_was_foreseen(
    checkpoint: Path, many: Path, tmp_path: Path, clock: Callable[[], float], share: float
) -> None:
    """Where time is tokens: the planned stages are those of the run, at a strong budget with its second round, too."""
    options = CalibrationOptions(rows=1500)
    found = plan(checkpoint, rows_in(many), macs=share, calibration=options)
    seen = clock()
    done = prune(checkpoint, rows_in(many), macs=share, output=tmp_path / "out", calibration=options).report
    ran = clock() - seen
    for stage in ("statistics", "recovery", "evaluation", "latency"):
        assert found.seconds[stage] == pytest.approx(done.seconds[stage], rel=0.15), stage
    assert found.total == pytest.approx(sum(done.seconds.values()), rel=0.1)
    assert found.calibration_rows == done.calibration_rows
    assert found.evaluation_rows == {"validation": 700}
    # and it is no run of its own
    assert seen < 0.6 * ran


def resized(checkpoint: Path, found: PlanReport) -> tuple[nn.Module, Network]:
    """The dense model, and one that is cut to the planned sizes."""
    dense = open_checkpoint(str(checkpoint), device=torch.device("cpu")).model
    units = {s.name: s.units for s in found.sublayers}
    network = Network(dense, sublayers_of(dense)).copied()
    return dense, network.shrunk({s.name: torch.arange(units[s.name]) for s in network.sublayers})


@pytest.mark.parametrize(
    "budget",
    [
        Budget(macs=0.5),
        Budget(macs=0.8, limits=(Limit(cost="parameters", share=0.8), Limit(cost="bytes", share=0.85))),
        Budget(macs=0.6, allocation="bucketed"),
        Budget(macs=0.9, allocation="stock", round_to=1),
    ],
    ids=["macs", "several", "bucketed", "stock"],
)
def test_sizes_are_those_of_a_model_that_is_cut_so(checkpoint: Path, data: Path, budget: Budget) -> None:
    found = plan(checkpoint, rows_in(data), macs=budget)
    dense, small = resized(checkpoint, found)
    assert found.pruned.parameters == sum(p.numel() for p in small.model.parameters())
    assert found.dense.parameters == sum(p.numel() for p in dense.parameters())
    macs = Macs({"layers": 10.0})
    # each is left the same, and no limit is passed
    kinds = {(s.name.rpartition(".")[2], s.units) for s in found.sublayers}
    assert len(kinds) == 2
    assert all(limit.pruned <= limit.asked * (1 + 1e-9) for limit in found.limits)
    assert any(limit.pruned > 0.75 * limit.asked for limit in found.limits)
    if budget.allocation == "stock":
        assert all(s.units == s.units_before for s in found.sublayers if s.unit == "head")
    kept = total(macs, small.sublayers) / total(macs, sublayers_of(dense))
    assert found.pruned.macs / found.dense.macs == pytest.approx(kept, rel=0.02)


def test_nothing_is_left_behind(checkpoint: Path, data: Path, own_temporary: None) -> None:
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    found = plan(checkpoint, rows_in(data), macs=0.5, method="kwon2022")
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    assert found.preset == "kwon2022"
    assert found.memory > 0
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert set(found.seconds) >= {"load", "rows", "statistics", "selection", "recovery", "evaluation", "latency"}


def test_weights_in_files_are_planned_there(checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not fit is not opened in memory to say so; what the run holds is told by the formula."""
    counts = list[int]()
    monkeypatch.setattr(mapped, "_SMALL", 1)
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: counts.append(k["size"]) or from_file(*a, **k))
    options = CalibrationOptions(rows=24, weights="files", memory_limit=1 << 20)
    found = plan(checkpoint, rows_in(data), macs=0.5, calibration=options)
    assert sum(counts) > found.dense.parameters
    assert "latency" not in found.seconds
    assert any("weights are kept in files" in note for note in found.notes)
    assert 1 << 20 < found.memory < 1 << 26
    assert not mapped.are_in_files()


def test_no_evaluation_takes_no_time(checkpoint: Path, data: Path) -> None:
    found = plan(checkpoint, Data(task="sst2", folder=data, judged=0), macs=0.5)
    assert found.seconds["evaluation"] == 0
    assert found.evaluation_rows == {}


def test_on_the_command_line(checkpoint: Path, data: Path) -> None:
    given = [str(checkpoint), "--task", "sst2", "--data", str(data), "--macs", "50%", "--params", "0.9"]
    code, out, _ = run("plan", *given, "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["total"] == pytest.approx(sum(figures["seconds"].values()))
    assert [limit["cost"] for limit in figures["limits"]] == ["macs", "parameters"]
    code, out, _ = run("plan", *given)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "layers, ffn: 2 x" in out
    code, _, err = run("plan", str(checkpoint), "--task", "sst2")
    assert code == 2
    assert "--macs 0.5, --params 12M, --size 40MB" in err


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(latency=LatencyLimit(seconds=0.01)), "can only be measured"),
        (Budget(max_drop=0.01), "can only be measured"),
        (Budget(limits=(Limit(cost="bytes", amount=500.0),)), "takes .* already"),
        (Budget(limits=(Limit(cost="bytes", amount=1e9),)), "nothing to prune"),
    ],
    ids=["latency", "drop", "too small", "too large"],
)
def test_budgets_that_no_plan_can_meet(checkpoint: Path, data: Path, budget: Budget, words: str) -> None:
    bad_input(f"plan for {budget}")
    with pytest.raises(BudgetError, match=words):
        plan(checkpoint, rows_in(data), macs=budget)


def _retrieval(place: Path) -> tuple[Path, Data]:
    sentences.save_folder(place / "model")
    return place / "model", Data(folder=tiny.save_collection(place / "beir", documents=400, queries=60))


def _texts(place: Path) -> tuple[Path, Data]:
    sentences.save_folder(place / "model")
    return place / "model", Data(file=sentences.save_texts(place / "texts.jsonl", sentences.make_texts(600)))


def _questions(place: Path) -> tuple[Path, Data]:
    from transformers import AutoModelForQuestionAnswering

    model = tiny.make_model(auto=AutoModelForQuestionAnswering)
    tiny.save_task(place, model, tiny.make_questions(300, 0), tiny.make_questions(150, 1))
    return place / "model", Data(folder=place / "data")


@pytest.mark.parametrize("make", [_retrieval, _texts, _questions])
def test_rows_of_every_kind_are_counted(make: Callable[[Path], tuple[Path, Data]], tmp_path: Path) -> None:
    """How many there will be, against encoding them all."""
    pytest.importorskip("sentence_transformers")
    place, given = make(tmp_path)
    opened = open_checkpoint(str(place), device=torch.device("cpu"))
    task = describe(given)
    source, options = given.source(task), CalibrationOptions()
    few = few_calibration_rows(source, task, opened, options, labelled=False)
    whole = calibration_rows(source, task, opened, options, labelled=False)
    assert few.all == pytest.approx(len(whole), rel=0.05)
    assert len(few.rows) < len(whole)
    splits = evaluation_splits(source, task, opened, 128)
    counted = few_evaluation_rows(source, task, opened, 128)
    assert [name.partition(" ")[0] for name in counted] == [name.partition(" ")[0] for name in splits]
    for own, rows in zip(counted.values(), splits.values(), strict=True):
        assert own.all == pytest.approx(len(rows), rel=0.35)
