"""What `inspect` found of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SublayerFound:
    """One kind of sublayer of a stack, as `inspect` shows it.

    Attributes:
        kind: "attention", "ffn" and the like.
        unit: what one unit is called.
        layers: indices of the layers that have it.
        units: per layer, units that it has now.
        dense: per layer, units before it was pruned; empty where nothing tells.
        columns: of one unit.
        projection: path inside a layer.
        producers: paths inside a layer, each with the rows that it has per unit, in words.
        join: how the branch joins the stream, in words.
        follows: what else changes with the units.
        least: the fewest units that may be left.
        stock: whether plain transformers builds other numbers of units from the config.
        macs: for one row of `Inspection.length` tokens.
    """

    kind: str
    unit: str
    layers: list[int]
    units: list[int]
    columns: int
    projection: str
    producers: dict[str, str]
    join: str
    follows: list[str]
    least: int
    stock: bool
    macs: float
    dense: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, kw_only=True)
class StackFound:
    """One stack of layers, as `inspect` shows it.

    Attributes:
        name: first part of the names of its sublayers.
        path: of the list of layers, from the model's root.
        layers: how many it has.
        calls: how often each runs in one forward.
        sublayers: by kind.
    """

    name: str
    path: str
    layers: int
    calls: int
    sublayers: list[SublayerFound]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What of a checkpoint can be pruned.

    Attributes:
        model: a hub id, or the name of its folder.
        model_class: transformers' class.
        task: the hub's name of what it is for; empty when no objective is known for its class.
        origin: "table", "detected" (and proved on a batch), or "recorded" (by the checkpoint itself).
        pruned: whether faster-pruner has pruned it before.
        parameters: of the whole model.
        prunable: those of its sublayers.
        length: tokens per row that MACs are given for.
        stacks: with their sublayers.
        left: why parts stay whole, and their paths, with the numbers of all layers that have one ("layers.0-5.router").
    """

    model: str
    model_class: str
    task: str
    origin: str
    pruned: bool
    parameters: int
    prunable: int
    length: int
    stacks: list[StackFound]
    left: dict[str, list[str]]


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 5: the numbers of layers."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
