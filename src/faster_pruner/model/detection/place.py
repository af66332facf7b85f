"""Where one is looking: one layer of a model that is being watched."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from faster_pruner.model.detection.stacks import Layers
from faster_pruner.model.detection.watching import Inputs, Trace
from faster_pruner.model.spec import Stack
from faster_pruner.options import AttentionUnit


@dataclass(frozen=True)
class Place:
    """One layer that stands for all that are built alike.

    Attributes:
        model: whole.
        open: the same without fused kernels.
        inputs: a small batch.
        trace: of it.
        layers: the list that the layer is in.
        stack: that list as part of a family, without sublayers.
        indices: of all layers that are built alike.
        attention_unit: what is to be a unit where query heads share keys and values.
    """

    model: nn.Module
    open: nn.Module
    inputs: Inputs
    trace: Trace
    layers: Layers
    stack: Stack
    indices: list[int]
    attention_unit: AttentionUnit = "group"

    @property
    def layer(self) -> str:
        """Path of the layer."""
        return self.layers.layer(self.indices[0])

    def inside(self, path: str) -> str:
        """A path inside the layer, of one from the model's root."""
        return path.removeprefix(self.layer).removeprefix(".")
