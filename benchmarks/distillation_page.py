"""docs/distillation.md and its plot, from the JSON of benchmarks/distillation.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import write_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "distillation.md"
METRICS = {"sst2": "accuracy", "mrpc": "accuracy", "cola": "matthews"}
TITLES = {"sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA (Matthews)", "qnli": "QNLI"}

Records = Sequence[Mapping[str, Any]]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean and spread over seeds."""
    own = list(values)
    text = f"{statistics.mean(own):.{digits}f}"
    return f"{text} ± {statistics.stdev(own):.{digits}f}" if len(own) > 1 else text


def grouped(records: Records, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Records by the values of some keys, in the order in which these come."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        found[tuple(record[key] for key in keys)].append(record)
    return found


def gain_table(records: Records) -> list[str]:
    """Per task and budget: held-out divergence and validation metric before and after."""
    lines = [
        "| task | MACs kept | validation, recovered | distilled | held-out KL, recovered | distilled | FB | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, macs), runs in grouped(records, "task", "macs").items():
        metric = METRICS[task]
        before = spread(run["recovered"][metric] for run in runs)
        if macs == 1.0:
            lines.append(f"| {TITLES[task]} | dense | {runs[0]['recovered'][metric]:.2f} | | | | | |")
            continue
        after = spread(run["validation"][metric] for run in runs)
        divergence = [spread((run[key] for run in runs), 4) for key in ("held_out_before", "held_out")]
        cost = spread((run["fb"] for run in runs), 1).split(" ")[0]
        lines.append(
            f"| {TITLES[task]} | {macs:g} | {before} | {after} | {divergence[0]} | {divergence[1]} | {cost} "
            f"| {len(runs)} |"
        )
    return lines


def recipe_table(records: Records) -> list[str]:
    """One variant per row."""
    lines = ["| variant | held-out KL, before | after | validation | cost, FB |", "|---|---|---|---|---|"]
    for (variant, macs), runs in grouped(records, "variant", "macs").items():
        cells = [spread((run[key] for run in runs), 4) for key in ("held_out_before", "held_out")]
        accuracy = spread(run["validation"]["accuracy"] for run in runs)
        cost = spread((run["fb"] for run in runs), 1).split(" ")[0]
        lines.append(f"| {variant}, at {macs:g} | {cells[0]} | {cells[1]} | {accuracy} | {cost} |")
    return lines


def embedding_table(records: Records) -> list[str]:
    """Neighbours and Spearman before and after."""
    shown = ("sts-b spearman", "sts-b neighbours", "questions neighbours")
    lines = [
        "| MACs kept | " + " | ".join(f"{name}, recovered | distilled" for name in shown) + " | cost, FB |",
        "|---" * (2 + 2 * len(shown)) + "|",
    ]
    for (macs,), runs in grouped(records, "macs").items():
        cells = [spread((run[part][name] for run in runs), 1) for name in shown for part in ("recovered", "distilled")]
        cost = spread((run["fb"] for run in runs), 1).split(" ")[0]
        lines.append(f"| {macs:g} | " + " | ".join(cells) + f" | {cost} |")
    return lines


def cost_table(records: Records) -> list[str]:
    """What a whole run costs and gives."""
    lines = ["| run | the whole of it, FB | held-out KL | validation accuracy |", "|---|---|---|---|"]
    for (name,), runs in grouped(records, "run").items():
        accuracy = spread(run["validation"]["accuracy"] for run in runs)
        divergence = spread((run["held_out"] for run in runs), 4) if "held_out" in runs[0] else ""
        lines.append(f"| {name} | {spread((run['fb_measured'] for run in runs), 1)} | {divergence} | {accuracy} |")
    return lines


def plot(records: Records, file: Path) -> None:
    """Accuracy against the cost of the whole run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = list(grouped(records, "run").items())
    x = [statistics.mean(run["fb_measured"] for run in runs) for _, runs in points]
    y = [[run["validation"]["accuracy"] for run in runs] for _, runs in points]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    middle = [statistics.mean(each) for each in y]
    errors = [
        [m - min(each) for m, each in zip(middle, y, strict=True)],
        [max(each) - m for m, each in zip(middle, y, strict=True)],
    ]
    axes.errorbar(x, middle, yerr=errors, marker="o", capsize=3)
    for (name,), at, value in zip((key for key, _ in points), x, middle, strict=True):
        axes.annotate(name, (at, value), (4, -14), textcoords="offset points")
    axes.set_xscale("log")
    axes.set(
        xlabel="the whole run, in forwards and backwards of the dense model over the 2048 calibration rows",
        ylabel="validation accuracy, %",
        title="SST-2, MiniLM-L6 at a tenth of the MACs: mean and range of the seeds",
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def write_page(found: Mapping[str, Records]) -> None:
    """The tables of the parts that were measured, and the plot."""
    for part, table in (
        ("gain", gain_table),
        ("recipe", recipe_table),
        ("embedding", embedding_table),
        ("cost", cost_table),
    ):
        if found.get(part):
            write_table(PAGE, f"distillation-{part}", table(found[part]))
    if found.get("cost"):
        plot(found["cost"], DOCS / "distillation.png")
