"""Write the tables of README.md and of two pages of docs/ from benchmarks/results/*.json, between their markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import read_result, write_table

ROOT = Path(__file__).parents[1]
TASKS = {"sst2": "SST-2", "mrpc": "MRPC"}
PRESETS = ("kwon2022", "li2024", "default")
ALLOCATIONS = {
    "default": "`free`",
    "default bucketed": "`bucketed`",
    "default uniform": "`uniform`",
    "default stock": "`stock`",
}


def cell(row: dict[str, Any], metric: str = "accuracy") -> str:
    """Mean and spread."""
    return f"{row['mean'][metric]:.2f} ± {row['spread'][metric]:.2f}"


def accuracy() -> list[str]:
    """Presets against budgets."""
    cells = {
        (task, row["method"], row["macs"]): cell(row)
        for task in TASKS
        for row in read_result(f"accuracy-{task}")["table"]
        if row["method"] in PRESETS
    }
    columns = [(task, preset) for task in TASKS for preset in PRESETS]
    lines = ["| encoder MACs kept | " + " | ".join(f"{TASKS[t]} `{p}`" for t, p in columns) + " |", "|---" * 7 + "|"]
    for macs in sorted({key[2] for key in cells}, reverse=True):
        lines.append(f"| {macs:.0%} | " + " | ".join(cells.get((t, p, macs), "") for t, p in columns) + " |")
    return lines


def allocations() -> list[str]:
    """What confining the sizes costs."""
    rows = read_result("accuracy-sst2")["table"]
    cells = {(row["method"], row["macs"]): cell(row) for row in rows}
    budgets = (0.6, 0.5, 0.4, 0.3)
    lines = ["| sizes | " + " | ".join(f"{b:.0%} of the MACs" for b in budgets) + " |", "|---" * 5 + "|"]
    for method, name in ALLOCATIONS.items():
        lines.append(f"| {name} | " + " | ".join(cells.get((method, b), "cannot be reached") for b in budgets) + " |")
    return lines


def precisions() -> list[str]:
    """bfloat16 against float32 passes."""
    rows = read_result("accuracy-sst2")["table"]
    cells = {(row["method"], row["macs"]): row for row in rows}
    lines = ["| MACs kept | bfloat16: accuracy | loss | float32: accuracy | loss |", "|---|---|---|---|---|"]
    # below a quarter the two were not measured with the same recovery
    budgets = {macs for method, macs in cells if method == "default float32" and macs > 0.25}
    for macs in sorted(budgets, reverse=True):
        pair = [cells[method, macs] for method in ("default", "default float32")]
        both = [f"{cell(row)} | {row['mean']['loss']:.3f} ± {row['spread']['loss']:.3f}" for row in pair]
        lines.append(f"| {macs:.0%} | {' | '.join(both)} |")
    return lines


def baselines() -> list[str]:
    """Other ways to choose units, at equal measured MACs."""
    tables = {task: read_result(f"baselines-{task}") for task in TASKS}
    found = {
        (task, row["method"], row["macs"]): row for task, result in tables.items() if result for row in result["table"]
    }
    columns = sorted({(task, macs) for task, _, macs in found}, key=lambda c: (list(TASKS).index(c[0]), -c[1]))
    lines = ["| | " + " | ".join(f"{TASKS[t]} at {m:.0%}" for t, m in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for method in dict.fromkeys(key[1] for key in found):
        cells = [cell(found[t, method, m]) if (t, method, m) in found else "cannot be reached" for t, m in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """All tables."""
    write_table(ROOT / "README.md", "accuracy", accuracy())
    write_table(ROOT / "README.md", "baselines", baselines())
    write_table(ROOT / "docs" / "budget.md", "allocations", allocations())
    write_table(ROOT / "docs" / "decisions.md", "precisions", precisions())


if __name__ == "__main__":
    main()
