"""Multiply-accumulates (MACs) of the prunable part of an encoder, for one row of `length` tokens.

Counted: the matrix products of every sublayer, i.e. its producers, its output projection, and for attention the
    two products
with the attention matrix (Kwon et al. 2022, section 3). Not counted: embeddings, biases, normalisation, activations,
softmax, and
the head. Twice these numbers is what torch's FlopCounterMode counts for the same modules.
"""

from __future__ import annotations

from collections.abc import Iterable

from faster_pruner.families import Sublayer


def unit_macs(sublayer: Sublayer, length: float) -> float:
    """MACs that one unit of `sublayer` costs for one row of `length` tokens."""
    projections = (len(sublayer.spec.producers) + 1) * sublayer.width * sublayer.unit_size
    attention = 2 * length * sublayer.unit_size if sublayer.kind == "attention" else 0.0
    return length * (projections + attention)


def unit_parameters(sublayer: Sublayer) -> int:
    """Parameters of one unit: its producer rows with their biases, and its columns of the output projection."""
    producers = len(sublayer.spec.producers)
    return sublayer.unit_size * (producers * (sublayer.width + 1) + sublayer.width)


def encoder_macs(sublayers: Iterable[Sublayer], length: float) -> float:
    """MACs of all sublayers at their present sizes, for one row of `length` tokens."""
    return sum(sublayer.units * unit_macs(sublayer, length) for sublayer in sublayers)


def encoder_parameters(sublayers: Iterable[Sublayer]) -> int:
    """Parameters of all sublayers at their present sizes, output biases left out."""
    return sum(sublayer.units * unit_parameters(sublayer) for sublayer in sublayers)
