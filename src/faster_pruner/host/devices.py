"""The machine at hand: the device to use, and what a measurement depends on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from faster_pruner.errors import OptionError

Given = TypeVar("Given")
Found = TypeVar("Found")

# Each worker holds the matrices of one item.
MOST_WORKERS = 4


def usual_device() -> torch.device:
    """Cuda when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(name: str | None) -> torch.device:
    """The device asked for, else the usual one. Raises OptionError."""
    if name is None:
        return usual_device()
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def on_all_cores(
    work: Callable[[Given], Found], items: Sequence[Given], device: torch.device, *, most: int = MOST_WORKERS
) -> list[Found]:
    """`work` of every item, in order; on a CPU of several items at once, each on its share of the cores.

    For work of many small operations, which do not get faster with cores.

    Args:
        work: must not change anything shared.
        items: what to work on.
        device: where the work is done; one item at a time where that is no CPU.
        most: items at once that memory has room for; never more than `MOST_WORKERS`.
    """
    cores = torch.get_num_threads()
    workers = min(cores, len(items), MOST_WORKERS, most) if device.type == "cpu" else 1
    if workers < 2:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(cores)


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a measurement depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "faster_pruner": version("faster-pruner"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
    }
