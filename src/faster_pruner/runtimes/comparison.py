"""How fast checkpoints really are here: models take turns in each runtime, at several shapes."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.checks import one_of
from faster_pruner.errors import OptionError
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.limits import made_up_inputs
from faster_pruner.model.passes import inference
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import Timing
from faster_pruner.runtimes import RUNTIMES
from faster_pruner.runtimes.onnx import OnnxModel, export_onnx, quantise, require_onnx
from faster_pruner.runtimes.timing import time_in_turn

_WARM_UP = 3
_SECONDS_PER_SHAPE = 1.5
_MOST_TURNS = 50
_FEWEST_TURNS = 5
# Longer than the worker threads of torch and onnxruntime spin after their last work.
SECONDS_BETWEEN_RUNTIMES = 0.5
# A shape is called launch-bound when its multiply-accumulates per second stay below this share of the best shape's.
_LAUNCH_BOUND = 0.25


@dataclass(frozen=True)
class Entry:
    """A model to time: its name, the model, and MACs of a row by number of tokens."""

    name: str
    model: nn.Module
    macs: Callable[[int], float]


def compare(
    entries: Sequence[Entry],
    *,
    runtimes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    progress: Progress | None = None,
) -> list[Timing]:
    """Time every model in every runtime at every shape; speed-ups are over the first model.

    Args:
        entries: models in eval mode on one device, the dense one first.
        runtimes: of `RUNTIMES`.
        shapes: (batch, sequence) pairs.
        progress: told after each shape.

    Raises:
        OptionError: an unknown runtime, or one whose packages are not installed.
    """
    for runtime in runtimes:
        one_of("runtime", runtime, RUNTIMES)
    listener = progress or Silent()
    runs: dict[tuple[str, str], Callable[[dict[str, Tensor]], Any]] = {}
    seconds: dict[tuple[str, str, int, int], list[float]] = {}
    peaks: dict[tuple[str, str, int, int], float | None] = {}
    with temporary_folder() as folder, torch.no_grad():
        for runtime in runtimes:
            for place, entry in enumerate(entries):
                runs[entry.name, runtime] = runner(entry.model, runtime, folder / f"{place}.onnx")
        for batch, sequence in shapes:
            inputs = made_up_inputs(entries[0].model, batch, sequence)
            if "compile" in runtimes:
                # every model compiles for every shape; torch keeps eight variants and runs the others uncompiled
                torch.compiler.reset()
            for runtime in runtimes:
                own = {name: run for (name, used), run in runs.items() if used == runtime}
                for name, times in _interleaved(own, inputs).items():
                    seconds[name, runtime, batch, sequence] = times
                for name, run in own.items():
                    peaks[name, runtime, batch, sequence] = _peak_mb(run, inputs)
            listener.step()
    return _timings(entries, seconds, peaks)


def check_runs(runtime: str, device: torch.device) -> None:
    """Raise OptionError where models on a device cannot be timed in a runtime."""
    if not runtime.startswith("onnx"):
        return
    require_onnx()
    if device.type != "cpu":
        raise OptionError(f"runtime {runtime!r} is timed on the CPU; the models are on {device}", option="device")


def runner(model: nn.Module, runtime: str, file: Path) -> Callable[[dict[str, Tensor]], Any]:
    """A function that runs one forward."""
    check_runs(runtime, next(model.parameters()).device)
    if runtime.startswith("onnx"):
        if not file.exists():
            export_onnx(model, file)
        return OnnxModel(file if runtime == "onnx" else quantise(file, file.with_suffix(".int8.onnx")))
    called = torch.compile(model, dynamic=False) if runtime == "compile" else model

    def run(inputs: dict[str, Tensor]) -> None:
        with inference(model):
            called(**inputs)

    return run


def _interleaved(
    runs: dict[str, Callable[[dict[str, Tensor]], Any]], inputs: dict[str, Tensor]
) -> dict[str, list[float]]:
    """Seconds of every model in one runtime, taken in turn.

    Runtimes do not take turns: the waiting threads of one keep the cores busy while the next one runs.
    """
    time.sleep(SECONDS_BETWEEN_RUNTIMES)
    return time_in_turn(
        {name: functools.partial(run, inputs) for name, run in runs.items()},
        next(iter(inputs.values())).device,
        warm_up=_WARM_UP,
        fewest=_FEWEST_TURNS,
        most=_MOST_TURNS,
        enough=_SECONDS_PER_SHAPE * len(runs),
    )


def _timings(
    entries: Sequence[Entry],
    seconds: dict[tuple[str, str, int, int], list[float]],
    peaks: dict[tuple[str, str, int, int], float | None],
) -> list[Timing]:
    """Medians, ratios to the first model, and what they mean."""
    macs = {entry.name: entry.macs for entry in entries}
    dense = entries[0].name
    rates = {key: key[2] * macs[key[0]](key[3]) / statistics.median(times) for key, times in seconds.items() if times}
    best = {runtime: max(rate for key, rate in rates.items() if key[1] == runtime) for _, runtime, _, _ in rates}
    found: list[Timing] = []
    for key, times in seconds.items():
        name, runtime, batch, sequence = key
        tenths = statistics.quantiles(times, n=10)
        reference = seconds[dense, runtime, batch, sequence]
        found.append(
            Timing(
                model=name,
                runtime=runtime,
                batch=batch,
                sequence=sequence,
                ms=1000 * statistics.median(times),
                low=1000 * tenths[0],
                high=1000 * tenths[-1],
                speed_up=statistics.median(r / t for r, t in zip(reference, times, strict=True)),
                ideal=_ratio(macs[dense](sequence), macs[name](sequence)),
                peak_mb=peaks[key],
                launch_bound=rates[key] < _LAUNCH_BOUND * best[runtime],
            )
        )
    return found


def _ratio(dense: float, own: float) -> float:
    """How many times fewer; infinite where none is left, 1 where there was none."""
    if own == 0:
        return math.inf if dense else 1.0
    return dense / own


def _peak_mb(run: Callable[[dict[str, Tensor]], Any], inputs: dict[str, Tensor]) -> float | None:
    """Peak memory of one run above what was there before it: cuda's counter, or Linux' resettable high-water mark."""
    device = next(iter(inputs.values())).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(inputs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        run(inputs)
        return max(0.0, (_status_kb("VmHWM") - before) / 1024)
    except (OSError, ValueError):
        return None


def _status_kb(field: str) -> int:
    """A field of /proc/self/status in kB. Raises ValueError where it is missing."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(field)
