"""A model together with its sublayers: what every pass runs through, and what gets smaller."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from faster_pruner.host.mapped import are_in_files, settled
from faster_pruner.model.precision import copy_of
from faster_pruner.model.shrink import Parts, shrink
from faster_pruner.model.spec import Sublayer


@dataclass(frozen=True)
class Network:
    """A model and its sublayers at their present sizes.

    Attributes:
        model: at some size.
        sublayers: in the order in which it runs them, also those without a unit left.
    """

    model: nn.Module
    sublayers: Sequence[Sublayer]

    def copied(self) -> Network:
        """The same sublayers of a copy of the model."""
        return Network(copy_of(self.model), self.sublayers)

    def thin(self) -> Network:
        """The same sublayers of a copy that shares all tensors with the model; shrinking writes into none."""
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return Network(copy.deepcopy(self.model, dict[int, Any](shared)), self.sublayers)

    def shrunk(self, selection: Mapping[str, Tensor]) -> Network:
        """The same model, in place, with the selected units [k] of every sublayer only."""
        return Network(
            self.model, [s.resized(cut_down(self.model, s.parts, selection[s.name])) for s in self.sublayers]
        )


def cut_down(model: nn.Module, parts: Parts, keep: Tensor) -> Parts:
    """As `shrink`; where weights are kept in files, the smaller ones are, too."""
    if not are_in_files() or keep.numel() in (0, parts.units):
        return shrink(model, parts, keep)
    paths = (parts.projection, *(producer.path for producer in parts.producers))
    # held, or a new one might be where an old one was
    before = [tensor for path in paths for tensor in model.get_submodule(path).parameters(recurse=False)]
    smaller = shrink(model, parts, keep)
    for path in paths:
        for parameter in model.get_submodule(path).parameters(recurse=False):
            if not any(parameter is tensor for tensor in before):
                parameter.data = settled(parameter.detach())
    return smaller
