"""A whole run in FB: from the command's start to the folder on disk, in a process of its own.

Beside each run one FB (`cost.py`) over the calibration batches of the same rows, in float32, measured in this process
just before it; cells are medians of the repeats. Stages are those of result.json; what is left is the start of Python,
imports and the end.

python benchmarks/whole_run.py            results/whole-run.json and a table in docs/cost.md
python benchmarks/whole_run.py --show     the table from the saved JSON
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, read_result, write_result, write_table
from cost import case, forward_backward
from faster_pruner.data.batches import pack
from faster_pruner.host.devices import pick_device
from faster_pruner.options import CalibrationOptions

NAME = "whole-run"
PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
# What the stages of a run are for.
PARTS = {
    "load and rows": ("load", "rows", "structure"),
    "pruning": ("statistics", "selection", "recovery"),
    "evaluation": ("evaluation",),
}
RUNS: dict[str, tuple[str, list[str]]] = {
    "SST-2, .5": ("sst2", ["--macs", "0.5"]),
    "SST-2, .5, `--no-eval`": ("sst2", ["--macs", "0.5", "--no-eval"]),
    "SST-2, .1": ("sst2", ["--macs", "0.1"]),
    # as many rows as `cost.case` has
    "MRPC, .5": ("mrpc", ["--macs", "0.5", "--calibration-rows", "512"]),
}


def one(task: str, budget: list[str], device: str | None) -> dict[str, Any]:
    """Seconds of one run, in all and by stage."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        command = [sys.executable, "-m", "faster_pruner", "prune", str(SHARED / "models" / f"minilm-l6-{task}")]
        command += ["--task", task, "--data", str(SHARED / "data" / "glue"), *budget, "-o", str(target), "--quiet"]
        command += [] if device is None else ["--device", device]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        whole = time.perf_counter() - started
        return {"whole": whole, "stages": json.loads((target / "result.json").read_text())["seconds"]}


def run(names: list[str], repeats: int, device: str | None) -> list[dict[str, Any]]:
    """Every case, in turn with FB."""
    found: dict[str, dict[str, Any]] = {name: {"case": name, "fb_seconds": [], "runs": []} for name in names}
    where = pick_device(device)
    for _ in range(repeats):
        for name in names:
            task, budget = RUNS[name]
            model, rows = case(task, where)
            batches = pack(rows, tokens_per_batch=CalibrationOptions().tokens_per_batch, device=where)
            forward_backward(model, batches[-2:], "float32")
            found[name]["fb_seconds"].append(forward_backward(model, batches, "float32"))
            found[name]["runs"].append(one(task, budget, device))
            print(name, found[name]["fb_seconds"][-1], found[name]["runs"][-1], flush=True)
    return list(found.values())


def show() -> None:
    """The table, of medians."""
    lines = [
        "| run | in all, FB | load and rows | pruning | evaluation | timing, saving, verification | start and end |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in read_result(NAME):
        shares: list[list[float]] = []
        for fb, own in zip(row["fb_seconds"], row["runs"], strict=True):
            known = [sum(own["stages"].get(stage, 0.0) for stage in stages) for stages in PARTS.values()]
            staged = sum(own["stages"].values())
            shares.append([each / fb for each in (own["whole"], *known, staged - sum(known), own["whole"] - staged)])
        cells = [f"{statistics.median(column):.1f}" for column in zip(*shares, strict=True)]
        lines.append(f"| {row['case']} | **{cells[0]}** | {' | '.join(cells[1:])} |")
    write_table(PAGE, NAME, lines)


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=";".join(RUNS), help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if not arguments.show:
        write_result(NAME, run(arguments.runs.split(";"), arguments.repeats, arguments.device))
    show()


if __name__ == "__main__":
    main()
