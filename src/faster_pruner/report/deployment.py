"""Tables of `export` and `bench`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from faster_pruner.report.summary import format_metric, plain_table
from faster_pruner.results import ExportStep, Timing

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def print_steps(steps: Sequence[ExportStep], console: Console) -> None:
    """One row per step on the way to another runtime, then their metrics."""
    metrics = list(steps[0].metrics)
    shapes = list(steps[0].ms)
    table = plain_table("export; latency, and speed-up over PyTorch")
    table.add_column("step", no_wrap=True)
    for column in ("weights", "difference", *(f"{b} x {s} tokens" for b, s in shapes)):
        table.add_column(column, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(
            step.name,
            f"{step.megabytes:.1f} MB",
            "" if step.parity is None else f"{step.parity:.1e}",
            *(f"{step.ms[shape]:.1f} ms {step.speed_up[shape]:.2f}x" for shape in shapes),
        )
    console.print(table)
    if metrics:
        quality = plain_table()
        quality.add_column("step", no_wrap=True)
        for name in metrics:
            quality.add_column(name, justify="right")
        for step in steps:
            quality.add_row(step.name, *(format_metric(name, step.metrics[name]) for name in metrics))
        console.print(quality)
    for step in steps:
        if step.file is not None:
            console.print(Text(f"{step.name}: {step.file}"), soft_wrap=True)
        if step.note:
            console.print(Text(f"{step.name}: {step.note}"), soft_wrap=True)


def print_timings(timings: Sequence[Timing], console: Console) -> None:
    """One row per shape, runtime and model; models have letters, so that long paths break no table."""
    models = list(dict.fromkeys(timing.model for timing in timings))
    letters = {name: _letter(place) for place, name in enumerate(models)}
    for name, letter in letters.items():
        console.print(Text(f"{letter}: {name}"), soft_wrap=True)
    table = plain_table("latency in ms; speed-up over A in the same runtime")
    for column in ("rows x tokens", "runtime", "model"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "10 to 90 %", "speed-up", "ideal", "peak MB", ""):
        table.add_column(column, justify="right", no_wrap=True)
    last = ""
    for timing in sorted(timings, key=lambda t: (t.sequence, t.batch)):
        shape = f"{timing.batch} x {timing.sequence}"
        if last and shape != last:
            table.add_section()
        last = shape
        table.add_row(
            shape,
            timing.runtime,
            letters[timing.model],
            _milliseconds(timing.ms),
            f"{_milliseconds(timing.low)}-{_milliseconds(timing.high)}",
            f"{timing.speed_up:.2f}x",
            f"{timing.ideal:.2f}x",
            "" if timing.peak_mb is None else f"{timing.peak_mb:.0f}",
            "*" if timing.launch_bound else "",
        )
    console.print(table)
    console.print(Text("ideal: what the multiply-accumulates alone would give", style="dim"))
    if any(timing.launch_bound for timing in timings):
        console.print(
            Text(
                "*: launch-bound. At this shape little of the time is arithmetic (less than a quarter of the best rate "
                "seen here), so removing arithmetic cannot help much; larger batches can.",
                style="dim",
            )
        )


def _milliseconds(value: float) -> str:
    """Three to five digits."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _letter(place: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    again, own = divmod(place, len(_LETTERS))
    return _LETTERS[own] + (str(again + 1) if again else "")
