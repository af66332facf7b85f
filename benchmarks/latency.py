"""Budgets in time: what the table of sublayers predicts, what is delivered, and what it is worth.

python benchmarks/latency.py requests     20 requests (4 shapes x 5 speed-ups) on MiniLM-L6 and on BERT-base dimensions
python benchmarks/latency.py accuracy     a latency budget and a MACs budget of the same measured latency, batch 1
python benchmarks/latency.py show         docs/latency.md from the saved JSON

Of a request: the prediction is the table's, of the first sizes that are chosen by it; the delivery is the finished
model's, timed anew against the dense one. Tables are measured anew, none from the cache. Nothing else may run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from common import (
    calibration_rows,
    metrics_of,
    open_model,
    read_result,
    rows_of,
    subject_for,
    write_result,
    write_table,
)
from distillation_page import spread
from faster_pruner.api.job import Job
from faster_pruner.api.latency import cut_in_time, with_times
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.budget import Budget
from faster_pruner.costs.latency import LatencyLimit
from faster_pruner.data.batches import EncodedRows
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.selecting import bounds_for, select, sizes_allowed
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import PRESETS, CalibrationOptions
from faster_pruner.progress import Silent, StageClock
from faster_pruner.runtimes.layers import Bench

NAME = "latency"
PAGE = Path(__file__).parents[1] / "docs" / "latency.md"
SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
SPEED_UPS = (1.3, 1.6, 2.0, 2.5, 3.0)
METHOD = PRESETS["default"]
# Records that agree in all of these are of the same thing.
SAME = ("model", "batch", "tokens", "speed_up", "runtime", "seed")
MODELS = {"minilm": "MiniLM-L6 (6 x 384)", "bert-base": "BERT-base dimensions (12 x 768), random weights"}
# Calibration rows: times depend on none of them.
ROWS = {"minilm": 512, "bert-base": 64}


def calibrated(model: str) -> Calibrated:
    """The dense model and its statistics."""
    options = CalibrationOptions(rows=ROWS[model], seed=0)
    if model == "minilm":
        opened = open_model("sst2")
        rows = calibration_rows(opened, "sst2", options.rows, 0, labelled=False)
        return calibrate(subject_for(opened, "sst2"), rows, METHOD, options)
    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig()).eval()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1000, 30_000, (options.rows, 32), generator=generator).tolist()
    tokens = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in drawn]
    subject = Subject(dense, sublayers_of(dense), objective_of(dense), torch.float32)
    return calibrate(
        subject, EncodedRows(tokens=tokens, labels=None, padding={"input_ids": 0, "attention_mask": 0}), METHOD, options
    )


def job_of(own: Calibrated, budget: Budget) -> Job:
    """One cut, as the package does it."""
    options = CalibrationOptions(seed=0)
    given = {"name": "", "task": "", "calibration_hash": "", "timed_on": []}
    return Job(calibrated=own, budget=budget, method=METHOD, options=options, **given)


def requests(models: Sequence[str], runtime: str) -> Iterator[dict[str, Any]]:
    """Every shape and target."""
    for model in models:
        own = calibrated(model)
        for batch, tokens in SHAPES:
            # a cache of its own: the first request of a shape measures the table, the others share it
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = folder
                for times in SPEED_UPS:
                    limit = LatencyLimit(share=1 / times, batch=batch, tokens=tokens, runtime=runtime)
                    clock = StageClock(Silent())
                    started = time.perf_counter()
                    record: dict[str, Any] = {"model": model, "batch": batch, "tokens": tokens, "speed_up": times}
                    job, tried = with_times(job_of(own, Budget(latency=limit)), clock)
                    _, found = cut_in_time(job, clock)
                    first, last = tried[0].limit, found.limits[0]
                    yield {
                        **record,
                        "runtime": runtime,
                        "predicted": first.pruned / first.dense,
                        "first_measured": (first.measured or 0.0) / first.dense,
                        "candidates": len(tried),
                        "delivered": (last.measured or 0.0) / last.dense,
                        "dense_ms": 1000 * last.dense,
                        "seconds": time.perf_counter() - started,
                        "table_seconds": clock.seconds["measure latency"],
                        "warnings": found.warnings,
                    }


def accuracy(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """SST-2 at batch 1: a latency budget, and a MACs budget whose model takes the same measured time."""
    opened = open_model("sst2")
    subject, validation = subject_for(opened, "sst2"), rows_of(opened, "sst2", ("validation",))
    for seed in seeds:
        options = CalibrationOptions(rows=2048, seed=seed)
        rows = calibration_rows(opened, "sst2", options.rows, seed, labelled=False)
        own = calibrate(subject, rows, METHOD, options)
        for tokens in (32, 128):
            for times in (1.5, 2.0, 3.0):
                limit = LatencyLimit(share=1 / times, batch=1, tokens=tokens)
                job, _ = with_times(job_of(own, Budget(latency=limit)), StageClock(Silent()))
                pruned, found = cut_in_time(job, StageClock(Silent()))
                share = macs_of_the_same_time(own, limit, (found.limits[0].measured or 0.0) / found.limits[0].dense)
                rival = cut(own, Budget(macs=share), METHOD)
                bench = Bench(own.network, limit, {})
                yield {
                    "seed": seed,
                    "tokens": tokens,
                    "speed_up": times,
                    "latency": metrics_of(pruned.model, subject, validation),
                    "latency_share": (found.limits[0].measured or 0.0) / found.limits[0].dense,
                    "empty": sum(s.units == 0 for s in pruned.sublayers),
                    "macs": metrics_of(rival.model, subject, validation),
                    "macs_share": bench.pair(replace(own.network, model=rival.model)).share,
                    "macs_kept": share,
                }


def macs_of_the_same_time(own: Calibrated, limit: LatencyLimit, wanted: float) -> float:
    """The share of the MACs whose model takes a share of the dense one's time: bisection, sizes timed unrecovered."""
    bench, low, high = Bench(own.network, limit, {}), 0.02, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        budget = Budget(macs=middle)
        chosen = select(own, METHOD, bounds_for(own, budget), sizes_allowed(own.sublayers, budget, METHOD))
        low, high = (low, middle) if bench.candidate(chosen).share > wanted else (middle, high)
    return (low + high) / 2


def request_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A row per model and shape: errors of the prediction and of the delivery."""
    lines = [
        "| model | rows x tokens | runtime | prediction, median error | worst | delivery, median error | worst "
        "| the table took |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((r["model"], r["batch"], r["tokens"], r["runtime"]) for r in records)
    for key in [*keys, *dict.fromkeys((model, None, None, runtime) for model, _, _, runtime in keys)]:
        model, batch, tokens, runtime = key
        own = [r for r in records if (r["model"], r["runtime"]) == (model, runtime)]
        own = [r for r in own if batch is None or (r["batch"], r["tokens"]) == (batch, tokens)]
        predicted = [abs(r["predicted"] / r["first_measured"] - 1) for r in own]
        delivered = [abs(r["delivered"] * r["speed_up"] - 1) for r in own]
        took = max(r["table_seconds"] for r in own)
        shape = "all" if batch is None else f"{batch} x {tokens}"
        lines.append(
            f"| {MODELS[model]} | {shape} | {runtime} | {statistics.median(predicted):.1%} | {max(predicted):.1%} "
            f"| {statistics.median(delivered):.1%} | {max(delivered):.1%} | {took:.0f} s |"
        )
    return lines


def accuracy_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A row per shape and speed-up."""
    lines = [
        "| tokens | speed-up asked | latency budget: accuracy | measured | empty sublayers | MACs budget: accuracy "
        "| measured | MACs kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tokens, times in dict.fromkeys((r["tokens"], r["speed_up"]) for r in records):
        own = [r for r in records if (r["tokens"], r["speed_up"]) == (tokens, times)]
        cells = [spread(r[kind]["accuracy"] for r in own) for kind in ("latency", "macs")]
        ratios = [f"{statistics.mean(1 / r[f'{kind}_share'] for r in own):.2f}x" for kind in ("latency", "macs")]
        empty = f"{statistics.mean(r['empty'] for r in own):.1f}"
        kept = f"{statistics.mean(r['macs_kept'] for r in own):.2f}"
        lines.append(
            f"| {tokens} | {times:g}x | {cells[0]} | {ratios[0]} | {empty} | {cells[1]} | {ratios[1]} | {kept} |"
        )
    return lines


def main() -> None:
    """Run one part and keep what the others have found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["requests", "accuracy", "show"])
    parser.add_argument("--models", default="minilm,bert-base")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    found: dict[str, Any] = read_result(NAME) or {"requests": [], "accuracy": []}
    measure = {
        "requests": lambda: requests(arguments.models.split(","), arguments.runtime),
        "accuracy": lambda: accuracy([int(seed) for seed in arguments.seeds.split(",")]),
        "show": lambda: iter(()),
    }
    for record in measure[arguments.part]():
        print(record, flush=True)
        others = [r for r in found[arguments.part] if any(r.get(k) != record.get(k) for k in SAME)]
        found[arguments.part] = [*others, record]
        write_result(NAME, found)
    for name, table in (("requests", request_table), ("accuracy", accuracy_table)):
        if found[name] and f"<!-- table: latency-{name} -->" in PAGE.read_text():
            lines = table(found[name])
            print("\n".join(lines))
            write_table(PAGE, f"latency-{name}", lines)


if __name__ == "__main__":
    main()
