"""Tables of `export` and `bench`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from faster_pruner.report.summary import format_metric
from faster_pruner.results import ExportStep, Timing


def print_steps(steps: Sequence[ExportStep], console: Console) -> None:
    """One row per step on the way to another runtime."""
    metrics = list(steps[0].metrics)
    shapes = list(steps[0].ms)
    table = Table(title="export")
    table.add_column("step")
    for column in ["weights", "max. difference", *metrics, *(f"{b} x {s} tokens" for b, s in shapes)]:
        table.add_column(column, justify="right")
    for step in steps:
        table.add_row(
            step.name,
            f"{step.megabytes:.1f} MB",
            "" if step.parity is None else f"{step.parity:.1e}",
            *(format_metric(name, step.metrics[name]) for name in metrics),
            *(f"{step.ms[shape]:.1f} ms ({step.speed_up[shape]:.2f}x)" for shape in shapes),
        )
    console.print(table)
    for step in steps:
        if step.file is not None:
            console.print(f"{step.name}: {step.file}", highlight=False, soft_wrap=True)


def print_timings(timings: Sequence[Timing], console: Console) -> None:
    """One row per shape, runtime and model."""
    table = Table(title="latency; speed-up over the first model in the same runtime")
    for column in ("batch x tokens", "runtime", "model"):
        table.add_column(column)
    for column in ("median", "10 % to 90 %", "speed-up", "ideal", "peak memory", ""):
        table.add_column(column, justify="right")
    ordered = sorted(timings, key=lambda t: (t.sequence, t.batch))
    last = ""
    for timing in ordered:
        shape = f"{timing.batch} x {timing.sequence}"
        if last and shape != last:
            table.add_section()
        last = shape
        table.add_row(
            shape,
            timing.runtime,
            timing.model,
            f"{timing.ms:.2f} ms",
            f"{timing.low:.2f} to {timing.high:.2f}",
            f"{timing.speed_up:.2f}x",
            f"{timing.ideal:.2f}x",
            "" if timing.peak_mb is None else f"{timing.peak_mb:.0f} MB",
            "launch-bound" if timing.launch_bound else "",
        )
    console.print(table)
    if any(timing.launch_bound for timing in timings):
        console.print(
            "launch-bound: at this shape little of the time is arithmetic (less than a quarter of the best rate seen "
            "here), so removing arithmetic cannot help much; larger batches can."
        )
