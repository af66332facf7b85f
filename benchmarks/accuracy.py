"""Dev accuracy of the presets against the budget: mean and spread over calibration seeds.

Rows of other methods and budgets that an earlier run has left in the JSON stay.

python benchmarks/accuracy.py --task sst2 --methods search,rearrange,kwon2022,li2024,default --budgets 0.6,0.5,0.4,0.3
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace

from common import ROWS, calibration_rows, metrics_of, open_model, read_result, rows_of, subject_for, write_result
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import BudgetError
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.options import PRESETS, AllocationName, CalibrationOptions, Fisher, Method, PrecisionName, Scale

_KWON = PRESETS["kwon2022"]
assert isinstance(_KWON.recovery, Scale)
METHODS: dict[str, Method] = {
    "search": replace(_KWON, name="search", selection=Fisher(batch=32), recovery=None),
    "rearrange": replace(_KWON, name="rearrange", recovery=None),
    **PRESETS,
    "kwon2022 whole": replace(_KWON, recovery=replace(_KWON.recovery, whole_targets=True)),
    "default float32": PRESETS["default"],
    "default bucketed": PRESETS["default"],
    "default uniform": PRESETS["default"],
    "default stock": PRESETS["default"],
}
# What a row changes beside its method.
PRECISION: dict[str, PrecisionName] = {"default float32": "float32"}
ALLOCATION: dict[str, AllocationName] = {f"default {name}": name for name in ("bucketed", "uniform", "stock")}


def main() -> None:
    """Run the grid and write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sst2", choices=list(ROWS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budgets", default="0.6,0.5,0.4,0.3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--name", default="")
    arguments = parser.parse_args()
    budgets = [float(b) for b in arguments.budgets.split(",")]
    opened = open_model(arguments.task)
    validation = rows_of(opened, arguments.task, ("validation",))
    subject = subject_for(opened, arguments.task)
    dense = metrics_of(opened.model, subject, validation)
    print("dense", {k: round(v, 4) for k, v in dense.items()}, flush=True)
    found: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    units: dict[str, dict[str, int]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        rows = calibration_rows(opened, arguments.task, ROWS[arguments.task], seed)
        for name in arguments.methods.split(","):
            method = METHODS[name]
            options = CalibrationOptions(seed=seed, precision=PRECISION.get(name, "auto"))
            calibrated = calibrate(subject, rows, method, options)
            for budget in budgets:
                try:
                    pruned = cut(calibrated, Budget(macs=budget, allocation=ALLOCATION.get(name, "free")), method)
                except BudgetError as error:
                    print(seed, name, budget, error, flush=True)
                    continue
                round_weights(pruned.model, opened.dtype)
                metrics = metrics_of(pruned.model, subject, validation)
                found[name, budget].append(metrics)
                units[f"{name} {budget} {seed}"] = {s.name: s.units for s in pruned.results}
                notes = [s.status + ": " + s.note for s in pruned.results if s.note and s.status == "stopped"]
                print(seed, name, budget, {k: round(v, 3) for k, v in metrics.items()}, *notes, flush=True)
    table = [_row(name, budget, runs) for (name, budget), runs in found.items()]
    for row in table:
        print(row["method"], row["macs"], row["mean"], "+-", row["spread"])
    name = arguments.name or f"accuracy-{arguments.task}"
    before = read_result(name) or {"table": [], "units": {}}
    kept = [row for row in before["table"] if (row["method"], row["macs"]) not in found]
    merged = sorted([*kept, *table], key=lambda row: (list(METHODS).index(row["method"]), -row["macs"]))
    write_result(name, {"task": arguments.task, "dense": dense, "table": merged, "units": {**before["units"], **units}})


def _row(name: str, budget: float, runs: list[dict[str, float]]) -> dict[str, object]:
    """Mean and spread (sample standard deviation) of every metric."""
    return {
        "method": name,
        "macs": budget,
        "runs": runs,
        "mean": {key: round(statistics.mean(run[key] for run in runs), 4) for key in runs[0]},
        "spread": {
            key: round(statistics.stdev(run[key] for run in runs) if len(runs) > 1 else 0.0, 4) for key in runs[0]
        },
    }


if __name__ == "__main__":
    main()
