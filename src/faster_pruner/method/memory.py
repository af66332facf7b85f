"""What a run needs in memory, by arithmetic (docs/cost.md), and the peak of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from faster_pruner.data.batches import Batch
from faster_pruner.host.devices import MOST_WORKERS
from faster_pruner.host.spill import Shelf
from faster_pruner.method.calibration_set import row_lengths
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.parts import MOST_VALUES
from faster_pruner.options import Arithmetic

# Where weights are in files: tensors of a branch, of the stream and of predictions that a pass has at once.
_OF_A_BRANCH, _OF_A_STREAM, _OF_PREDICTIONS = 4, 8, 4
# And float64 matrices of an elimination and of a fit.
_OF_AN_ELIMINATION, _OF_A_FIT = 7, 8
# Bytes on a GPU for every entry of the n x (n + d) of a fit: its moments, and two and a half times as much in float64.
_OF_AN_ENTRY = 24
# Bytes that finding and proving the sublayers of a layer leaves: objects that describe it, and gaps between them.
_OF_A_LAYER = 2 << 20
# Bytes of the two precisions, and matrices that an elimination holds at its peak, in float64.
_SINGLE, _DOUBLE, _MATRICES = 4, 8, 4


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many tokens a calibration set has.

    Attributes:
        real: without padding.
        differentiated: of these, those that the backward runs for.
        padded: with padding.
    """

    real: int
    differentiated: int
    padded: int

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Tokens:
        """Those of batches."""
        counted = [(row_lengths(batch), batch) for batch in batches]
        return cls(
            real=sum(sum(lengths) for lengths, _ in counted),
            differentiated=sum(sum(lengths) for lengths, batch in counted if batch.differentiated),
            padded=sum(len(lengths) * max(lengths, default=0) for lengths, _ in counted),
        )


def memory_terms(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    tokens: Tokens,
    *,
    item: int,
    threads: int,
    descent: bool = False,
) -> dict[str, int]:
    """Bytes that the default method needs beyond a process that has loaded a model and run one forward and backward.

    A copy of the model + statistics (n^2 + d^2 per sublayer, float32) + hidden states (per sublayer d for every real
    token, and d again for every differentiated one; in the last layer for all tokens once) + suspended forwards
    (largest sublayer's activations of all padded tokens) + eliminations side by side (four float64 n x n each).

    Args:
        model: the dense model.
        sublayers: that take part.
        tokens: of the calibration set.
        item: bytes of a number in the passes: 2 in bfloat16, else 4.
        threads: that eliminations share.
        descent: whether all matrices of a sublayer are fitted: what its branch is called with (d for every padded
            token) and what it should make (d for every real one), float32, stay for as long as that takes.
    """
    width, widest = max(s.width for s in sublayers), max(s.columns for s in sublayers)
    layers = max(0, len(sublayers) - 2)
    return {
        "student": _SINGLE * sum(p.numel() for p in model.parameters()),
        "statistics": _SINGLE * sum(s.columns**2 + s.width**2 for s in sublayers),
        "hidden states": item * width * (layers * (tokens.real + tokens.differentiated) + tokens.real),
        "suspended": suspended_bytes(sublayers, tokens.padded, item=item),
        "eliminations": _MATRICES * _DOUBLE * widest**2 * min(threads, MOST_WORKERS),
    } | ({"descent": _SINGLE * width * (tokens.real + tokens.padded)} if descent else {})


def memory_in_files(
    sublayers: Sequence[Sublayer], *, batch: int, vocabulary: int, limit: int, at_once: int = 1
) -> dict[str, int]:
    """Bytes of its own that a process holds at its peak where weights and statistics lie in files (`host.mapped`).

    Hidden states up to their limit, what finding the sublayers leaves, and whatever needs most besides, one after the
    other: a layer of one batch, forwards and backwards; matrices n x n for every elimination; and for a fit those of
    its moments, system, factor, solution and errors. How many of each is measured: runs of 16 and 74 layers of width
    1024. Weights are no part of it: pages of files come and go, and a run is fast where two layers and
    the embeddings find room beside this.

    Args:
        sublayers: that take part.
        batch: padded tokens.
        vocabulary: predictions per token where there is one for every token, else 0: they are taken in parts.
        limit: of hidden states in memory.
        at_once: eliminations side by side.
    """
    width, widest = max(s.width for s in sublayers), max(s.columns for s in sublayers)
    predictions = _OF_PREDICTIONS * _SINGLE * min(MOST_VALUES, batch * vocabulary)
    return {
        "hidden states": limit,
        "layers": _OF_A_LAYER * len({s.prefix for s in sublayers}),
        "pass": _SINGLE * batch * (_OF_A_BRANCH * _of_a_branch(sublayers) + _OF_A_STREAM * width) + predictions,
        "elimination": at_once * _OF_AN_ELIMINATION * _DOUBLE * widest**2,
        "least squares": _OF_A_FIT * _DOUBLE * max(widest, width) ** 2,
    }


def memory_staged(
    model: nn.Module, sublayers: Sequence[Sublayer], *, batch: int, vocabulary: int, limit: int
) -> dict[str, int]:
    """Bytes on a GPU at its peak where layers are fetched from files (`model.staging`); as `memory_in_files`.

    For good what lies outside of the layers, of the dense model and of the pruned one, and the layer that was run last;
    one after the other a pass, with the layer that is run again, an elimination, a fit, and the model that was written
    and is opened again.

    Args:
        model: the dense one.
        sublayers: that take part.
        batch: padded tokens.
        vocabulary: as in `memory_in_files`.
        limit: of hidden states on the device.
    """
    files = memory_in_files(sublayers, batch=batch, vocabulary=vocabulary, limit=limit)
    widest = max(s.columns for s in sublayers)
    layers = [model.get_submodule(path) for path in {s.prefix.removesuffix(".") for s in sublayers}]
    sizes = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    outside = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) - sum(sizes)
    return {
        "outside": 2 * outside,
        "hidden states": limit,
        "a layer": max(sizes),
        "pass": max(sizes) + files["pass"],
        "elimination": _MATRICES * _DOUBLE * widest**2,
        "least squares": max(_OF_AN_ENTRY * s.columns * (s.columns + s.width) for s in sublayers),
        "reopened": outside,
    }


def peak_in_files(terms: dict[str, int]) -> int:
    """The peak by the terms of `memory_in_files` or `memory_staged`."""
    always = ("outside", "hidden states", "layers", "a layer")
    terms = {name: terms.get(name, 0) for name in (*always, *terms)}
    return sum(terms[name] for name in always) + max(size for name, size in terms.items() if name not in always)


def suspended_bytes(sublayers: Sequence[Sublayer], padded: int, *, item: int) -> int:
    """Most bytes that suspended forwards of so many padded tokens hold, `item` bytes a number in the passes."""
    return padded * (item * _of_a_branch(sublayers) + 2 * _SINGLE * max(s.width for s in sublayers))


def _of_a_branch(sublayers: Sequence[Sublayer]) -> int:
    """Numbers that a forward holds of a token in its largest branch."""
    heads = max((s.columns for s in sublayers if s.spec.mixes_tokens), default=0)
    return max(*(s.columns for s in sublayers), 4 * heads)


def bytes_in(precision: Arithmetic) -> int:
    """Of a number in the passes."""
    return 2 if precision == "bfloat16" else _SINGLE


def shelf_for(
    sublayers: Sequence[Sublayer], batches: Iterable[Batch], precision: Arithmetic, *, limit: int, processes: int = 1
) -> Shelf:
    """A shelf for a run, of which what suspended forwards need is set aside.

    Args:
        sublayers: that take part.
        batches: of the calibration set.
        precision: of the passes.
        limit: bytes that stay in memory.
        processes: that share the batches.
    """
    padded = Tokens.of(batches).padded // processes
    return Shelf(limit, aside=suspended_bytes(sublayers, padded, item=bytes_in(precision)))


def within_limit(terms: dict[str, int], limit: int | None) -> dict[str, int]:
    """The same where hidden states and suspended forwards beyond a limit go to files, the hidden states first."""
    if limit is None:
        return terms
    parked, suspended = min(limit, terms["suspended"]), terms["suspended"]
    kept = min(limit - parked, terms["hidden states"])
    # of the suspended forwards, at least the half that is being worked on
    return {**terms, "hidden states": kept, "suspended": max(parked, suspended // 2)}


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held on a device: since `reset_peak`, where the system lets that be reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows does not say
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
