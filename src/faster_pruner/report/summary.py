"""The summary of a run, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.report.headline import headline
from faster_pruner.results import DistillationResult, Evaluation, PruneReport

# How costs are called.
COST_WORDS = {"macs": "encoder's MACs", "parameters": "parameters", "bytes": "weights file", "latency": "latency"}

# Terminals narrower than this get fewer columns.
_NARROW = 72


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
    """One line that says it all; before and after; the sublayers; where the time went."""
    console.print(Text(headline(report), style="bold"))
    console.print()
    table = plain_table(f"{report.task}: {report.preset}, {report.macs_kept:.1%} of the encoder's MACs kept")
    for column in ("", "dense", "pruned", "change"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    for row in [*_metric_rows(report), *_size_rows(report), *_latency_rows(report)]:
        table.add_row(row.what, row.before, row.after, row.change)
    console.print(table)
    console.print(_sublayer_table(report, narrow=console.width < _NARROW))
    for line in [*requested_latencies(report), *tried_sizes(report)]:
        console.print(Text(line))
    if report.distillation is not None:
        console.print(Text(distilled(report.distillation)))
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    console.print(Text(_legend(report), style="dim"))
    told = [f"{len(report.processes)} processes"] if report.processes else []
    told += [f"passes in {report.precision}"] if report.precision else []
    how = f" ({', '.join(told)})" if told else ""
    console.print(Text(f"time{how}: {stages}", style="dim"))
    if report.verified:
        console.print(Text.assemble(("verified", "green"), f": {report.verified}"))
    for warning in report.warnings:
        console.print(Text.assemble(("note", "yellow"), f": {warning}"))


def how_to_open(report: PruneReport, folder: str) -> str:
    """What one types to open a folder that was saved; the card has every way."""
    opener, place = report.opener, repr(folder)
    if not opener or (opener.startswith("Auto") and not report.opens_plain):
        return f"faster_pruner.load({place})"
    call = f"{opener}.from_pretrained({place})" if opener.startswith("Auto") else f"{opener}({place})"
    return call if report.opens_plain else f"{call} after import faster_pruner"


def plain_table(title: str = "") -> Table:
    """A table without side borders, narrow enough for 80 columns."""
    return Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def distilled(found: DistillationResult) -> str:
    """What a distillation gained and cost, in a sentence."""
    cost = f"{found.rows} rows, {found.steps} steps, {found.fb:.1f} FB"
    if not found.kept:
        return f"distillation: nothing was gained on {found.held_out} held-out rows, the recovered model stays ({cost})"
    gained = f"divergence on {found.held_out} held-out rows {found.before:.4g} -> {found.after:.4g}"
    early = "" if found.status == "finished" else f"; {found.status}"
    return f"distillation: {gained} ({cost}{early})"


def _legend(report: PruneReport) -> str:
    """The words of the tables, in a few words."""
    known = {
        "calibration_error": "calibration_error: mean gap between confidence and accuracy, in points",
        "loss": "loss: mean cross entropy, in nats",
        "dense_spearman": "dense_...: the order of the dense model's scores in place of labels",
    }
    shown = {name for evaluation in report.before.values() for name in evaluation.metrics}
    lines = [text for name, text in known.items() if name in shown]
    lines.append(f"MACs: multiply-accumulates of one row of {report.mean_length:.0f} tokens")
    if report.latency:
        lines.append("latency: of rows x tokens, PyTorch eager, both models in turn")
    if report.distillation is not None:
        lines.append("FB: forwards and backwards of the dense model over the calibration set, by arithmetic")
    if any(row.residual_before is not None for row in report.sublayers):
        lines.append("residual: relative error against the dense model, before and after the recovery")
    return "; ".join(lines)


def print_evaluations(evaluations: Iterable[Evaluation], console: Console) -> None:
    """One table row per metric and split."""
    table = plain_table()
    for column in ("split", "rows", "metric", "value"):
        table.add_column(column, justify="right" if column in ("rows", "value") else "left")
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            table.add_row(evaluation.split, str(evaluation.rows), name, format_metric(name, value))
    console.print(table)


def _metric_rows(report: PruneReport) -> list[_Change]:
    rows: list[_Change] = []
    recovered = {} if report.distillation is None else report.distillation.recovered
    for split, before in report.before.items():
        after = report.after[split]
        for name, value in before.metrics.items():
            label = name if len(report.before) == 1 else f"{split} {name}"
            digits = 4 if name in IN_NATURAL_UNITS else 2
            if split in recovered and name == before.primary:
                undistilled = recovered[split].metrics[name]
                rows.append(
                    _Change(
                        f"{label}, not distilled",
                        format_metric(name, value),
                        format_metric(name, undistilled),
                        f"{undistilled - value:+.{digits}f}",
                    )
                )
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
            "encoder MACs",
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
            f"latency, {shape.batch} x {shape.sequence}",
            f"{shape.dense_ms:.1f} ms",
            f"{shape.pruned_ms:.1f} ms",
            f"{shape.speed_up:.2f}x faster" if shape.speed_up >= 1 else f"{1 / shape.speed_up:.2f}x slower",
        )
        for shape in report.latency
    ]


def tried_sizes(report: PruneReport) -> list[str]:
    """What was tried on the way to the smallest model within a drop."""
    return [
        f"tried {probe.macs:.1%} of the MACs: {probe.metric} {format_metric(probe.metric, probe.after)} "
        f"({probe.low:+.2f} to {probe.high:+.2f}), {'within' if probe.within else 'no'}"
        for probe in report.probes
    ]


def requested_latencies(report: PruneReport) -> list[str]:
    """What was asked for in time, what the table of sublayers predicts of the sizes, and what the model takes."""
    return [
        f"latency, {limit.where}: {1000 * limit.asked:.3g} ms asked, {1000 * limit.pruned:.3g} predicted, "
        f"{1000 * limit.measured:.3g} measured ({limit.dense / limit.measured:.2f}x)"
        for limit in report.limits
        if limit.measured
    ]


def _sublayer_table(report: PruneReport, *, narrow: bool) -> Table:
    """What is left of each sublayer, and how well it was repaired; names are never cut."""
    table = plain_table("sublayers")
    table.add_column("sublayer", no_wrap=True)
    table.add_column("units kept", justify="right", no_wrap=True)
    table.add_column("residual", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("solver", no_wrap=True)
        table.add_column("status", no_wrap=True)
        table.add_column("steps", justify="right", no_wrap=True)
    for row in report.sublayers:
        both = (row.residual_before, row.residual_after)
        residual = " -> ".join(f"{value:.3f}" for value in both if value is not None)
        cells = [row.name, f"{row.units} of {row.units_before}", residual]
        table.add_row(*cells, *(() if narrow else (row.solver, row.status, str(row.iterations or ""))))
    return table
