"""How close `plan` comes: time by stage, memory and parameters that it foresees, beside what the run then takes.

python benchmarks/plan.py                    every case, each in two fresh processes
python benchmarks/plan.py --cases sst2-0.5   some of them
python benchmarks/plan.py --process-time     on a busy machine: one thread, and the processor's time for the clock's
python benchmarks/plan.py --show             docs/cost.md from the saved JSON, nothing computed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, peak_memory_mb, read_result, write_result, write_table

PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
NAME = "plan"
# Model, rows, share of the MACs, calibration rows (texts of the language model are many rows each).
CASES: dict[str, tuple[str, dict[str, Any], float, int]] = {
    "sst2-0.5": ("minilm-l6-sst2", {"task": "sst2", "folder": "data/glue"}, 0.5, 2048),
    "sst2-0.1": ("minilm-l6-sst2", {"task": "sst2", "folder": "data/glue"}, 0.1, 2048),
    "ncbi-0.5": ("minilm-l6-ncbi", {"task": "token-classification", "folder": "data/ner/ncbi_disease"}, 0.5, 2048),
    "pylm-0.5": ("pylm-llama", {"folder": "models/pylm-llama", "judged": 64}, 0.5, 256),
}


def child(case: str, what: str) -> dict[str, Any]:
    """The plan of a case, or its run, in this process."""
    import torch

    from faster_pruner import CalibrationOptions, Data, plan, prune

    if os.environ.get("PLAN_PROCESS_TIME"):
        time.perf_counter = time.process_time
        torch.set_num_threads(1)
    model, where, share, rows = CASES[case]
    data = Data(**{**where, "folder": SHARED / where["folder"]})
    place, calibration = SHARED / "models" / model, CalibrationOptions(rows=rows)
    if what == "plan":
        found = plan(place, data, macs=share, calibration=calibration)
        return {
            "seconds": found.seconds,
            "memory_mb": found.memory / 1e6,
            "parameters": found.pruned.parameters,
            "took": found.took,
        }
    with tempfile.TemporaryDirectory() as folder:
        report = prune(place, data, macs=share, output=Path(folder) / "out", calibration=calibration).report
    return {
        "seconds": report.seconds,
        "memory_mb": peak_memory_mb() * 1024**2 / 1e6,
        "parameters": report.pruned.parameters,
    }


def measured(case: str, process_time: bool) -> dict[str, Any]:
    """Both of a case, each in a process of its own."""
    found: dict[str, Any] = {"case": case, "clock": "processor" if process_time else "wall"}
    own = os.environ | ({"PLAN_PROCESS_TIME": "1", "OMP_NUM_THREADS": "1"} if process_time else {})
    for what in ("plan", "run"):
        command = [sys.executable, __file__, "--child", case, what]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout
        found[what] = json.loads(printed.splitlines()[-1])
    return found


def table(records: list[dict[str, Any]]) -> list[str]:
    """A row per case."""
    lines = [
        "| model, share of the MACs | planned, s | run, s | error | statistics, selection and recovery: planned, s "
        "| run, s | memory: planned, MB | run, MB | error | parameters: planned / run | the plan took, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(records, key=lambda r: list(CASES).index(r["case"])):
        model, _, share, _ = CASES[r["case"]]
        plan, run = r["plan"], r["run"]
        whole = [sum(each["seconds"].values()) for each in (plan, run)]
        own = ("structure", "statistics", "selection", "recovery")
        part = [sum(each["seconds"].get(stage, 0.0) for stage in own) for each in (plan, run)]
        lines.append(
            f"| {model}, {share:g} | {whole[0]:.1f} | {whole[1]:.1f} | {whole[0] / whole[1] - 1:+.0%} "
            f"| {part[0]:.1f} | {part[1]:.1f} | {plan['memory_mb']:.0f} | {run['memory_mb']:.0f} "
            f"| {plan['memory_mb'] / run['memory_mb'] - 1:+.0%} | {plan['parameters'] / run['parameters']:.3f} "
            f"| {plan['took']:.1f} |"
        )
    return lines


def main() -> None:
    """Measure, keep, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--process-time", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child)))
        return
    found: list[dict[str, Any]] = read_result(NAME) or []
    for case in [] if arguments.show else arguments.cases.split(","):
        record = measured(case, arguments.process_time)
        print(record, flush=True)
        found = [r for r in found if r["case"] != case] + [record]
        write_result(NAME, found)
    if found:
        write_table(PAGE, NAME, table(found))


if __name__ == "__main__":
    main()
