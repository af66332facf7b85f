"""Which tokens of each sublayer the objective reads: found from the structure of the model, never from values.

One small batch runs forward, and backward from predictions whose gradients are all NaN. NaN goes wherever there is a
path and stops nowhere: not at a saturated softmax, not at an attention weight of zero. So a token's dL/dY is NaN if and
only if the objective could depend on it. What is found on a few rows of different lengths is a rule that holds for all
rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from faster_pruner.data.batches import Batch
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.gradients import Observation, gradients
from faster_pruner.model.passes import by_row
from faster_pruner.model.spec import Sublayer

# Rows of the batch that the structure is found on.
_ROWS = 4

# From a model and a batch to what the backward starts from; in parts, each of which is differentiated before the next
# one is made.
Predict = Callable[[nn.Module, Batch], Iterable[Tensor]]


class Rule(StrEnum):
    """Which of a row's tokens are read."""

    NEVER_RUNS = "the forward never gets there"
    NONE = "none"
    FIRST = "the first position"
    LAST = "the last real token"
    BUT_LAST = "every real token but the last"
    POSITIONS = "where predictions are read"
    EVERY = "every real token"
    OTHER = "found batch by batch"


@dataclass(frozen=True)
class Reading:
    """What the objective reads of every sublayer.

    Attributes:
        rules: by name of sublayer.
        order: names of the sublayers in the order in which the model runs them.
        tokens: by stack, positions of a row whose tokens are not told apart by a mask (an image's patches).
        model: for the sublayers without a simple rule.
        predict: see `Predict`.
    """

    rules: dict[str, Rule]
    order: list[str]
    tokens: dict[str, int]
    model: nn.Module = field(repr=False)
    predict: Predict = field(repr=False)

    def partial(self, sublayer: Sublayer) -> bool:
        """Whether only few of a row's tokens are read."""
        return self.rules[sublayer.name] is not Rule.EVERY

    def of(self, sublayers: Sequence[Sublayer], batch: Batch) -> Mapping[str, Tensor] | None:
        """What was found of one batch where no rule says it: [B, S] bool by sublayer; None when rules say it all."""
        if not any(self.rules[sublayer.name] is Rule.OTHER for sublayer in sublayers):
            return None
        return _read(self.model, sublayers, batch, self.predict).read

    def tokens_read(self, sublayer: Sublayer, real: Tensor, batch: Batch, found: Mapping[str, Tensor] | None) -> Tensor:
        """[B, S] bool: the tokens of a batch that are read, out of the real ones; `found` is what `of` says of it."""
        rule = self.rules[sublayer.name]
        if rule is Rule.OTHER:
            assert found is not None
            if found[sublayer.name].shape != real.shape:
                raise UnsupportedModelError(
                    f"{sublayer.name} is given other tokens every time: the model draws numbers"
                )
            return found[sublayer.name] & real
        return real if rule is Rule.EVERY else _by_rule(rule, real, batch)


@dataclass(frozen=True)
class _Seen:
    """What one forward and backward showed, by name of sublayer in the order of the run."""

    read: dict[str, Tensor]
    real: dict[str, Tensor]


def real_tokens(sublayer: Sublayer, batch: Batch, x: Tensor) -> Tensor:
    """[B, S] bool: which tokens of x [B, S, n] are real: as the stack's mask says, all where it says nothing."""
    mask = batch.inputs.get(sublayer.stack.mask)
    if mask is None or mask.shape != x.shape[:-1]:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return mask.bool()


def find_reading(model: nn.Module, sublayers: Sequence[Sublayer], batch: Batch, predict: Predict) -> Reading:
    """Find what the objective reads, on a few rows of one batch.

    Args:
        model: in float32.
        sublayers: in any order.
        batch: with rows of different lengths, if there are such.
        predict: what the backward starts from.

    Raises:
        DataError: the model cannot be run on the batch.
        UnsupportedModelError: a sublayer runs more often in a forward than its stack says.
    """
    few = _varied_rows(batch)
    seen = _read(model, sublayers, few, predict)
    rules = dict.fromkeys((s.name for s in sublayers), Rule.NEVER_RUNS)
    rules |= {name: _rule(read, seen.real[name], few) for name, read in seen.read.items()}
    unmasked = {
        s.stack.name: seen.real[s.name].shape[1]
        for s in sublayers
        if s.name in seen.real and not _is_masked(s, batch, seen)
    }
    return Reading(rules, list(seen.real), unmasked, model, predict)


def _is_masked(sublayer: Sublayer, batch: Batch, seen: _Seen) -> bool:
    """Whether a mask among the inputs tells the real tokens of a sublayer."""
    mask = batch.inputs.get(sublayer.stack.mask)
    return mask is not None and mask.shape[1:] == seen.real[sublayer.name].shape[1:]


def _varied_rows(batch: Batch) -> Batch:
    """A few rows of a batch, spread over it (batches are sorted by length)."""
    count = batch.rows.numel()
    return batch.chosen(torch.linspace(0, count - 1, min(_ROWS, count)).round().long().to(batch.rows.device))


def _read(model: nn.Module, sublayers: Sequence[Sublayer], batch: Batch, predict: Predict) -> _Seen:
    """Run one batch and see where NaN gets."""
    seen = _Seen({}, {})

    rows, calls = batch.rows.numel(), Counter[str]()

    def arrived(sublayer: Sublayer, x: Tensor) -> None:
        calls[sublayer.name] += 1
        if calls[sublayer.name] > sublayer.stack.calls:
            raise UnsupportedModelError(
                f"{sublayer.name} runs more often in one forward than the {sublayer.stack.calls} times of its stack"
            )
        if sublayer.name not in seen.real:
            seen.real[sublayer.name] = real_tokens(sublayer, batch, by_row(x, rows))
            seen.read[sublayer.name] = torch.zeros_like(seen.real[sublayer.name])

    def report(sublayer: Sublayer, observed: Observation) -> None:
        if observed.y_gradient is not None:
            seen.read[sublayer.name] |= by_row(observed.y_gradient, rows).isnan().any(dim=-1)

    with gradients(model, sublayers, report, arrived=arrived):
        try:
            parts = iter(predict(model, batch))
            start = next(parts, None)
            while start is not None:
                with _OpenRectifiers():
                    if start.requires_grad:
                        start.backward(torch.full_like(start, torch.nan))
                    # the end of several parts is a backward, too
                    start = next(parts, None)
        except (AttributeError, LookupError, TypeError) as error:
            raise UnsupportedModelError(
                f"the objective cannot read what a {type(model).__name__} returns ({error}); give one that can"
            ) from error
    return seen


class _OpenRectifiers(TorchDispatchMode):
    """A rectifier hands back all of its gradient: otherwise NaN would stop where its input happens to be negative."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.threshold_backward.default:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


def _rule(read: Tensor, real: Tensor, batch: Batch) -> Rule:
    """The rule that read [B, S] follows, given the real tokens [B, S] of a batch."""
    seen = read & real
    if not seen.any():
        return Rule.NONE
    if torch.equal(seen, real):
        return Rule.EVERY
    simple = (Rule.POSITIONS, Rule.FIRST, Rule.LAST, Rule.BUT_LAST)
    return next((rule for rule in simple if torch.equal(seen, _by_rule(rule, real, batch))), Rule.OTHER)


def _by_rule(rule: Rule, real: Tensor, batch: Batch) -> Tensor:
    """[B, S] bool: the tokens of a batch that a rule names."""
    chosen = torch.zeros_like(real)
    if rule is Rule.POSITIONS:
        if batch.positions is not None and batch.positions.shape == real.shape:
            chosen = batch.positions
    elif rule is Rule.FIRST:
        chosen[:, 0] = True
    elif rule in (Rule.LAST, Rule.BUT_LAST):
        places = torch.arange(real.shape[1], device=real.device)
        last = torch.where(real, places, -1).amax(dim=1)
        chosen[torch.arange(real.shape[0], device=real.device), last.clamp(min=0)] = True
        if rule is Rule.BUT_LAST:
            chosen = ~chosen
    return chosen & real
