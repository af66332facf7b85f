"""What sublayers cost at the sizes that they may get. A cost is a value: a function of sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from faster_pruner.model.spec import Sublayer


class Cost(Protocol):
    """What a budget limits."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64: what `sublayer` costs when it keeps `keeps` [P] units; never less for more units."""
        ...

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """What `model` costs beside its sublayers, whatever their sizes."""
        ...


def total(cost: Cost, sublayers: Iterable[Sublayer], units: Mapping[str, int] | None = None) -> float:
    """What sublayers cost with so many units, by name; at their present sizes where nothing else is said."""
    sizes = units or {}
    return sum(float(cost.of(s, torch.tensor([sizes.get(s.name, s.units)]))[0]) for s in sublayers)


def _features(sublayer: Sublayer, keeps: Tensor) -> list[Tensor]:
    """[P] per producer: output features that it has when the sublayer keeps `keeps` [P] units."""
    found: list[Tensor] = []
    for producer in sublayer.parts.producers:
        per_unit = sum(block.features for block in producer.blocks if not block.fixed)
        fixed = sum(block.features for block in producer.blocks if block.fixed)
        found.append(keeps * per_unit + (keeps > 0) * fixed)
    return found


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the sublayers for one row of mean length (Kwon et al. 2022, section 3).

    Counted: the matrix products of every sublayer, i.e. its producers, its output projection, and where tokens are
    mixed the two products with the attention matrix, as often as the layer runs. Not counted: embeddings, biases,
    normalisation, activations, softmax, the head, and further calls of a producer (DeBERTa's of its positions). Twice
    these numbers is what torch's FlopCounterMode counts for the same modules.

    Attributes:
        lengths: tokens per row, by stack.
    """

    lengths: Mapping[str, float]
    name: str = field(default="macs", init=False)

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        keeps, length = keeps.double(), self.lengths[sublayer.stack.name]
        columns = keeps * sublayer.unit_size
        specs, parts = sublayer.spec.producers, sublayer.parts.producers
        products = {"own": columns * sublayer.width, "memory": torch.zeros_like(columns)}
        for features, spec, own in zip(_features(sublayer, keeps), specs, parts, strict=True):
            read = "memory" if spec.source == "memory" else "own"
            products[read] = products[read] + features * own.inputs
        remembers = any(spec.source == "memory" for spec in specs)
        met = self.lengths.get(sublayer.stack.memory, length) if remembers else length
        # every query and every column of the values meets every token that is attended to; a unit of a single column
        # is no head but what convolves over a few tokens, which is not counted
        attends = sublayer.spec.mixes_tokens and sublayer.unit_size > 1
        mixing = columns * 2 * met if attends else 0.0
        return sublayer.stack.calls * (length * (products["own"] + mixing) + met * products["memory"])

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """Nothing else is counted."""
        del model, sublayers
        return 0.0


@dataclass(frozen=True)
class Parameters:
    """Parameters: of a sublayer those of its producers and the columns of its projection."""

    name: str = field(default="parameters", init=False)

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        keeps = keeps.double()
        parts = sublayer.parts
        weights = [
            features * (producer.inputs + producer.bias)
            for features, producer in zip(_features(sublayer, keeps), parts.producers, strict=True)
        ]
        return sum(weights, keeps * parts.unit_size * parts.width)

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """All other parameters."""
        return sum(parameter.numel() for parameter in model.parameters()) - total(self, sublayers)


@dataclass(frozen=True)
class Bytes:
    """Size of the weights file.

    Attributes:
        per_parameter: bytes of one parameter there.
    """

    per_parameter: int
    name: str = field(default="bytes", init=False)

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        return self.per_parameter * Parameters().of(sublayer, keeps)

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        """All other parameters, and the table of contents of a safetensors file."""
        return self.per_parameter * Parameters().fixed(model, sublayers) + _contents(model, self.per_parameter)


def _contents(model: nn.Module, per_parameter: int) -> int:
    """Bytes of the table of contents of a safetensors file, at least what it takes."""
    total, entries = 0, {"__metadata__": dict[str, Any](format="pt")}
    for name, parameter in model.named_parameters():
        start, total = total, total + per_parameter * parameter.numel()
        entries[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [start, total]}
    # its length comes first, and it is filled up to a multiple of 8
    return 8 + len(json.dumps(entries, separators=(",", ":"))) + 7
