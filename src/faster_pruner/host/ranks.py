"""Several processes that share one run, as `torchrun` and `accelerate launch` start them: their environment is enough.

Each process ("rank") passes through some of the batches. What it finds are sums, which are added up over all; what
follows from them is computed on one rank and handed to the others, so that all go on with the same numbers. Every rank
must come to the same exchanges in the same order.

One process is the same code with nothing to exchange: then nothing here touches a tensor.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from faster_pruner.errors import OptionError, ProcessError
from faster_pruner.host.arithmetic import agreed, bfloat16_pays
from faster_pruner.host.devices import pick_device
from faster_pruner.host.launch import Launched, grouped, launched, number
from faster_pruner.host.watch import Watch

T = TypeVar("T")
G = TypeVar("G")

# How long processes wait for each other at the start (they import at different speeds).
_ARRIVAL = timedelta(seconds=120)
# An exchange may wait for a rank that computes: whether it still does is told by its heartbeat, not by a time limit.
_EXCHANGE = timedelta(days=7)
# Seconds between two looks at an exchange that is under way, at most.
_LONGEST_PAUSE = 0.005


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run, seen from one of them.

    Attributes:
        rank: number of this process.
        count: of all processes.
        local_count: of those on this machine.
        device: where this process computes; None for the usual one.
        exchange: how tensors get to the others; None for a single process.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1
    device: torch.device | None = None
    exchange: Exchange | None = None

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.exchange is None

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.rank == 0

    @property
    def waited(self) -> float:
        """Seconds spent in exchanges, most of them waiting for others."""
        return 0.0 if self.exchange is None else self.exchange.seconds

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all ranks, in place; every rank gets the same bits."""
        for tensor in tensors if self.exchange is not None else ():
            self._moved(tensor, partial(dist.all_reduce, async_op=True))

    def broadcast_(self, *tensors: Tensor, source: int = 0) -> None:
        """Replace each tensor by that of the rank `source`, in place."""
        for tensor in tensors if self.exchange is not None else ():
            self._moved(tensor, partial(dist.broadcast, src=source, async_op=True))

    def _moved(self, tensor: Tensor, begin: Callable[[Tensor], Any]) -> None:
        """Let an exchange write into a tensor, wherever that lies."""
        assert self.exchange is not None
        own = tensor.detach()
        flat = own if own.is_contiguous() else own.contiguous()
        if not flat.numel():
            return
        self.exchange.run(lambda: begin(flat))
        if flat is not own:
            own.copy_(flat)

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, which alone does it. If it raises there, the run ends."""
        if self.exchange is None:
            return work()
        return self._from(0, work() if self.first else None)

    def finish(self, work: Callable[[], T]) -> T:
        """The same for what ends the run: the others, which have nothing left to do, wait as long as it takes."""
        if self.exchange is not None and not self.first:
            self.exchange.watch.patient()
        return self.lead(work)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order."""
        if self.exchange is None:
            return [value]
        return [self._from(source, value if source == self.rank else None) for source in range(self.count)]

    def spread(self, work: Callable[[list[G]], list[T]], items: Sequence[G]) -> list[T]:
        """`work` of all items, of which every rank does some."""
        if self.exchange is None:
            return work(list(items))
        parts = self.gather(work(list(items[self.rank :: self.count])))
        return [parts[place % self.count][place // self.count] for place in range(len(items))]

    def after_first(self, items: Iterable[G], share: Callable[[], None]) -> Iterator[G]:
        """Iterate; between the first rank's first item and everybody else's, all call `share` once."""
        shared = self.exchange is None
        if not shared and not self.first:
            share()
            shared = True
        for item in items:
            yield item
            if not shared:
                share()
                shared = True
        if not shared:
            share()

    def _from(self, source: int, value: T | None) -> T:
        """A value that the rank `source` has."""

        def place(storage: Any, at: str) -> Any:
            return storage if at == "cpu" or self.device is None else storage.to(device=self.device)

        buffer = io.BytesIO()
        if self.rank == source:
            torch.save(value, buffer)
        size = torch.tensor([buffer.tell()], dtype=torch.int64)
        self.broadcast_(size, source=source)
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == source:
            content.copy_(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        self.broadcast_(content, source=source)
        if self.rank == source:
            return cast(T, value)
        # it comes from a process of this very run; what lay on its device is wanted on this one's
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location=place, weights_only=False)


# One process.
ALONE = Ranks()


@dataclass
class Exchange:
    """Runs exchanges, as long as everybody is there.

    Attributes:
        watch: over the other processes.
        seconds: spent so far.
    """

    watch: Watch
    seconds: float = field(default=0.0)

    def run(self, begin: Callable[[], Any]) -> None:
        """Begin an exchange and wait for its end. Raises ProcessError where another process is gone."""
        started, pause = time.perf_counter(), 0.0
        try:
            work = begin()
            while work is not None and not work.is_completed():
                self.watch.check()
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause + 1e-4)
            if work is not None:
                work.wait()
        except RuntimeError as error:
            raise self.watch.reason(lost=True) or error from error
        finally:
            self.seconds += time.perf_counter() - started


@contextmanager
def joined(device: str | None) -> Generator[Ranks]:
    """The processes that the launcher started, for as long as the block runs; one process where it started no more.

    Whatever ends the block on one rank ends it on all: the others get a `ProcessError` within seconds.

    Args:
        device: that was asked for; None for a GPU each when there are any.

    Raises:
        OptionError: a device that several processes cannot have.
        ProcessError: not all of them came, or one is gone.
    """
    own = launched()
    if own.count == 1 or grouped():
        yield ALONE
        return
    if not dist.is_available():
        raise OptionError("this build of torch knows no other processes (torch.distributed); start one")
    on = _device_for(device, own)
    watch = _met(own, on)
    ranks = Ranks(own.rank, own.count, own.local_count, on, Exchange(watch))
    try:
        # machines may differ: all round as the first one does
        with agreed(ranks.lead(bfloat16_pays)) if on.type == "cpu" else nullcontext():
            yield ranks
    except KeyboardInterrupt:
        # the watch's doing, a launcher's, because it lost a process, or somebody's at the keyboard
        cause = watch.reason()
        watch.failed(cause, interrupted=cause is None)
        if cause is None:
            raise
        raise cause from None
    except BaseException as error:
        watch.failed(error)
        raise
    else:
        watch.left()
        dist.destroy_process_group()
    finally:
        watch.stop()


def _device_for(name: str | None, own: Launched) -> torch.device:
    """The device of one of several processes. Raises OptionError."""
    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return pick_device(wanted)
    if wanted != "cuda":
        raise OptionError(
            f"device {wanted!r} cannot be shared by {own.count} processes: they take 'cpu', or 'cuda' for a GPU each",
            option="device",
        )
    if own.local_rank >= torch.cuda.device_count():
        raise OptionError(
            f"{own.local_count} processes were started here and there are {torch.cuda.device_count()} GPUs: start one "
            "for each GPU, or choose the CPU",
            option="device",
        )
    torch.cuda.set_device(own.local_rank)
    return pick_device(f"cuda:{own.local_rank}")


def _met(own: Launched, device: torch.device) -> Watch:
    """Meet the others. Raises ProcessError."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        place = _meeting_place(own.rank == 0)
        dist.init_process_group(
            backend, store=place("exchange"), rank=own.rank, world_size=own.count, timeout=_EXCHANGE
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ProcessError(
            f"the {own.count} processes of this run did not meet ({reason}); start them together, with torchrun",
            speaker=own.rank,
        ) from error
    watch = Watch(place("watch"), own.rank, own.count)
    watch.start()
    return watch


# How often this process has joined others: the n-th time they meet under names that were not used before.
_joined: list[int] = []


def _meeting_place(first: bool) -> Callable[[str], dist.Store]:
    """Stores of this meeting, by purpose."""
    # the launcher's own store, where it has one
    host = first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store: Any = _store(os.environ["MASTER_ADDR"], number("MASTER_PORT"), host)
    _joined.append(len(_joined))
    name = f"faster-pruner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{len(_joined)}"
    # a connection each: one that waits does not hold up the other
    return lambda purpose: dist.PrefixStore(f"{name}/{purpose}", store.clone())


@cache
def _store(address: str, port: int, host: bool) -> dist.Store:
    return dist.TCPStore(address, port, is_master=host, timeout=_ARRIVAL, wait_for_workers=False)
