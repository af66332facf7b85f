"""Predictions of one batch, in parts where they are many: tokens times a vocabulary never stand in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from faster_pruner.data.batches import Batch
from faster_pruner.model.passes import called
from faster_pruner.model.precision import forward_in
from faster_pruner.model.tail import Tail
from faster_pruner.objectives.objective import Chosen, Objective, Predictions
from faster_pruner.options import Arithmetic

# Numbers in the predictions of one part; in float32 64 MiB.
MOST_VALUES = 1 << 24


def predicted(
    model: nn.Module, objective: Objective, batch: Batch, *, precision: Arithmetic = "float32"
) -> Iterator[Predictions]:
    """What a model predicts for a batch: all at once, or where that would be too much, some tokens at a time.

    Under gradients, a backward from the values of every part, taken before the next one is asked for, is together with
    the end of the iteration a backward from all of them.

    Args:
        model: in eval mode.
        objective: that reads it.
        batch: with real tokens.
        precision: of the forwards.

    Raises:
        DataError: the model cannot be run on the batch.
    """
    device = batch.rows.device
    chosen, most, tail = _cut_up(model, objective, batch)
    if tail is None or chosen is None or objective.tokens is None:
        with forward_in(precision, device):
            predictions = objective.readout(called(model, batch.inputs), batch)
        yield predictions
        return
    with forward_in(precision, device):
        states = tail.states(batch.inputs)[chosen.at]
    leaf = states.detach().requires_grad_(states.requires_grad)
    row = {key: value[:1] for key, value in batch.inputs.items()}
    for start in range(0, states.shape[0], most):
        part = slice(start, start + most)
        with forward_in(precision, device):
            values = objective.tokens.values(tail.after(leaf[None, part], row))[0]
        yield Predictions(values, chosen.rows[part], chosen.labels[part])
        del values
    if leaf.grad is not None:
        states.backward(leaf.grad)


def _cut_up(model: nn.Module, objective: Objective, batch: Batch) -> tuple[Chosen | None, int, Tail | None]:
    """The tokens that are predicted for, how many make a part, and what makes parts; None where all come at once."""
    chosen = None if objective.tokens is None else objective.tokens.chosen(batch)
    most = 0 if chosen is None else max(1, MOST_VALUES // _classes(model))
    many = chosen is not None and chosen.rows.numel() > most > 0
    return chosen, most, Tail.of(model, batch.inputs) if many else None


def try_parts(model: nn.Module, objective: Objective, batches: Iterable[Batch]) -> None:
    """Try whether predictions of a model can be made in parts where they are many, before somebody watches it run."""
    for batch in batches:
        if _cut_up(model, objective, batch)[-1] is not None:
            return


def predictions_of(objective: Objective) -> Callable[[nn.Module, Batch], Iterator[Tensor]]:
    """The values alone of what models predict for a batch, in the same parts."""

    def values(model: nn.Module, batch: Batch) -> Iterator[Tensor]:
        for predictions in predicted(model, objective, batch):
            yield predictions.values

    return values


def _classes(model: Any) -> int:
    """How many numbers one prediction is, as far as a model says."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor):
        return int(weight.shape[0])
    return int(getattr(model.config, "vocab_size", 1))
