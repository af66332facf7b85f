"""Where a run keeps weights: in memory, or in files where memory would not hold them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec

import torch

from faster_pruner.checkpoint.extent import numbers_in
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import OptionError
from faster_pruner.host.heap import freed_at_once, give_back
from faster_pruner.host.mapped import are_in_files, in_files
from faster_pruner.host.ranks import ALONE, Ranks
from faster_pruner.host.spill import free_memory
from faster_pruner.options import CalibrationOptions, Distillation, WeightsName

# Bytes of a number, and how often a run holds all of them: the dense model, the pruned one, and its statistics.
_BYTES, _TIMES = 4, 3


def check_in_files(budget: Budget, distillation: Distillation | None = None) -> None:
    """Raise OptionError for what weights in files are no place for."""
    if not are_in_files():
        return
    for what, option, wanted in (
        ("a distillation", "distill", distillation is not None),
        ("a budget in time", "latency", budget.latency is not None),
    ):
        if wanted:
            raise OptionError(
                f"{what} takes weights in memory, and this run keeps them in files: leave it out, or keep the weights "
                "in memory if it has room for three times the model in float32",
                option=option,
            )


@contextmanager
def memory_for(options: CalibrationOptions, place: str, device: torch.device, ranks: Ranks = ALONE) -> Generator[None]:
    """A run on the checkpoint at a place keeps to the memory that its options say. The first process decides."""
    # on a CPU, each of this machine's processes holds the same
    holders = ranks.local_count if device.type == "cpu" else 1
    files = ranks.lead(lambda: go_to_files(options.weights, place, device, holders=holders))
    # whoever says how much there is also wants back what is freed
    frugal = files or options.memory_limit is not None
    try:
        with in_files(files), freed_at_once() if frugal else nullcontext():
            yield
    finally:
        # whoever prunes ten models one after the other has no use for the gaps that each leaves
        give_back()


def go_to_files(weights: WeightsName, place: str, device: torch.device, *, holders: int = 1) -> bool:
    """Whether a run on the checkpoint at a place keeps its weights in files: where it is told to, or `device` has no
    room for all that so many processes hold.
    """
    if weights != "auto" or find_spec("accelerate") is None:
        return weights == "files"
    return holders * _TIMES * _BYTES * numbers_in(place) > free_memory(device)
