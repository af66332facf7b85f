"""The summary of a run, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.results import Evaluation, PruneReport

# How costs are called.
COST_WORDS = {"macs": "encoder's MACs", "parameters": "parameters", "bytes": "weights file"}


@dataclass(frozen=True)
class _Change:
    """One row of the before/after table."""

    what: str
    before: str
    after: str
    change: str


def format_metric(name: str, value: float) -> str:
    """Percent with two digits, losses with four."""
    return f"{value:.4f}" if name in IN_NATURAL_UNITS else f"{value:.2f}"


def print_summary(report: PruneReport, console: Console) -> None:
    """Before and after, then the sublayers, then where the time went."""
    table = Table(title=f"{report.task}: {report.preset}, {report.macs_kept:.1%} of the encoder's MACs kept")
    for column in ("", "dense", "pruned", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for row in [*_metric_rows(report), *_size_rows(report), *_latency_rows(report)]:
        table.add_row(row.what, row.before, row.after, row.change)
    console.print(table)
    console.print(_sublayer_table(report))
    stages = ", ".join(f"{stage} {seconds:.1f}\N{NO-BREAK SPACE}s" for stage, seconds in report.seconds.items())
    console.print(f"[dim]time: {stages}[/dim]")
    if report.verified:
        console.print(f"[green]verified[/green]: {report.verified}")
    for warning in report.warnings:
        console.print(f"[yellow]note[/yellow]: {warning}")


def print_evaluations(evaluations: Iterable[Evaluation], console: Console) -> None:
    """One table row per metric and split."""
    table = Table()
    for column in ("split", "rows", "metric", "value"):
        table.add_column(column, justify="right" if column in ("rows", "value") else "left")
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            table.add_row(evaluation.split, str(evaluation.rows), name, format_metric(name, value))
    console.print(table)


def _metric_rows(report: PruneReport) -> list[_Change]:
    rows: list[_Change] = []
    for split, before in report.before.items():
        after = report.after[split]
        for name, value in before.metrics.items():
            label = name if len(report.before) == 1 else f"{split} {name}"
            digits = 4 if name in IN_NATURAL_UNITS else 2
            rows.append(
                _Change(
                    label,
                    format_metric(name, value),
                    format_metric(name, after.metrics[name]),
                    f"{after.metrics[name] - value:+.{digits}f}",
                )
            )
    return rows


def _size_rows(report: PruneReport) -> list[_Change]:
    dense, pruned = report.dense, report.pruned
    rows = [
        _Change(
            f"encoder MACs, {report.mean_length:.1f} tokens",
            f"{dense.macs / 1e6:.1f} M",
            f"{pruned.macs / 1e6:.1f} M",
            f"{pruned.macs / dense.macs:.1%}",
        ),
        _Change(
            "encoder parameters",
            f"{dense.encoder_parameters / 1e6:.2f} M",
            f"{pruned.encoder_parameters / 1e6:.2f} M",
            f"{pruned.encoder_parameters / dense.encoder_parameters:.1%}",
        ),
        _Change(
            "all parameters",
            f"{dense.parameters / 1e6:.2f} M",
            f"{pruned.parameters / 1e6:.2f} M",
            f"{pruned.parameters / dense.parameters:.1%}",
        ),
    ]
    if dense.bytes and pruned.bytes:
        sizes = (
            f"{dense.bytes / 1e6:.1f} MB",
            f"{pruned.bytes / 1e6:.1f} MB",
            f"{pruned.bytes / dense.bytes:.1%}",
        )
        rows.append(_Change("weights file", *sizes))
    return rows


def _latency_rows(report: PruneReport) -> list[_Change]:
    return [
        _Change(
            f"latency, {shape.batch} x {shape.sequence} tokens",
            f"{shape.dense_ms:.1f} ms",
            f"{shape.pruned_ms:.1f} ms",
            f"{shape.speed_up:.2f}x faster" if shape.speed_up >= 1 else f"{1 / shape.speed_up:.2f}x slower",
        )
        for shape in report.latency
    ]


def _sublayer_table(report: PruneReport) -> Table:
    table = Table(title="sublayers")
    for column in ("sublayer", "units kept", "residual before", "after recovery", "solver", "status"):
        table.add_column(column, justify="left" if column in ("sublayer", "solver", "status") else "right")
    for row in report.sublayers:
        before = "" if row.residual_before is None else f"{row.residual_before:.3f}"
        after = "" if row.residual_after is None else f"{row.residual_after:.3f}"
        status = (
            row.status + (f" ({row.iterations} it.)" if row.iterations else "") + (f": {row.note}" if row.note else "")
        )
        table.add_row(row.name, f"{row.units} of {row.units_before}", before, after, row.solver, status)
    return table
