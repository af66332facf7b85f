"""One function per command. What a person types is described in `groups`; what is done, in `api`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from faster_pruner.cli.budgets import BudgetOptions, BudgetsOptions, CountedBudgetOptions
from faster_pruner.cli.groups import (
    CalibrationSetOptions,
    Corpus,
    DataOptions,
    DistillationOptions,
    EvalRows,
    EvaluationOptions,
    MaxLength,
    MemoryLimit,
    MethodOptions,
    Model,
    OutputFolder,
    Overwrite,
    RunOptions,
    VocabularyOptions,
    in_bytes,
    numbers,
    run_on,
)
from faster_pruner.cli.printing import printed
from faster_pruner.errors import OptionError
from faster_pruner.host.folders import Output
from faster_pruner.host.marks import PAGE_FILE
from faster_pruner.runtimes import FORMATS, RUNTIMES

if TYPE_CHECKING:
    from rich.console import Console

    from faster_pruner.api.outcome import PruneResult
    from faster_pruner.api.vocabulary import VocabularyResult

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep what is done beside --output, and go on there where an earlier run was interrupted.",
    ),
]


def _show(result: PruneResult, output: Path, more: Callable[[Console], None] | None = None) -> None:
    """The summary, how to open what was saved, and what a command shows beside."""
    from faster_pruner.api.outcome import figures
    from faster_pruner.report import how_to_open, print_summary, print_vocabulary

    with printed(lambda: figures(result.report, result.vocabulary), f"the result is complete, in {output}") as console:
        print_summary(result.report, console)
        if result.vocabulary is not None:
            console.print()
            print_vocabulary(result.vocabulary, console)
        console.print(
            f"saved in {output}: open it with {how_to_open(result.report, str(output))}{_page_in(output)}",
            soft_wrap=True,
        )
        if more is not None:
            more(console)


def _page_in(folder: Path) -> str:
    """That there is a page to read, if it could be made."""
    return f"; read {PAGE_FILE} in there" if (folder / PAGE_FILE).is_file() else ""


def _show_vocabulary(result: VocabularyResult, output: Path) -> None:
    """The summary of what was done to tokens alone."""
    from faster_pruner.report import print_vocabulary

    with printed(result.report.to_json, f"the result is complete, in {output}") as console:
        print_vocabulary(result.report, console)
        console.print(f"saved in {output}{_page_in(output)}", soft_wrap=True)


def prune(
    model: Model,
    budget: BudgetOptions,
    output: OutputFolder,
    data: DataOptions,
    evaluation: EvaluationOptions,
    tokens: VocabularyOptions,
    method: MethodOptions,
    calibration: CalibrationSetOptions,
    distillation: DistillationOptions,
    running: RunOptions,
    keep_statistics: Annotated[
        Path | None,
        typer.Option(help="Keep the statistics in this folder, to cut other budgets from later.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Prune MODEL to a budget, recover its accuracy, verify and measure it."""
    from faster_pruner.api.outcome import PruneResult
    from faster_pruner.api.prune import prune as run_prune

    result = run_prune(
        model,
        data.value(distillation.unlabelled, evaluation.judged),
        macs=budget.value(),
        output=Output(folder=output, overwrite=overwrite, statistics=keep_statistics, resume=resume),
        method=method.value(),
        calibration=calibration.value(),
        run=running.value(),
        vocabulary=tokens.value(calibration.seed),
        distillation=distillation.value(),
    )
    if isinstance(result, PruneResult):
        _show(result, output)
    else:
        _show_vocabulary(result, output)


def plan(
    model: Model,
    budget: CountedBudgetOptions,
    data: DataOptions,
    evaluation: EvaluationOptions,
    method: MethodOptions,
    calibration: CalibrationSetOptions,
    running: RunOptions,
) -> None:
    """Foresee what prune would take with these options, in time and memory, and which sizes a budget means."""
    from faster_pruner.api.plan import plan as run_plan
    from faster_pruner.report import print_plan

    found = run_plan(
        model,
        data.value(judged=evaluation.judged),
        macs=budget.value(),
        method=method.value(),
        calibration=calibration.value(),
        run=running.value(),
    )
    with printed(found.to_json) as console:
        print_plan(found, console)


def cut(
    statistics: Annotated[Path, typer.Argument(help="Folder that prune --keep-statistics wrote.", show_default=False)],
    budget: BudgetOptions,
    output: OutputFolder,
    data: DataOptions,
    evaluation: EvaluationOptions,
    distillation: DistillationOptions,
    running: RunOptions,
    model: Annotated[
        str | None, typer.Option(help="The dense checkpoint, if it has moved since.", show_default=False)
    ] = None,
    memory_limit: MemoryLimit = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Cut another budget from kept STATISTICS, without calibration data. Evaluates when a task is given."""
    from faster_pruner.api.cut import cut_again

    rows = data.value(distillation.unlabelled, evaluation.judged)
    result = cut_again(
        statistics,
        macs=budget.value(),
        output=Output(folder=output, overwrite=overwrite, resume=resume),
        data=rows if rows.described else None,
        model=model,
        memory_limit=in_bytes(memory_limit),
        run=running.value(),
        distillation=distillation.value(),
    )
    _show(result, output)


def sweep(
    model: Model,
    budgets: BudgetsOptions,
    data: DataOptions,
    evaluation: EvaluationOptions,
    method: MethodOptions,
    calibration: CalibrationSetOptions,
    running: RunOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save every model, in a folder of its own in here.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", help="Also write all reports here.", show_default=False)
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the table here.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw it here: .png, .svg or .pdf.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut MODEL to several budgets from one calibration, and show what each keeps and gains."""
    from faster_pruner.api import sweep as api
    from faster_pruner.report import draw_sweep, print_sweep

    wanted = budgets.value()
    api.check_picture(plot)
    api.check_files(json_file, [csv_file, plot], overwrite=overwrite)
    found = api.sweep(
        model,
        data.value(judged=evaluation.judged),
        macs=wanted,
        output=Output(folder=output, overwrite=overwrite),
        method=method.value(),
        calibration=calibration.value(),
        run=running.value(),
    )
    with printed(found.figures) as console:
        failed = {point.name: point.failed for point in found.points if point.failed}
        print_sweep({point.name: point.report for point in found.points}, failed, console)
        if output is not None:
            console.print(f"saved in {output}: a folder for each budget{_page_in(output)}", soft_wrap=True)
        for warning in found.warnings:
            console.print(f"note: {warning}", soft_wrap=True)
    if json_file is not None:
        api.write(json_file, lambda file: file.write_text(found.to_json(), encoding="utf-8"))
    if csv_file is not None:
        api.write(csv_file, lambda file: file.write_text(found.to_csv(), encoding="utf-8"))
    if plot is not None:
        api.write(plot, lambda file: draw_sweep(found.reports, file))


def vocabulary(
    model: Model,
    output: OutputFolder,
    corpus: Corpus,
    running: RunOptions,
    overwrite: Overwrite = False,
) -> None:
    """Keep the tokens of MODEL that a corpus uses, and what other texts need: smaller embeddings, same results."""
    from faster_pruner.api.vocabulary import prune_vocabulary

    result = prune_vocabulary(
        model,
        corpus.value(),
        output=Output(folder=output, overwrite=overwrite),
        held_out=corpus.held_out,
        seed=corpus.seed,
        run=running.value(),
    )
    _show_vocabulary(result, output)


def inspect(
    model: Model,
    running: RunOptions,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", help="Also write what was found here.", show_default=False)
    ] = None,
) -> None:
    """Show what of MODEL can be pruned: stacks, sublayers and their units, and what stays whole and why."""
    from faster_pruner.api.inspect import check_json, write_json
    from faster_pruner.api.inspect import inspect as run_inspect
    from faster_pruner.report import print_inspection

    run = running.value()
    if json_file is not None:
        check_json(json_file)
    found = run_inspect(model, run=run)
    if json_file is not None:
        write_json(json_file, found)
    with printed(lambda: asdict(found)) as console:
        print_inspection(found, console)


def evaluate(
    model: Model,
    data: DataOptions,
    running: RunOptions,
    eval_rows: EvalRows = None,
    max_length: MaxLength = 128,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", help="Tasks of lm-eval, with commas between them, in place of rows.", show_default=False
        ),
    ] = None,
) -> None:
    """Evaluate a dense or pruned MODEL on a task's validation rows."""
    from faster_pruner.api.evaluate import evaluate as run_evaluate
    from faster_pruner.api.harness import evaluate_tasks
    from faster_pruner.report import print_evaluations

    if tasks is None:
        found = run_evaluate(model, data.value(judged=eval_rows), max_length=max_length, run=running.value())
    else:
        if data != DataOptions():
            raise OptionError("--tasks brings rows of its own; leave out what says where others are")
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        found = evaluate_tasks(model, names, rows=eval_rows, run=running.value())
    with printed(lambda: {split: asdict(each) for split, each in found.items()}) as console:
        print_evaluations(found.values(), console)


def export(
    model: Model,
    data: DataOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The .onnx file. Default: model.onnx in MODEL or its onnx/.", show_default=False
        ),
    ] = None,
    to: Annotated[str, typer.Option("--format", help=f"Format: {', '.join(FORMATS)}.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Write a dynamically quantised int8 file, too.")] = False,
    max_length: MaxLength = 128,
) -> None:
    """Export a dense or pruned MODEL, check it against PyTorch, and show accuracy and latency of each step."""
    from faster_pruner.api.export import export as run_export
    from faster_pruner.report import print_steps

    rows = data.value()
    given = rows if rows.described else None
    steps = run_export(model, output=output, to=to, int8=int8, data=given, max_length=max_length, run=run_on(None))
    written = ", ".join(str(step.file) for step in steps if step.file is not None)
    with printed(lambda: [step.to_json() for step in steps], f"written, and complete: {written}") as console:
        print_steps(steps, console)


def bench(
    models: Annotated[list[str], typer.Argument(help="Checkpoints; the first is the reference.", show_default=False)],
    running: RunOptions,
    runtime: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(RUNTIMES)}.")] = "torch",
    batch: Annotated[str, typer.Option(help="Comma-separated rows per forward.")] = "1,8,32",
    seq: Annotated[str, typer.Option(help="Comma-separated tokens per row.")] = "32,128,384",
    json_file: Annotated[
        Path | None, typer.Option("--json-file", help="Also write the figures here.", show_default=False)
    ] = None,
) -> None:
    """Time checkpoints on this machine, in turn, at several shapes and in several runtimes."""
    from faster_pruner.api.bench import bench as run_bench
    from faster_pruner.api.bench import check_json, write_json
    from faster_pruner.report import print_timings

    run = running.value()
    if json_file is not None:
        check_json(json_file)
    timings = run_bench(
        models,
        runtimes=runtime.split(","),
        batches=numbers("--batch", batch),
        sequences=numbers("--seq", seq),
        run=run,
    )
    if json_file is not None:
        write_json(json_file, timings, run)
    with printed(lambda: [asdict(timing) for timing in timings]) as console:
        print_timings(timings, console)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned model.")] = Path(
        "faster-pruner-demo"
    ),
    task: Annotated[
        str | None,
        typer.Option(
            help="text-classification, the default, or embedding: prune the encoder itself, and search with it.",
            show_default=False,
        ),
    ] = None,
    macs: Annotated[float, typer.Option("--macs", help="Share of the encoder's MACs to keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the data split and the calibration sample.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Prune a real encoder on a real task, without downloading anything."""
    from faster_pruner.api.demo import demo as run_demo
    from faster_pruner.report import print_searches

    target = Output(folder=output, overwrite=overwrite)
    result = run_demo(target, task=task, macs=macs, seed=seed, run=run_on(None))
    _show(result, output, lambda console: print_searches(result.searches, console))
