"""Measured latency: dense and pruned forwards in turn, so that a drifting machine slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.capture import inference
from faster_pruner.progress import Progress, Silent
from faster_pruner.results import Latency

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
    for _ in range(_WARM_UP):
        time_forward(dense, inputs)
        time_forward(pruned, inputs)
    slow: list[float] = []
    fast: list[float] = []
    started = time.perf_counter()
    while len(slow) < _MOST_PAIRS:
        slow.append(time_forward(dense, inputs))
        fast.append(time_forward(pruned, inputs))
        if len(slow) >= _FEWEST_PAIRS and time.perf_counter() - started > _SECONDS_PER_SHAPE:
            break
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
    seconds: dict[int, list[float]] = {m: [] for m in pairs}
    with torch.no_grad():
        for turn in range(_TURNS + _WARM_UP):
            for m, pair in pairs.items():
                taken = time_call(lambda pair=pair: pair(x), device)
                if turn >= _WARM_UP:
                    seconds[m].append(taken)
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


def time_forward(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Seconds of one forward, until the device is done."""
    return time_call(lambda: model(**inputs), inputs["input_ids"].device)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
