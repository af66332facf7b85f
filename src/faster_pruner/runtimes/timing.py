"""Measured latency: dense and pruned forwards in turn, so that a drifting machine slows both alike."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from faster_pruner.model.passes import inference
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import Latency

K = TypeVar("K")

# Rows and tokens per row that a run's report is about.
SHAPES: tuple[tuple[int, int], ...] = ((1, 32), (32, 128))
_WARM_UP = 2
_SECONDS_PER_SHAPE = 2.0
_MOST_PAIRS = 30
_FEWEST_PAIRS = 5
# `fastest_multiple`: candidates, tokens, turns, and how close to the best is good enough.
_MULTIPLES = (1, 8, 16, 32, 64)
_TOKENS = 4096
_TURNS = 15
_CLOSE_ENOUGH = 1.02


def measure(
    dense: nn.Module,
    pruned: nn.Module,
    inputs: Sequence[dict[str, Tensor]],
    *,
    dense_inputs: Sequence[dict[str, Tensor]] | None = None,
    tokens: int = 1,
    progress: Progress | None = None,
) -> list[Latency]:
    """Median latency of both models on each of the inputs, and the median of the paired ratios.

    Args:
        dense: one model.
        pruned: the other.
        inputs: of each shape.
        dense_inputs: of the same shapes, where the dense model takes others: it may know more tokens.
        tokens: per row of what is no text.
        progress: told after each shape.
    """
    listener = progress or Silent()
    found: list[Latency] = []
    with inference(dense), inference(pruned):
        for given, each in zip(dense_inputs or inputs, inputs, strict=True):
            calls = {"dense": functools.partial(dense, **given), "pruned": functools.partial(pruned, **each)}
            found.append(_measure_one(calls, each, tokens))
            listener.step()
    return found


def seconds_of_measuring(dense: nn.Module, pruned: nn.Module, inputs: Sequence[dict[str, Tensor]]) -> float:
    """What `measure` will take, from one pair of forwards of each shape."""
    total = 0.0
    with inference(dense), inference(pruned):
        for given in inputs:
            device = next(iter(given.values())).device
            calls = [functools.partial(model, **given) for model in (dense, pruned)]
            pair = sum(time_call(call, device) for call in calls)
            turns = min(_MOST_PAIRS, max(_FEWEST_PAIRS, math.ceil(_SECONDS_PER_SHAPE / max(pair, 1e-9))))
            total += (_WARM_UP + turns) * pair
    return total


def _measure_one(calls: Mapping[str, Callable[[], object]], inputs: dict[str, Tensor], tokens: int) -> Latency:
    """One shape."""
    first = next(iter(inputs.values()))
    seconds = time_in_turn(
        calls,
        first.device,
        warm_up=_WARM_UP,
        fewest=_FEWEST_PAIRS,
        most=_MOST_PAIRS,
        enough=_SECONDS_PER_SHAPE,
    )
    slow, fast = seconds["dense"], seconds["pruned"]
    return Latency(
        batch=first.shape[0],
        sequence=inputs["input_ids"].shape[1] if "input_ids" in inputs else tokens,
        dense_ms=1000 * statistics.median(slow),
        pruned_ms=1000 * statistics.median(fast),
        speed_up=statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
    )


def fastest_multiple(width: int, units: int, *, device: torch.device, dtype: torch.dtype) -> int:
    """The smallest multiple that FFN sizes should be rounded to on this hardware.

    Times a pair of Linears of about half of `units` neurons at sizes that are odd multiples of 1, 8, 16, 32 and 64, in
    turn, on 4096 tokens; the smallest multiple whose time per neuron is within 2 % of the best wins.

    Args:
        width: d of the model.
        units: neurons of its widest FFN.
        device: where it will run.
        dtype: of its weights there.
    """
    sizes = {m: max(1, units // 2 // m // 2 * 2 - 1) * m for m in _MULTIPLES if m * 4 <= units}
    x = torch.randn(_TOKENS, width, device=device, dtype=dtype)
    pairs = {
        m: nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, width)).to(device, dtype)
        for m, size in sizes.items()
    }
    calls = {m: functools.partial(pair, x) for m, pair in pairs.items()}
    with torch.no_grad():
        seconds = time_in_turn(calls, device, warm_up=_WARM_UP, fewest=_TURNS, most=_TURNS)
    cost = {m: statistics.median(seconds[m]) / sizes[m] for m in pairs}
    return next((m for m in cost if cost[m] <= _CLOSE_ENOUGH * min(cost.values())), 1)


def time_in_turn(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    *,
    warm_up: int,
    fewest: int,
    most: int,
    enough: float = 0.0,
    progress: Progress | None = None,
) -> dict[K, list[float]]:
    """Seconds of every call, taken in turn, so that a drifting machine slows all of them alike.

    Args:
        calls: what to time.
        device: that is waited for.
        warm_up: untimed turns before.
        fewest: turns at least.
        most: turns at most.
        enough: seconds in all after which no further turn is begun.
        progress: told after each turn.
    """
    listener = progress or Silent()
    for _ in range(warm_up):
        for call in calls.values():
            time_call(call, device)
    found: dict[K, list[float]] = {key: [] for key in calls}
    started = time.perf_counter()
    for turn in range(most):
        if turn >= fewest and time.perf_counter() - started > enough:
            break
        for key, call in calls.items():
            found[key].append(time_call(call, device))
        listener.step()
    return found


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
