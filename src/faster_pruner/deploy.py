"""What comes after pruning: other runtimes, and timing on the machine at hand."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faster_pruner import bench as timing
from faster_pruner import checkpoint, job
from faster_pruner.batches import Batch, EncodedRows, pack
from faster_pruner.costs import encoder_macs
from faster_pruner.errors import OptionError
from faster_pruner.evaluate import gather, score
from faster_pruner.export import OnnxModel, export_onnx, export_openvino, quantise
from faster_pruner.families import resolve
from faster_pruner.inputs import Columns, describe_task, evaluation_splits, names_a_task, source_of
from faster_pruner.latency import longest_row, random_inputs, time_in_turn
from faster_pruner.machine import pick_device
from faster_pruner.progress import Progress, Silent, StageClock
from faster_pruner.results import ExportStep
from faster_pruner.tasks import Task

FORMATS = ("onnx", "openvino")
_SHAPES = ((1, 32), (32, 128))
_WARM_UP, _TURNS = 3, 15
_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class _Rows:
    """The rows that every step is evaluated on, packed once."""

    split: str
    encoded: EncodedRows
    batches: list[Batch]
    task: Task


def export(
    model: str | Path,
    *,
    output: str | Path | None = None,
    to: str = "onnx",
    int8: bool = False,
    task: str | None = None,
    data: str | Path | None = None,
    columns: Columns | None = None,
    max_length: int = 128,
    progress: Progress | None = None,
) -> list[ExportStep]:
    """Export a dense or pruned checkpoint, check it against PyTorch, and say what each step costs and gains.

    Args:
        model: local folder or hub id.
        output: the `.onnx` file; by default `model.onnx` in the folder.
        to: one of `FORMATS`; OpenVINO is made from the ONNX file.
        int8: also write a dynamically quantised file beside it (`.int8.onnx`).
        task: a GLUE task to evaluate on; without it and `columns` nothing is evaluated.
        data: local folder with the rows; None for the hub.
        columns: in place of the task's own.
        max_length: longest row in tokens.
        progress: a listener.

    Raises:
        InputError: see its subclasses; also when an optional package is missing.
        VerificationError: the exported model does not agree with PyTorch.
    """
    if to not in FORMATS:
        raise OptionError(f"format {to!r} does not exist; choose one of: {', '.join(FORMATS)}")
    clock = StageClock(progress or Silent())
    with clock.stage("load"):
        opened = checkpoint.open_checkpoint(str(model), device=torch.device("cpu"))
        rows: _Rows | None = None
        if names_a_task(task, columns):
            described = describe_task(task, columns)
            source = source_of(described, data)
            split, encoded = next(iter(evaluation_splits(source, described, opened, max_length).items()))
            batches = pack(encoded, tokens_per_batch=_TOKENS_PER_BATCH, device=torch.device("cpu"))
            rows = _Rows(split, encoded, batches, described)
    file = Path(output) if output is not None else Path(model) / "model.onnx"
    net = opened.model
    steps = [ExportStep(name="PyTorch", file=None, megabytes=job.stored_bytes(net, torch.float32) / 1e6)]
    calls: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {"PyTorch": lambda inputs: net(**inputs).logits}
    with clock.stage("export to ONNX"):
        exported = export_onnx(net, file)
    steps.append(ExportStep(name="ONNX", file=file, megabytes=exported.bytes / 1e6, parity=exported.parity))
    calls["ONNX"] = _call(OnnxModel(file))
    if int8:
        small = file.with_suffix(".int8.onnx")
        with clock.stage("quantise"):
            quantise(file, small)
        steps.append(ExportStep(name="ONNX int8", file=small, megabytes=small.stat().st_size / 1e6))
        calls["ONNX int8"] = _call(OnnxModel(small))
    if to == "openvino":
        with clock.stage("export to OpenVINO"):
            written, compiled, parity = export_openvino(net, file)
        steps.append(ExportStep(name="OpenVINO", file=written, megabytes=written.stat().st_size / 1e6, parity=parity))
        calls["OpenVINO"] = compiled
    with clock.stage("evaluation and latency", total=len(steps)), torch.no_grad():
        seconds = _timed(calls, net)
        return [_measured(step, calls[step.name], seconds, rows, clock) for step in steps]


def _call(model: OnnxModel) -> Callable[[dict[str, Tensor]], Tensor]:
    """An ONNX model as a function from tensors to a tensor."""
    return lambda inputs: torch.from_numpy(model.logits(inputs))


def _timed(
    calls: dict[str, Callable[[dict[str, Tensor]], Tensor]], model: Any
) -> dict[tuple[str, int, int], list[float]]:
    """Seconds of every step at every shape, one step after the other: see `bench` for why they do not take turns."""
    found: dict[tuple[str, int, int], list[float]] = {}
    longest = longest_row(model)
    for batch, wanted in _SHAPES:
        inputs = random_inputs(model, batch, min(wanted, longest))
        for name, call in calls.items():
            time.sleep(timing.SECONDS_BETWEEN_RUNTIMES)
            alone = {name: functools.partial(call, inputs)}
            times = time_in_turn(alone, inputs["input_ids"].device, warm_up=_WARM_UP, fewest=_TURNS, most=_TURNS)
            found[name, batch, min(wanted, longest)] = times[name]
    return found


def _measured(
    step: ExportStep,
    call: Callable[[dict[str, Tensor]], Tensor],
    seconds: dict[tuple[str, int, int], list[float]],
    rows: _Rows | None,
    clock: StageClock,
) -> ExportStep:
    """A step with its metrics and latency."""
    metrics: dict[str, float] = {}
    if rows is not None:
        metrics = score(gather(call, rows.batches).numpy(), rows.encoded, rows.task, split=rows.split).metrics
    clock.progress.step()
    own = {(b, s): times for (name, b, s), times in seconds.items() if name == step.name}
    ratios = {
        shape: statistics.median(seconds["PyTorch", *shape]) / statistics.median(times) for shape, times in own.items()
    }
    return replace(
        step,
        metrics=metrics,
        ms={shape: 1000 * statistics.median(times) for shape, times in own.items()},
        speed_up=ratios,
    )


def bench(
    models: Sequence[str | Path],
    *,
    runtimes: Sequence[str] = ("torch",),
    batches: Sequence[int] = (1, 8, 32),
    sequences: Sequence[int] = (32, 128, 384),
    device: str | None = None,
    progress: Progress | None = None,
) -> list[timing.Timing]:
    """Time checkpoints on this machine; the first one is the reference for speed-ups.

    Args:
        models: local folders or hub ids.
        runtimes: of `bench.RUNTIMES`.
        batches: rows per forward.
        sequences: tokens per row; longer ones than the models take are left out.
        device: by default cuda when there is one.
        progress: a listener.

    Raises:
        InputError: see its subclasses.
    """
    if min([*batches, *sequences], default=0) < 1:
        raise OptionError("batches and sequences must be at least 1")
    clock = StageClock(progress or Silent())
    entries: list[timing.Entry] = []
    with clock.stage("load", total=len(models)):
        for place in models:
            opened = checkpoint.open_checkpoint(str(place), device=pick_device(device))
            sublayers = resolve(opened.model, opened.family)
            name = str(place)
            while name in {entry.name for entry in entries}:
                name += " (again)"
            entries.append(
                timing.Entry(name, opened.model, lambda length, own=sublayers: encoder_macs(own, float(length)))
            )
            clock.progress.step()
    longest = min(int(getattr(entry.model.config, "max_position_embeddings", 512)) for entry in entries)
    shapes = [(b, s) for s in sequences if s <= longest for b in batches]
    if not shapes:
        raise OptionError(f"no sequence of {list(sequences)} fits: these models take at most {longest} tokens")
    with clock.stage("bench", total=len(shapes)):
        return timing.bench(entries, runtimes=runtimes, shapes=shapes, progress=clock.progress)
