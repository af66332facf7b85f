"""What a family of budgets keeps: a table, and a plot with the dense model and the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from faster_pruner.report.headline import speed_up
from faster_pruner.report.summary import format_metric, plain_table
from faster_pruner.results import PruneReport

_COLOUR = "#0b6e99"


def print_sweep(reports: Mapping[str, PruneReport | None], failed: Mapping[str, str], console: Console) -> None:
    """One row per budget, the dense model first.

    Args:
        reports: by name of the budget; None for one that could not be cut.
        failed: why not.
        console: to print to.
    """
    known = [report for report in reports.values() if report is not None]
    table = plain_table(f"{known[0].task}: {known[0].preset}")
    splits = list(known[0].before)
    metrics = {split: known[0].before[split].primary for split in splits}
    table.add_column("budget")
    for title in ("MACs", "parameters", "file"):
        table.add_column(title, justify="right", no_wrap=True)
    for split in splits:
        table.add_column(metrics[split] if len(splits) == 1 else f"{split} {metrics[split]}", justify="right")
        table.add_column("change", justify="right")
    for shape in known[0].latency:
        table.add_column(f"{shape.batch}x{shape.sequence}", justify="right", no_wrap=True)
    dense = known[0].dense
    own = [format_metric(metrics[s], known[0].before[s].value) for s in splits]
    table.add_row(
        "dense",
        "100%",
        _count(dense.parameters),
        f"{dense.bytes / 1e6:.1f} MB",
        *(cell for value in own for cell in (value, "")),
        *("1.0x" for _ in known[0].latency),
    )
    for name, report in reports.items():
        if report is None:
            table.add_row(name, "-")
            continue
        cells: list[str] = []
        for split in splits:
            cells += _cells(report, split)
        table.add_row(
            name,
            f"{report.macs_kept:.1%}",
            _count(report.pruned.parameters),
            f"{report.pruned.bytes / 1e6:.1f} MB",
            *cells,
            *(f"{shape.speed_up:.1f}x" for shape in report.latency),
        )
    console.print(table)
    legend = "change: against the dense model; ~ within the noise of the rows (95 %)"
    if known[0].latency:
        legend += "; last columns: measured speed-up at rows x tokens, PyTorch eager"
    console.print(Text(legend, style="dim"))
    for name, reason in failed.items():
        console.print(Text.assemble(("note", "yellow"), f": {name}: {reason}"))


def _cells(report: PruneReport, split: str) -> list[str]:
    """The primary metric and its change."""
    if split not in report.after:
        return ["", ""]
    before, after = report.before[split], report.after[split]
    change = f"{after.value - before.value:+.2f}"
    if split in report.confidence:
        low, high = report.confidence[split].change
        change += " ~" if low <= 0 <= high else ""
    return [format_metric(before.primary, after.value), change]


def _count(number: float) -> str:
    """12.3 M, or 4.5 k."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def draw_sweep(reports: Sequence[PruneReport], file: Path) -> None:
    """The primary metric of the first split against the MACs that are left, with 95 % intervals; or the speed-up alone.

    Args:
        reports: of the points.
        file: png, svg or pdf.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = sorted(reports, key=lambda report: report.macs_kept)
    split = next(iter(points[0].before), None)
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    x = [100 * report.macs_kept for report in points]
    if split is None:
        y = [speed_up(report) or 0.0 for report in points]
        axes.plot(x, y, marker="o", color=_COLOUR)
        axes.set_ylabel("measured speed-up")
    else:
        before = points[0].before[split]
        y = [report.after[split].value for report in points]
        axes.errorbar(
            x, y, yerr=_errors(points, split), marker="o", capsize=3, color=_COLOUR, label="pruned, with 95 % interval"
        )
        axes.axhline(before.value, color="#888888", linewidth=1)
        axes.plot([100], [before.value], marker="D", color="#333333", linestyle="none", label="dense")
        for report, at, value in zip(points, x, y, strict=True):
            faster = speed_up(report)
            text = "" if faster is None else f"{faster:.1f}x"
            axes.annotate(text, (at, value), (6, 6), textcoords="offset points", fontsize=8)
        axes.set_ylabel(f"{before.primary} ({split})")
        axes.legend(loc="best")
    axes.set_xlabel("encoder's MACs kept, %; at each point the measured speed-up")
    axes.set_title(f"{points[0].model}: {points[0].task}")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _errors(points: Sequence[PruneReport], split: str) -> list[list[float]]:
    """How far the intervals of the metric reach below and above it."""
    below, above = list[float](), list[float]()
    for report in points:
        value = report.after[split].value
        low, high = report.confidence[split].after if split in report.confidence else (value, value)
        below.append(max(0.0, value - low))
        above.append(max(0.0, high - value))
    return [below, above]
