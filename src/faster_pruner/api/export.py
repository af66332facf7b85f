"""Export a checkpoint to another runtime, and say what each step costs and gains."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faster_pruner.api.outcome import stored_bytes
from faster_pruner.api.rows import describe, evaluation_splits, objective_for
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.layout import read_layout
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checks import made_of, one_of, whole_number
from faster_pruner.data.batches import Batch, pack
from faster_pruner.data.tasks import Data, as_data
from faster_pruner.errors import OptionError, OutputError
from faster_pruner.host.places import check_exports, check_space, resolved
from faster_pruner.model.limits import made_up_inputs, shapes_for
from faster_pruner.model.passes import inference
from faster_pruner.objectives.evaluation import evaluate, gather
from faster_pruner.objectives.objective import Objective
from faster_pruner.options import FEWEST_TOKENS
from faster_pruner.progress import StageClock
from faster_pruner.results import ExportStep
from faster_pruner.runtimes import FORMATS
from faster_pruner.runtimes.comparison import SECONDS_BETWEEN_RUNTIMES
from faster_pruner.runtimes.onnx import Call, OnnxModel, export_onnx, quantise, require, require_onnx
from faster_pruner.runtimes.openvino import export_openvino
from faster_pruner.runtimes.timing import SHAPES, time_in_turn

_WARM_UP, _TURNS = 3, 15
_TOKENS_PER_BATCH = 4096
_SUFFIX, _INT8_SUFFIX = ".onnx", ".int8.onnx"
# Where sentence-transformers and optimum look for exported files, and what they call those of int8.
_FOLDER, _INT8_THERE = "onnx", "_quantized.onnx"


@dataclass(frozen=True)
class _Rows:
    """The rows that every step is evaluated on, packed once."""

    split: str
    count: int
    batches: list[Batch]
    objective: Objective
    context: object


def export(
    model: str | Path,
    *,
    output: str | Path | None = None,
    to: str = "onnx",
    int8: bool = False,
    data: str | Data | None = None,
    max_length: int = 128,
    run: Run | None = None,
) -> list[ExportStep]:
    """Export a dense or pruned checkpoint and check it against PyTorch.

    Args:
        model: local folder or hub id.
        output: the `.onnx` file; by default `model.onnx` in the folder, and of a folder of sentence-transformers
            `onnx/model.onnx`, where that looks for it.
        to: one of `FORMATS`; OpenVINO is made from the ONNX file.
        int8: also write a dynamically quantised file beside it (`.int8.onnx`, in a folder `onnx` `_quantized.onnx`).
        data: rows to evaluate every step on, as in `prune`; None evaluates nothing.
        max_length: longest row in tokens.
        run: a listener; everything runs on the CPU.

    Raises:
        InputError: see its subclasses; also when an optional package is missing.
        VerificationError: the exported model does not agree with PyTorch.
    """
    one_of("format", to, FORMATS)
    whole_number("max length", max_length, FEWEST_TOKENS)
    file = _place(model, output)
    require_onnx()
    if to == "openvino":
        require("openvino")
    check_exports(_written_files(file, to, int8=int8))
    clock = (run or Run()).clock()
    with clock.stage("load"):
        opened = open_checkpoint(str(model), device=torch.device("cpu"))
        given = None if data is None else as_data(data)
        rows = None if given is None or given.judged == 0 else _rows(given, opened, max_length)
    check_space([(file, 2 * stored_bytes(opened.model, torch.float32))])
    steps, calls = _written(opened.model, file, to, int8=int8, clock=clock)
    with clock.stage("evaluation and latency", total=len(steps)), torch.no_grad():
        seconds = _timed(calls, opened.model)
        return [_measured(step, calls[step.name], seconds, rows, clock) for step in steps]


def _place(model: str | Path, output: str | Path | None) -> Path:
    """The `.onnx` file, where links lead. Raises OptionError, OutputError."""
    made_of("model", model, (str, Path))
    made_of("output", output, (str, Path, type(None)))
    if output is None:
        if not Path(model).is_dir():
            raise OptionError(
                f"there is no folder {str(model)!r} here to write into; of a model from the hub, say where the ONNX "
                "file goes",
                option="output",
            )
        layout = read_layout(str(model))
        output = Path(model) / "model.onnx" if layout is None else layout.transformer / _FOLDER / "model.onnx"
    file = resolved(Path(output))
    if file.is_dir():
        raise OutputError(f"output {str(output)!r} is a folder; give a file, for instance {str(file / 'model.onnx')!r}")
    if file.suffix != _SUFFIX:
        raise OutputError(f"output {str(output)!r} does not end in {_SUFFIX}; give a file that does")
    return file


def _int8_of(file: Path) -> Path:
    """What the quantised file beside an exported one is called."""
    return file.with_name(f"{file.stem}{_INT8_THERE if file.parent.name == _FOLDER else _INT8_SUFFIX}")


def _written_files(file: Path, to: str, *, int8: bool) -> list[Path]:
    """All that an export may write."""
    found = [file, *([_int8_of(file)] if int8 else [])]
    found += [exported.with_name(f"{exported.name}.data") for exported in found]
    return found + ([file.with_suffix(".xml"), file.with_suffix(".bin")] if to == "openvino" else [])


def _rows(data: Data, opened: Opened, max_length: int) -> _Rows:
    """The rows of the first evaluation split."""
    task = describe(data)
    split, encoded = next(iter(evaluation_splits(data.source(task), task, opened, max_length).items()))
    batches = pack(encoded, tokens_per_batch=_TOKENS_PER_BATCH, device=torch.device("cpu"))
    return _Rows(split, encoded.judged, batches, objective_for(opened, task), encoded.context)


def _written(
    model: Any, file: Path, to: str, *, int8: bool, clock: StageClock
) -> tuple[list[ExportStep], dict[str, Call]]:
    """The steps with what they wrote, and how each is called."""
    steps = [ExportStep(name="PyTorch", file=None, megabytes=stored_bytes(model, torch.float32) / 1e6)]
    calls: dict[str, Call] = {"PyTorch": functools.partial(_in_torch, model)}
    with clock.stage("export to ONNX"):
        exported = export_onnx(model, file)
    size = exported.bytes / 1e6
    steps.append(ExportStep(name="ONNX", file=file, megabytes=size, parity=exported.parity, note=exported.note))
    calls["ONNX"] = OnnxModel(file)
    if int8:
        small = _int8_of(file)
        with clock.stage("quantise"):
            quantise(file, small)
        steps.append(ExportStep(name="ONNX int8", file=small, megabytes=small.stat().st_size / 1e6))
        calls["ONNX int8"] = OnnxModel(small)
    if to == "openvino":
        with clock.stage("export to OpenVINO"):
            written, compiled, parity = export_openvino(model, file)
        size = written.with_suffix(".bin").stat().st_size
        steps.append(ExportStep(name="OpenVINO", file=written, megabytes=size / 1e6, parity=parity))
        calls["OpenVINO"] = compiled
    return steps, calls


def _in_torch(model: Any, inputs: Mapping[str, Tensor]) -> Any:
    with inference(model):
        return model(**inputs)


def _timed(calls: dict[str, Call], model: Any) -> dict[tuple[str, int, int], list[float]]:
    """Seconds of every step at every shape, one step after the other: see `comparison` for why they take no turns."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for batch, tokens in shapes_for(model, SHAPES):
        inputs = made_up_inputs(model, batch, tokens)
        for name, call in calls.items():
            time.sleep(SECONDS_BETWEEN_RUNTIMES)
            alone = {name: functools.partial(call, inputs)}
            device = next(iter(inputs.values())).device
            times = time_in_turn(alone, device, warm_up=_WARM_UP, fewest=_TURNS, most=_TURNS)
            found[name, batch, tokens] = times[name]
    return found


def _measured(
    step: ExportStep,
    call: Call,
    seconds: dict[tuple[str, int, int], list[float]],
    rows: _Rows | None,
    clock: StageClock,
) -> ExportStep:
    """A step with its metrics and latency."""
    metrics: dict[str, float] = {}
    if rows is not None:
        predicted = gather(call, rows.objective, rows.batches, context=rows.context)
        metrics = evaluate(predicted, rows.objective, split=rows.split, rows=rows.count).metrics
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
