"""Measured latency: dense and pruned forwards in turn, so that a drifting machine slows both alike."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from faster_pruner.capture import inference
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import Latency

K = TypeVar("K")

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
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    longest: int = 512,
    progress: Progress | None = None,
) -> list[Latency]:
    """Median latency of both models at each (batch, sequence) shape, and the median of the paired ratios."""
    listener = progress or Silent()
    found: list[Latency] = []
    with inference(dense), inference(pruned):
        for batch, sequence in shapes:
            found.append(_measure_shape(dense, pruned, batch, min(sequence, longest)))
            listener.step()
    return found


def _measure_shape(dense: nn.Module, pruned: nn.Module, batch: int, sequence: int) -> Latency:
    """One shape."""
    inputs = random_inputs(dense, batch, sequence)
    calls = {"dense": lambda: dense(**inputs), "pruned": lambda: pruned(**inputs)}
    seconds = time_in_turn(
        calls,
        inputs["input_ids"].device,
        warm_up=_WARM_UP,
        fewest=_FEWEST_PAIRS,
        most=_MOST_PAIRS,
        enough=_SECONDS_PER_SHAPE,
    )
    slow, fast = seconds["dense"], seconds["pruned"]
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    return Latency(
        batch=batch,
        sequence=sequence,
        dense_ms=1000 * statistics.median(slow),
        pruned_ms=1000 * statistics.median(fast),
        speed_up=statistics.median(ratios),
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


def random_inputs(model: nn.Module, batch: int, sequence: int) -> dict[str, Tensor]:
    """Random token ids without padding, on the model's device; the same for the same shape."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(batch * 100_003 + sequence)
    ids = torch.randint(0, int(config.vocab_size), (batch, sequence), generator=generator)
    pad = config.pad_token_id
    if isinstance(pad, int):
        ids = torch.where(ids == pad, (pad + 1) % int(config.vocab_size), ids)
    device = next(model.parameters()).device
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def longest_row(model: nn.Module) -> int:
    """Most tokens of a row that is safe for every supported family (RoBERTa keeps two positions for itself)."""
    return int(getattr(model.config, "max_position_embeddings", 512)) - 2


def time_in_turn(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    *,
    warm_up: int,
    fewest: int,
    most: int,
    enough: float = 0.0,
) -> dict[K, list[float]]:
    """Seconds of every call, taken in turn, so that a drifting machine slows all of them alike.

    Args:
        calls: what to time.
        device: that is waited for.
        warm_up: untimed turns before.
        fewest: turns at least.
        most: turns at most.
        enough: seconds in all after which no further turn is begun.
    """
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
    return found


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
