"""The command line: parse, build options, one call, exit code."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, cast

import typer
from rich.console import Console

from faster_pruner import demo as demo_job
from faster_pruner import deploy, job
from faster_pruner.bench import RUNTIMES
from faster_pruner.errors import FasterPrunerError, OptionError
from faster_pruner.inputs import Columns
from faster_pruner.machine import environment, pick_device
from faster_pruner.options import (
    ALLOCATIONS,
    PRECISIONS,
    PRESETS,
    RECOVERIES,
    SELECTIONS,
    SOLVERS,
    AllocationName,
    Budget,
    CalibrationOptions,
    PrecisionName,
    customise,
    preset,
)
from faster_pruner.report import make_progress, print_evaluations, print_steps, print_summary, print_timings
from faster_pruner.tasks import GLUE

P = ParamSpec("P")
_INTERRUPTED = 130
_NARROWEST = 120

app = typer.Typer(
    name="faster-pruner",
    help="Make a fine-tuned transformer physically smaller and faster, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our exceptions and Ctrl-C into one line on standard error and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FasterPrunerError as error:
            print(f"faster-pruner: error: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            print("faster-pruner: interrupted; nothing was written", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from error

    return wrapped


def _console() -> Console:
    """Standard output; wide enough for the tables when it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, _NARROWEST))


def _show(result: job.PruneResult, output: Path) -> None:
    """The summary, and how to open what was saved."""
    console = _console()
    print_summary(result.report, console)
    console.print(
        f"saved in {output}: open it with faster_pruner.load({str(output)!r})", highlight=False, soft_wrap=True
    )


def _multiple(text: str | None) -> int | Literal["auto"] | None:
    """The value of --round-to. Raises OptionError."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise OptionError(f"--round-to is {text!r}; it must be a number, or auto")
    return int(text)


def _budget(macs: float, allocation: str, round_to: str | None) -> Budget:
    """--macs, --allocation and --round-to. Raises BudgetError, OptionError."""
    return Budget(macs=macs, allocation=cast(AllocationName, allocation), round_to=_multiple(round_to))


def _bytes(gib: float | None) -> int | None:
    """GiB as bytes."""
    return None if gib is None else int(gib * 2**30)


def _numbers(option: str, text: str) -> list[int]:
    """The value of an option that is a list of numbers. Raises OptionError."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise OptionError(f"{option} is {text!r}; it must be numbers with commas between them, like 1,8,32")
    return [int(part) for part in parts]


def _version(show: bool) -> None:
    if show:
        print(version("faster-pruner"))
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a fine-tuned transformer physically smaller and faster, without retraining."""


Model = Annotated[str, typer.Argument(help="Fine-tuned checkpoint: a local folder or a hub id.", show_default=False)]
TaskName = Annotated[
    str | None, typer.Option("--task", help=f"GLUE task: {', '.join(GLUE)}. Other data: give columns.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with train and validation as jsonl, csv or parquet (.gz too). Default: the hub.",
    ),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the first or only text.")]
PairColumn = Annotated[str | None, typer.Option("--text-pair-column", help="Column of the second text.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of the label.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Truncate texts to this many tokens.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ... Default: cuda when there is one.")]

Macs = Annotated[
    float, typer.Option("--macs", help="Share of the encoder's MACs to keep, e.g. 0.5.", show_default=False)
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned checkpoint.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is already in --output.")]
Allocation = Annotated[
    str,
    typer.Option(
        help=f"Sizes of the layers: {', '.join(ALLOCATIONS)} (stock: the same everywhere, and heads stay, so that "
        "plain transformers opens the result)."
    ),
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        help="Keep neurons in multiples of this number; auto measures. Default: the preset's, 8.", show_default=False
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        help="Most GiB of hidden states kept in memory; the rest goes to temporary files. "
        "Default: half of what is free.",
        show_default=False,
    ),
]


@app.command()
@_one_line_errors
def prune(
    model: Model,
    macs: Macs,
    output: Output,
    allocation: Allocation = "free",
    round_to: RoundTo = None,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    preset_name: Annotated[str, typer.Option("--preset", help=f"Method: {', '.join(PRESETS)}.")] = "default",
    selection: Annotated[
        str | None, typer.Option(help=f"Replace the preset's selection: {', '.join(SELECTIONS)}.")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help=f"Replace the preset's recovery: {', '.join(RECOVERIES)}.")
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--no-labels", help="Use the labels of the calibration rows, or none at all."),
    ] = None,
    solver: Annotated[str | None, typer.Option(help=f"Replace the recovery's solver: {', '.join(SOLVERS)}.")] = None,
    ridge: Annotated[float | None, typer.Option(help="Replace the recovery's relative ridge.")] = None,
    calibration_rows: Annotated[int, typer.Option(help="Training rows to calibrate on.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the calibration sample.")] = 0,
    max_length: MaxLength = 128,
    precision: Annotated[
        str,
        typer.Option(help=f"Of the passes: {', '.join(PRECISIONS)}; auto is bfloat16 where the hardware has it."),
    ] = "auto",
    memory_limit: MemoryLimit = None,
    keep_statistics: Annotated[
        Path | None,
        typer.Option(help="Keep the statistics in this folder, to cut other budgets from later.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Prune MODEL to a share of its MACs, recover its accuracy, verify and measure it."""
    method = customise(
        preset(preset_name), selection=selection, recovery=recovery, labels=labels, solver=solver, ridge=ridge
    )
    result = job.prune(
        model,
        macs=_budget(macs, allocation, round_to),
        task=task,
        data=data,
        columns=Columns(text=text_column, text_pair=text_pair_column, label=label_column),
        output=output,
        overwrite=overwrite,
        method=method,
        calibration=CalibrationOptions(
            rows=calibration_rows,
            seed=seed,
            max_length=max_length,
            precision=cast(PrecisionName, precision),
            memory_limit=_bytes(memory_limit),
            keep=None if keep_statistics is None else str(keep_statistics),
        ),
        device=device,
        progress=make_progress(),
    )
    _show(result, output)


@app.command()
@_one_line_errors
def cut(
    statistics: Annotated[Path, typer.Argument(help="Folder that prune --keep-statistics wrote.", show_default=False)],
    macs: Macs,
    output: Output,
    model: Annotated[
        str | None, typer.Option(help="The dense checkpoint, if it has moved since.", show_default=False)
    ] = None,
    allocation: Allocation = "free",
    round_to: RoundTo = None,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    memory_limit: MemoryLimit = None,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Cut another budget from kept STATISTICS, without calibration data. Evaluates when a task is given."""
    result = job.cut_again(
        statistics,
        macs=_budget(macs, allocation, round_to),
        model=model,
        output=output,
        overwrite=overwrite,
        task=task,
        data=data,
        columns=Columns(text=text_column, text_pair=text_pair_column, label=label_column),
        memory_limit=_bytes(memory_limit),
        device=device,
        progress=make_progress(),
    )
    _show(result, output)


@app.command()
@_one_line_errors
def evaluate(
    model: Model,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
    device: Device = None,
) -> None:
    """Evaluate a dense or pruned MODEL on a task's validation rows."""
    found = job.evaluate(
        model,
        task=task,
        data=data,
        columns=Columns(text=text_column, text_pair=text_pair_column, label=label_column),
        max_length=max_length,
        device=device,
        progress=make_progress(),
    )
    print_evaluations(found.values(), _console())


@app.command()
@_one_line_errors
def export(
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .onnx file. Default: model.onnx in MODEL.", show_default=False),
    ] = None,
    to: Annotated[str, typer.Option("--format", help=f"Format: {', '.join(deploy.FORMATS)}.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Write a dynamically quantised int8 file, too.")] = False,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = 128,
) -> None:
    """Export a dense or pruned MODEL, check it against PyTorch, and show accuracy and latency of each step."""
    steps = deploy.export(
        model,
        output=output,
        to=to,
        int8=int8,
        task=task,
        data=data,
        columns=Columns(text=text_column, text_pair=text_pair_column, label=label_column),
        max_length=max_length,
        progress=make_progress(),
    )
    print_steps(steps, _console())


@app.command()
@_one_line_errors
def bench(
    models: Annotated[list[str], typer.Argument(help="Checkpoints; the first is the reference.", show_default=False)],
    runtime: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(RUNTIMES)}.")] = "torch",
    batch: Annotated[str, typer.Option(help="Comma-separated rows per forward.")] = "1,8,32",
    seq: Annotated[str, typer.Option(help="Comma-separated tokens per row.")] = "32,128,384",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here.", show_default=False)
    ] = None,
    device: Device = None,
) -> None:
    """Time checkpoints on this machine, in turn, at several shapes and in several runtimes."""
    timings = deploy.bench(
        models,
        runtimes=runtime.split(","),
        batches=_numbers("--batch", batch),
        sequences=_numbers("--seq", seq),
        device=device,
        progress=make_progress(),
    )
    print_timings(timings, _console())
    if json_file is not None:
        found = {
            "environment": environment(pick_device(device)),
            "timings": [asdict(timing) for timing in timings],
        }
        json_file.write_text(json.dumps(found, indent=2) + "\n")


@app.command()
@_one_line_errors
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned model.")] = Path(
        "faster-pruner-demo"
    ),
    macs: Annotated[float, typer.Option("--macs", help="Share of the encoder's MACs to keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the data split and the calibration sample.")] = 0,
) -> None:
    """Prune a real encoder on a real task, without downloading anything."""
    result = demo_job.run(output, macs=macs, seed=seed, progress=make_progress())
    _show(result, output)


def _terminate(signal_number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: temporary folders go, what was there stays."""
    del signal_number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the `faster-pruner` command."""
    signal.signal(signal.SIGTERM, _terminate)
    app()
