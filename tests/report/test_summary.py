"""What a person sees: one line that says it all, tables that fit 80 columns, names that are never cut."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from faster_pruner.report import how_to_open, print_evaluations, print_steps, print_summary, print_timings
from faster_pruner.report.headline import headline
from faster_pruner.results import (
    Confidence,
    Evaluation,
    ExportStep,
    Latency,
    PruneReport,
    SizeResult,
    SublayerResult,
    Timing,
)


def evaluation(value: float, *, split: str = "validation", primary: str = "accuracy") -> Evaluation:
    """Metrics as GLUE's SST-2 has them."""
    metrics = {primary: value, "loss": 0.31, "calibration_error": 4.5}
    return Evaluation(split=split, rows=872, metrics=metrics, primary=primary)


def report(**changes: Any) -> PruneReport:
    """A run of a model with long names and large numbers."""
    dense = SizeResult(macs=5.4e9, encoder_parameters=85_000_000, parameters=109_000_000, bytes=438_000_000)
    sublayers = [
        SublayerResult(
            name=f"layers.{i}.{kind}",
            units_before=3072,
            units=1536,
            residual_before=0.512,
            residual_after=0.231,
            solver="block-cg",
            status="converged",
            iterations=112,
        )
        for i in (0, 11)
        for kind in ("attention", "ffn")
    ]
    found = PruneReport(
        model="[bold]model[/bold]",
        task="[red]sst2[/red]",
        preset="default",
        options={},
        mean_length=27.4,
        macs_asked=0.5,
        macs_kept=0.4999,
        dense=dense,
        pruned=replace(dense, macs=2.7e9, bytes=332_000_000),
        sublayers=sublayers,
        seconds={"load": 1.2, "statistics": 7.5, "save and verify": 0.8},
        before={"validation": evaluation(88.88)},
        after={"validation": evaluation(88.76)},
        confidence={"validation": Confidence(metric="accuracy", before=(86, 91), after=(86, 91), change=(-0.9, 0.6))},
        latency=[
            Latency(batch=1, sequence=32, dense_ms=8.1, pruned_ms=5.0, speed_up=1.6),
            Latency(batch=32, sequence=128, dense_ms=1210.0, pruned_ms=640.0, speed_up=1.89),
        ],
        verified="what the reopened checkpoint returns is bit-equal on 310 rows",
    )
    return replace(found, **changes)


def printed(show: Any, *arguments: Any, width: int = 80) -> list[str]:
    """The lines that a terminal of some width shows."""
    stream = io.StringIO()
    show(*arguments, Console(file=stream, width=width, markup=False, highlight=False))
    return stream.getvalue().splitlines()


def test_the_headline_says_it_all() -> None:
    assert headline(report()) == "1.9x faster, 24% smaller file, accuracy 88.9 -> 88.8 (within noise)"


def test_the_headline_says_when_a_change_is_no_noise() -> None:
    sure = Confidence(metric="accuracy", before=(86, 91), after=(81, 86), change=(-6.1, -3.0))
    found = headline(report(after={"validation": evaluation(84.4)}, confidence={"validation": sure}))
    assert found == "1.9x faster, 24% smaller file, accuracy 88.9 -> 84.4 (change -6.1 to -3.0)"


def test_the_headline_of_a_run_without_rows_slower_and_larger() -> None:
    slow = [Latency(batch=1, sequence=8, dense_ms=1.0, pruned_ms=2.0, speed_up=0.5)]
    large = SizeResult(macs=1.0, encoder_parameters=1, parameters=1, bytes=481_800_000)
    assert headline(report(before={}, after={}, confidence={}, latency=slow, pruned=large)) == (
        "2.0x slower, 10% larger file"
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_summary_fits_and_cuts_no_name(width: int) -> None:
    lines = printed(print_summary, report(), width=width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for name in (
        "layers.11.attention",
        "1536 of 3072",
        "0.512 -> 0.231",
        "latency, 32 x 128",
        "[red]sst2[/red]",
    ):
        assert name in text
    assert ("block-cg" in text) == (width >= 80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


@pytest.mark.parametrize(
    ("opener", "plain", "typed"),
    [
        ("AutoModelForSequenceClassification", False, "faster_pruner.load('out')"),
        ("AutoModelForSequenceClassification", True, "AutoModelForSequenceClassification.from_pretrained('out')"),
        ("SentenceTransformer", False, "SentenceTransformer('out') after import faster_pruner"),
        ("SentenceTransformer", True, "SentenceTransformer('out')"),
        ("CrossEncoder", False, "CrossEncoder('out') after import faster_pruner"),
        ("", False, "faster_pruner.load('out')"),
        ("", True, "faster_pruner.load('out')"),
    ],
)
def test_how_to_open_a_result_is_what_one_types(opener: str, plain: bool, typed: str) -> None:
    assert how_to_open(report(opener=opener, opens_plain=plain), "out") == typed


@pytest.mark.parametrize(
    ("processes", "precision", "words"),
    [
        (0, "", "time: load"),
        (0, "bfloat16", "time (passes in bfloat16): load"),
        (2, "float32", "time (2 processes, passes in float32): load"),
        (2, "", "time (2 processes): load"),
    ],
)
def test_the_summary_says_how_the_passes_ran(processes: int, precision: str, words: str) -> None:
    shown = report(processes=[{"load": 1.0}] * processes, precision=precision)
    assert words in " ".join(" ".join(printed(print_summary, shown)).split())


def test_words_that_need_it_are_explained() -> None:
    text = " ".join(" ".join(printed(print_summary, report())).split())
    for words in (
        "residual: relative error against the dense model",
        "MACs: multiply-accumulates of one row of 27 tokens",
        "calibration_error: mean gap between confidence and accuracy",
    ):
        assert words in text


def test_an_ascii_terminal_can_show_all_of_it() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary(report(), Console(file=stream, width=80, markup=False, highlight=False))
    stream.flush()


def test_metrics_and_exports_fit() -> None:
    assert max(map(len, printed(print_evaluations, [evaluation(88.0, split="validation_mismatched")]))) <= 80
    step = ExportStep(
        name="ONNX int8",
        file=None,
        megabytes=1234.5,
        parity=4.2e-7,
        metrics={"matthews": 51.1, "accuracy": 81.1, "f1": 88.2, "loss": 0.4, "calibration_error": 7.5},
        ms={(1, 32): 8.1, (32, 128): 1210.0},
        speed_up={(1, 32): 1.0, (32, 128): 12.75},
    )
    lines = printed(print_steps, [step, step])
    assert max(map(len, lines)) <= 80
    assert "1210.0 ms 12.75x" in "\n".join(lines)


def test_timings_fit_however_long_a_path_is() -> None:
    path = "/somewhere/" + 20 * "deep/" + "[model]"
    timing = Timing(
        model=path,
        runtime="compile",
        batch=32,
        sequence=384,
        ms=12345.67,
        low=12000.12,
        high=13000.45,
        speed_up=1.0,
        ideal=1.0,
        peak_mb=1234.0,
        launch_bound=True,
    )
    lines = printed(print_timings, [timing, replace(timing, model="other", batch=1)])
    table = [line for line in lines if path not in line]
    assert max(map(len, table)) <= 80
    assert f"A: {path}" in lines
    assert "12000-13000" in "\n".join(table)
