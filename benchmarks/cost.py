"""What pruning costs, in FB: one forward + backward (activation gradients only) over the same batches, in one process.

python benchmarks/cost.py --part stages      every stage of every preset, against FB, float32 and bfloat16
python benchmarks/cost.py --part memory      peak memory, each case in a fresh process, beside the formula
python benchmarks/cost.py --part scaling     rows, width and depth; draws docs/scaling.png
python benchmarks/cost.py --show             docs/cost.md from the saved JSON, nothing computed

Runs unchanged on a GPU (--device cuda).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedModel

from common import DOCS, ROWS, calibration_rows, open_model, peak_memory_mb, read_result, write_result, write_table
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, EncodedRows, pack
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.memory import Tokens, bytes_in, memory_terms, within_limit
from faster_pruner.model.passes import activation_gradients_only
from faster_pruner.model.precision import choose_precision, forward_in
from faster_pruner.model.spec import base_prefix
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import PRESETS, Arithmetic, CalibrationOptions
from faster_pruner.progress import Silent, StageClock

FIRST, FURTHER = Budget(macs=0.5), Budget(macs=0.3)
CASES = ("sst2", "mrpc", "bert-base", "distilbert")


def case(name: str, device: torch.device, rows: int | None = None) -> tuple[PreTrainedModel, EncodedRows]:
    """A real model and its calibration rows; or random weights of a standard size on real rows."""
    if name in ROWS:
        opened = open_model(name, str(device))
        return opened.model, calibration_rows(opened, name, rows or ROWS[name], 0)
    encoded = calibration_rows(open_model("mrpc", "cpu"), "mrpc", rows or 512, 0)
    torch.manual_seed(0)
    config = BertConfig() if name == "bert-base" else DistilBertConfig()
    placed: Any = AutoModelForSequenceClassification.from_config(config).eval()
    if name == "distilbert":
        tokens = [{"input_ids": row["input_ids"]} for row in encoded.tokens]
        encoded = EncodedRows(tokens=tokens, labels=encoded.labels, padding={"input_ids": 0})
    return placed.to(device), encoded


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_backward(model: PreTrainedModel, batches: list[Batch], precision: Arithmetic) -> float:
    """Seconds of one FB; the graph starts at the embeddings' output."""
    device = batches[0].rows.device
    synchronise(device)
    with activation_gradients_only(model):
        embeddings = model.get_submodule(base_prefix(model) + "embeddings")
        handle = embeddings.register_forward_hook(lambda _m, _a, output: output.detach().requires_grad_())
        started = time.perf_counter()
        for batch in batches:
            with forward_in(precision, device):
                logits = model(**batch.inputs).logits
            logits.float().sum().backward()
        synchronise(device)
        handle.remove()
    return time.perf_counter() - started


def subject_for(model: PreTrainedModel) -> Subject:
    """A model as something to prune."""
    return Subject(model, sublayers_of(model), objective_of(model))


def timed(
    model: PreTrainedModel, rows: EncodedRows, preset: str, precision: Arithmetic
) -> Iterator[tuple[str, dict[str, float]]]:
    """Stage seconds of one run: the first budget with its statistics, then a further budget from the same ones."""
    device = next(model.parameters()).device
    clock = StageClock(Silent(), synchronise=lambda: synchronise(device))
    options = CalibrationOptions(precision=precision)
    calibrated = calibrate(subject_for(model), rows, PRESETS[preset], options, clock=clock)
    cut(calibrated, FIRST, PRESETS[preset], clock=clock)
    yield "one budget", clock.seconds
    clock = StageClock(Silent(), synchronise=lambda: synchronise(device))
    cut(calibrated, FURTHER, PRESETS[preset], clock=clock)
    yield "further budget", clock.seconds


def stages(
    names: list[str], presets: list[str], precisions: list[Arithmetic], repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Medians over repeats that alternate FB and every preset."""
    found: list[dict[str, Any]] = []
    for name in names:
        model, rows = case(name, device)
        batches = pack(rows, tokens_per_batch=CalibrationOptions().tokens_per_batch, device=device)
        for precision in precisions:
            forward_backward(model, batches[-2:], precision)
            unit: list[float] = []
            seconds: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(repeats):
                for preset in presets:
                    unit.append(forward_backward(model, batches, precision))
                    for what, each in timed(model, rows, preset, precision):
                        seconds.setdefault((preset, what), []).append(each)
            fb = statistics.median(unit)
            for (preset, what), runs in seconds.items():
                totals = sorted(sum(run.values()) / fb for run in runs)
                record = {
                    "case": name,
                    "precision": precision,
                    "preset": preset,
                    "what": what,
                    "fb": statistics.median(totals),
                    "low": totals[0],
                    "high": totals[-1],
                    "stages": {key: statistics.median(run[key] for run in runs) / fb for key in runs[0]},
                    "fb_seconds": fb,
                    "fb_spread": [min(unit), max(unit)],
                }
                found.append(record)
                print({k: v for k, v in record.items() if k != "fb_spread"}, flush=True)
    return found


def memory_run(name: str, limit: int | None) -> dict[str, Any]:
    """One case in this process: peak after one FB, peak after the whole run, and the formula."""
    device = torch.device("cpu")
    model, rows = case(name, device)
    batches = pack(rows, tokens_per_batch=CalibrationOptions().tokens_per_batch, device=device)
    precision = choose_precision("auto", device)
    forward_backward(model, batches, precision)
    after_fb = peak_memory_mb()
    options = CalibrationOptions(memory_limit=limit)
    started = time.perf_counter()
    calibrated = calibrate(subject_for(model), rows, PRESETS["default"], options)
    cut(calibrated, FIRST, PRESETS["default"])
    seconds = time.perf_counter() - started
    tokens, item = Tokens.of(calibrated.data.batches), bytes_in(precision)
    terms = memory_terms(model, sublayers_of(model), tokens, item=item, threads=torch.get_num_threads())
    terms = within_limit(terms, limit)
    return {
        "case": name,
        "limit_mb": None if limit is None else limit / 1024**2,
        "peak_after_fb_mb": after_fb,
        "peak_mb": peak_memory_mb(),
        "predicted_mb": after_fb + sum(terms.values()) / 1024**2,
        "terms_mb": {key: value / 1024**2 for key, value in terms.items()},
        "spilled_mb": calibrated.data.setting.shelf.spilled / 1024**2,
        "seconds": seconds,
    }


def memory(names: list[str]) -> list[dict[str, Any]]:
    """Every case in a fresh process, without and with a limit."""
    found: list[dict[str, Any]] = []
    for name in names:
        for limit in ("", str(64 * 1024**2)):
            command = [sys.executable, __file__, "--memory-child", name, "--limit", limit]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(printed.splitlines()[-1]))
            print(found[-1], flush=True)
    return found


def scaling(device: torch.device) -> list[dict[str, Any]]:
    """Seconds of the default preset (one budget) against rows, width and depth."""
    found: list[dict[str, Any]] = []
    model, _ = case("sst2", device)

    def measure(axis: str, value: int, of: PreTrainedModel, rows: EncodedRows) -> None:
        batches = pack(rows, tokens_per_batch=CalibrationOptions().tokens_per_batch, device=device)
        precision = choose_precision("auto", device)
        forward_backward(of, batches[-2:], precision)
        fb = forward_backward(of, batches, precision)
        parts = dict(timed(of, rows, "default", precision))["one budget"]
        found.append({"axis": axis, "value": value, "seconds": sum(parts.values()), "stages": parts, "fb_seconds": fb})
        print(found[-1], flush=True)

    for count in (256, 512, 1024, 2048, 4096, 8192):
        measure("rows", count, model, case("sst2", device, count)[1])
    _, rows = case("mrpc", device, 256)
    make: Callable[..., Any] = AutoModelForSequenceClassification.from_config
    for width in (256, 384, 512, 768, 1024):
        config = BertConfig(
            hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width, num_hidden_layers=6
        )
        measure("width", width, make(config).eval().to(device), rows)
    for depth in (2, 4, 8, 12, 24):
        config = BertConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, num_hidden_layers=depth)
        measure("depth", depth, make(config).eval().to(device), rows)
    return found


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """One panel per axis: seconds by stage, and FB."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4))
    for panel, axis in zip(panels, ("rows", "width", "depth"), strict=True):
        own = [r for r in records if r["axis"] == axis]
        x = [r["value"] for r in own]
        for stage in own[0]["stages"]:
            panel.plot(x, [r["stages"][stage] for r in own], marker="o", markersize=3, label=stage)
        panel.plot(x, [r["seconds"] for r in own], "k-", marker="o", markersize=3, label="all")
        panel.plot(x, [r["fb_seconds"] for r in own], "k:", label="one forward + backward")
        panel.set(xlabel=axis, ylabel="seconds" if axis == "rows" else "", xscale="log", yscale="log")
        panel.set_xticks(x, [str(v) for v in x])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def write_page() -> None:
    """docs/cost.md: the tables, between its markers."""
    page = DOCS / "cost.md"
    stage_rows = [
        "| model | passes in | preset | one budget (.5), FB | statistics | selection | recovery "
        "| further budget (.3), FB | one budget in FB of float32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    records = sorted(read_result("cost-stages") or [], key=lambda r: CASES.index(r["case"]))
    # only figures of the same run are compared
    plain = {(r["case"], r["preset"]): r["fb_seconds"] for r in records if r["precision"] == "float32"}
    for first in (r for r in records if r["what"] == "one budget"):
        same = ("case", "precision", "preset")
        second = next(r for r in records if r["what"] == "further budget" and all(r[key] == first[key] for key in same))
        unit = plain.get((first["case"], first["preset"]))
        in_float32 = "" if unit is None else f"{first['fb'] * first['fb_seconds'] / unit:.2f}"
        parts = " | ".join(f"{first['stages'][key]:.2f}" for key in ("statistics", "selection", "recovery"))
        stage_rows.append(
            f"| {first['case']} | {first['precision']} | `{first['preset']}` | "
            f"**{first['fb']:.2f}** ({first['low']:.2f}-{first['high']:.2f}) | {parts} | "
            f"**{second['fb']:.2f}** ({second['low']:.2f}-{second['high']:.2f}) | {in_float32} |"
        )
    memory_rows = [
        "| model | limit on hidden states | peak after one FB, MB | peak, MB | formula, MB | spilled, MB |",
        "|---|---|---|---|---|---|",
    ]
    for r in read_result("cost-memory") or []:
        limit = "none" if r["limit_mb"] is None else f"{r['limit_mb']:.0f} MB"
        numbers = (r["peak_after_fb_mb"], r["peak_mb"], r["predicted_mb"], r["spilled_mb"])
        memory_rows.append(f"| {r['case']} | {limit} | " + " | ".join(f"{n:.0f}" for n in numbers) + " |")
    for name, rows in (("stages", stage_rows), ("memory", memory_rows)):
        write_table(page, name, rows)
    records = read_result("cost-scaling")
    if records:
        plot(records, DOCS / "scaling.png")


def main() -> None:
    """Run or show one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["stages", "memory", "scaling"])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--precisions", default="", help="by default float32, and what auto is here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    parser.add_argument("--limit", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_child:
        print(json.dumps(memory_run(arguments.memory_child, int(arguments.limit) if arguments.limit else None)))
        return
    device = pick_device(arguments.device)
    names = arguments.cases.split(",")
    if arguments.part == "stages":
        precisions: list[Any] = sorted({"float32", choose_precision("auto", device)}, reverse=True)
        if arguments.precisions:
            precisions = arguments.precisions.split(",")
        measured = stages(names, arguments.presets.split(","), precisions, arguments.repeats, device)
        again = {(r["case"], r["preset"], r["precision"]) for r in measured}
        kept = [r for r in read_result("cost-stages") or [] if (r["case"], r["preset"], r["precision"]) not in again]
        write_result("cost-stages", kept + measured)
    elif arguments.part == "memory":
        write_result("cost-memory", memory(names))
    elif arguments.part == "scaling":
        write_result("cost-scaling", scaling(device))
    write_page()


if __name__ == "__main__":
    main()
