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


def with_divergence(records: Records) -> Records:
    """The same records; those of the recovery know the divergence that the distillations of their seed begin with."""
    before = {run["seed"]: run["held_out_before"] for run in records if "held_out_before" in run}
    return [{**run, "held_out": before[run["seed"]]} if run["run"] == "recovery" else run for run in records]


def cost_table(records: Records) -> list[str]:
    """What a whole run costs and gives."""
    lines = ["| run | the whole of it, FB | held-out KL | validation accuracy |", "|---|---|---|---|"]
    for (name,), runs in grouped(with_divergence(records), "run").items():
        accuracy = spread(run["validation"]["accuracy"] for run in runs)
        divergence = spread((run["held_out"] for run in runs), 4) if "held_out" in runs[0] else ""
        lines.append(f"| {name} | {spread((run['fb_measured'] for run in runs), 1)} | {divergence} | {accuracy} |")
    return lines


def plot(records: Records, file: Path) -> None:
    """Accuracy and divergence against the cost of the whole run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    points = {name: runs for (name,), runs in grouped(with_divergence(records), "run").items()}
    for axes, title, value in (
        (both[0], "validation accuracy, %", lambda run: run["validation"]["accuracy"]),
        (both[1], "KL(dense || pruned) on held-out training rows", lambda run: run.get("held_out")),
    ):
        known = {name: [value(run) for run in runs] for name, runs in points.items() if value(runs[0]) is not None}
        x = [statistics.mean(run["fb_measured"] for run in points[name]) for name in known]
        middle = [statistics.mean(each) for each in known.values()]
        low = [m - min(each) for m, each in zip(middle, known.values(), strict=True)]
        high = [max(each) - m for m, each in zip(middle, known.values(), strict=True)]
        axes.errorbar(x, middle, yerr=[low, high], marker="o", capsize=3)
        for name, at in zip(known, x, strict=True):
            axes.annotate(
                name.removeprefix("and "),
                (at, 0.03),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=8,
                color="0.35",
                ha="right",
            )
        axes.set_xscale("log")
        axes.set_xticks([2, 4, 8, 16, 32])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set(xlabel="the whole run, FB of its 2048 calibration rows", title=title)
        axes.grid(alpha=0.3)
    figure.suptitle("SST-2, MiniLM-L6 at a tenth of the MACs: mean and range of three seeds")
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
