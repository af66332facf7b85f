"""The ablation grid (selection x recovery x labels x budget x seeds), and each further idea alone against the default.

python benchmarks/ablation.py --task sst2 --part grid      the switches of the command line
python benchmarks/ablation.py --task sst2 --part ideas     what we tried beyond them, one at a time
python benchmarks/ablation.py --task sst2 --part grid --show      table and plot from the saved JSON, nothing computed

Tables go to standard output and docs/ablation.md, JSON to benchmarks/results/, the plot to docs/ablation-<task>.png.
Rows called `held-out` are training rows outside the calibration set: ideas are judged on them, validation rows are only
reported.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import (
    ROWS,
    calibration_rows,
    metrics_of,
    open_model,
    read_result,
    rows_of,
    subject_for,
    write_result,
    write_table,
)
from faster_pruner.costs.budget import Budget
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.statistics import Needs
from faster_pruner.options import PRESETS, RECOVERIES, SELECTIONS, CalibrationOptions, Method, Switches, customise
from ideas import IDEAS

DOCS = Path(__file__).parents[1] / "docs"
HELD_OUT = {"sst2": 1024, "mrpc": 1024}


def grid() -> dict[str, Method]:
    """Every combination of the command line's switches, from the default preset."""
    found: dict[str, Method] = {}
    for selection in SELECTIONS:
        for labels in (True, False):
            for recovery in RECOVERIES:
                name = f"{selection}, {'labels' if labels else 'no labels'}, {recovery}"
                switches = Switches(selection=selection, recovery=recovery, labels=labels)
                found[name] = customise(PRESETS["default"], switches)
    return found


def run(task: str, part: str, budgets: list[float], seed: int, only: list[str]) -> list[dict[str, Any]]:
    """One record per variant and budget, for one seed."""
    opened = open_model(task)
    subject = subject_for(opened, task)
    validation = rows_of(opened, task, ("validation",))
    records: list[dict[str, Any]] = []
    variants = {name: (method, None) for name, method in grid().items()} if part == "grid" else IDEAS
    if only:
        variants = {name: variant for name, variant in variants.items() if any(part in name for part in only)}
    rows = calibration_rows(opened, task, ROWS[task], seed)
    held_out = calibration_rows(opened, task, HELD_OUT[task], seed + 100)
    taken: dict[Any, Any] = {}
    for name, (method, idea) in variants.items():
        key = (Needs.of(method), getattr(method.selection, "moment_tokens", None))
        if key not in taken:
            taken.clear()
            options = CalibrationOptions(seed=seed)
            taken[key] = calibrate(subject, rows, method, options)
        for share in budgets:
            budget = Budget(macs=share)
            model = cut(taken[key], budget, method).model if idea is None else idea(taken[key], budget, method)
            dev = metrics_of(model, subject, validation)
            held = metrics_of(model, subject, held_out)
            records.append({"variant": name, "macs": share, "seed": seed, "validation": dev, "held_out": held})
            print(seed, name, share, round(dev["accuracy"], 2), round(held["loss"], 4), flush=True)
    return records


def merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of an earlier run that this one did not measure again, and this one's."""
    again = {(r["variant"], r["macs"], r["seed"]) for r in now}
    return [r for r in before if (r["variant"], r["macs"], r["seed"]) not in again] + now


def summarise(records: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, str]]:
    """Mean and spread per variant and budget, as text."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["variant"], record["macs"]].append(record)
    table: dict[tuple[str, float], dict[str, str]] = {}
    for key, runs in groups.items():
        cells = {}
        for split, metric, digits in (
            ("validation", "accuracy", 2),
            ("validation", "loss", 3),
            ("held_out", "accuracy", 2),
            ("held_out", "loss", 3),
        ):
            values = [r[split][metric] for r in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells[f"{split} {metric}"] = f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"
        table[key] = cells
    return table


def as_table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row per variant, validation accuracy and held-out loss at every budget."""
    table = summarise(records)
    budgets = sorted({macs for _, macs in table}, reverse=True)
    lines = ["| variant | " + " | ".join(f"accuracy at {b:g} | held-out loss" for b in budgets) + " |"]
    lines.append("|---" * (1 + 2 * len(budgets)) + "|")
    for variant in dict.fromkeys(name for name, _ in table):
        cells = [table.get((variant, b), {}) for b in budgets]
        row = " | ".join(f"{c.get('validation accuracy', '')} | {c.get('held_out loss', '')}" for c in cells)
        lines.append(f"| {variant} | {row} |")
    return "\n".join(lines) + "\n"


def write_page(name: str, table: str) -> None:
    """The table in docs/ablation.md, if the page shows it."""
    page = DOCS / "ablation.md"
    if f"<!-- table: {name} -->" in page.read_text():
        write_table(page, name, table.splitlines())


def plot(records: list[dict[str, Any]], file: Path, title: str) -> None:
    """Validation accuracy against the budget, mean and range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    styles = {"none": ":", "scale": "--", "weights": "-"}
    colours = {"fisher, labels": "C0", "fisher, no labels": "C1", "second-order, labels": "C2"}
    for variant in dict.fromkeys(r["variant"] for r in records):
        chosen, recovery = variant.rsplit(", ", 1)
        points = defaultdict(list)
        for record in records:
            if record["variant"] == variant:
                points[record["macs"]].append(record["validation"]["accuracy"])
        budgets = sorted(points)
        means = [statistics.mean(points[b]) for b in budgets]
        colour = colours.get(chosen, "C3")
        axes.plot(budgets, means, styles[recovery], color=colour, marker="o", markersize=3, label=variant)
        low, high = [min(points[b]) for b in budgets], [max(points[b]) for b in budgets]
        axes.fill_between(budgets, low, high, color=colour, alpha=0.08)
    axes.set(xlabel="share of the encoder's MACs kept", ylabel="validation accuracy, %", title=title)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, title="selection, gradients, recovery", title_fontsize=7, handlelength=4)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run or show one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2", choices=list(ROWS))
    parser.add_argument("--part", default="grid", choices=["grid", "ideas"])
    parser.add_argument("--budgets", default="0.5,0.3,0.1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="comma-separated parts of variant names")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    name = f"ablation-{arguments.part}-{arguments.task}"
    if arguments.show:
        records = read_result(name)
    else:
        budgets, seeds = [float(b) for b in arguments.budgets.split(",")], [int(s) for s in arguments.seeds.split(",")]
        only = [part for part in arguments.only.split(",") if part]
        records = read_result(name) or []
        for seed in seeds:
            records = merged(records, run(arguments.task, arguments.part, budgets, seed, only))
            write_result(name, records)
    print(as_table(records))
    write_page(name, as_table(records))
    if arguments.part == "grid":
        plot(records, DOCS / f"ablation-{arguments.task}.png", f"{arguments.task}, MiniLM-L6, three calibration seeds")


if __name__ == "__main__":
    main()
