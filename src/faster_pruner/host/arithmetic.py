"""Whether this machine's CPU is faster in bfloat16 than in float32: measured once, and kept.

A processor that has the instructions need not be: with AVX-512's bfloat16 and without AMX, products can take longer
than in float32. So it is tried, for a fraction of a second. Results depend on the answer, so a machine keeps to its
first one, and processes that share a run to that of the first of them.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from faster_pruner.host.cache import keep_first, recall
from faster_pruner.host.devices import processor

_CACHE = "products"
# A feed-forward layer of a small encoder, and how often it is run in either arithmetic.
_TOKENS, _WIDTH, _NEURONS, _TURNS = 512, 384, 1536, 5
# How many times as fast bfloat16 must be: less is not worth the rounding, and no more than measurements vary.
_CLEARLY = 1.25

# What the first of several processes has found, for as long as they share a run.
_agreed: list[bool] = []


def bfloat16_pays() -> bool:
    """Whether products on the CPU are clearly faster in bfloat16, in this run."""
    return _agreed[-1] if _agreed else _own_answer()


@contextmanager
def agreed(pays: bool) -> Generator[None]:
    """Inside, the answer is another process's."""
    _agreed.append(pays)
    try:
        yield
    finally:
        _agreed.pop()


@cache
def _own_answer() -> bool:
    """This machine's answer. Where it cannot be kept, hardware alone decides, so that every run decides alike."""
    avx512, amx = _has("_is_avx512_bf16_supported"), _has("_is_amx_tile_supported")
    if not (avx512 or amx):
        return False
    key = {"processor": processor(), "torch": torch.__version__, "avx512_bf16": avx512, "amx": amx}
    known = recall(_CACHE, key)
    if known is None:
        known = keep_first(_CACHE, key, round(_speed_up(), 2))
    return known >= _CLEARLY if isinstance(known, int | float) else amx


def _has(check: str) -> bool:
    """What torch says of the processor; where it cannot say, it is not so."""
    return bool(getattr(torch.cpu, check, bool)())


def _speed_up() -> float:
    """How many times as fast as in float32 the products of a pass are in bfloat16, as autocast runs them.

    By processor time of one thread: what else the machine does counts little, and the number of threads of a run (of
    which a launcher of several processes gives each one) makes no difference.
    """
    # nobody else's random numbers are used up
    drawn = partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    x, up, down = drawn(_TOKENS, _WIDTH), drawn(_NEURONS, _WIDTH), drawn(_WIDTH, _NEURONS)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with torch.no_grad(), _one_plain_thread():
        # the first turn generates code
        for turn in range(1 + _TURNS):
            for rounded, own in taken.items():
                seconds = _seconds(x, up, down, rounded=rounded)
                own += [seconds] if turn else []
    shortest = time.get_clock_info("thread_time").resolution
    return median(taken[False]) / max(shortest, median(taken[True]))


def _seconds(x: Tensor, up: Tensor, down: Tensor, *, rounded: bool) -> float:
    """Processor time of a forward and a backward of x [T, d] through up [n, d] and down [d, n]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded, cache_enabled=False):
        begun = time.thread_time()
        y = functional.linear(functional.gelu(functional.linear(x, up)), down)
        # as gradients come back
        torch.mm(torch.mm(y, down), up)
        return time.thread_time() - begun


@contextmanager
def _one_plain_thread() -> Generator[None]:
    """One thread, and float32 that is float32, whatever a caller has set."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
