"""The values that the method passes on from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.method.calibration_set import CalibrationSet, row_lengths
from faster_pruner.method.statistics import Statistics
from faster_pruner.model.network import Network
from faster_pruner.model.reading import Reading
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.objective import Objective
from faster_pruner.options import Method, SecondOrder
from faster_pruner.results import SublayerResult
from faster_pruner.selection.elimination import Curve


@dataclass(frozen=True)
class Subject:
    """A model to prune, and what it is for.

    Attributes:
        model: in float32.
        sublayers: all of them at their present sizes.
        objective: what it is for.
        dtype: that its checkpoint is stored in.
        left: by path or name, parts of the model that are no sublayer and stay whole, and why.
    """

    model: nn.Module
    sublayers: list[Sublayer]
    objective: Objective
    dtype: torch.dtype = torch.float32
    left: dict[str, str] = field(default_factory=dict[str, str])

    def moment_tokens(self, method: Method) -> int | None:
        """How many tokens second moments are taken from; None for all."""
        wanted = method.selection.moment_tokens if isinstance(method.selection, SecondOrder) else None
        columns = max(s.columns for s in self.sublayers)
        return None if wanted is None else wanted * self.objective.moment_factor * columns

    def recovering(self, method: Method, share: float, *, last: bool) -> Method:
        """As `Method.recovering`, of a budget that leaves this share, by what is worth a descent for the objective."""
        return method.recovering(share / self.objective.descent_factor, last=last)


@dataclass(frozen=True)
class Calibrated:
    """A dense model with the statistics of its calibration set: everything that a cut needs.

    Attributes:
        subject: the dense model; never changed.
        sublayers: those that the objective reads, in the order in which the model runs them.
        whole: names of the other sublayers, which stay as they are, and why.
        data: the calibration set.
        reading: which tokens the objective reads.
        statistics: of the one pass.
        curves: loss curves that have been computed from them, by sublayer and what they depend on; further budgets find
            them here.
    """

    subject: Subject
    sublayers: list[Sublayer]
    whole: dict[str, str]
    data: CalibrationSet
    reading: Reading
    statistics: Statistics
    curves: dict[tuple[Any, ...], Curve] = field(default_factory=dict[tuple[Any, ...], Curve])

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return self.subject.model

    @property
    def network(self) -> Network:
        """The dense model with the sublayers that take part."""
        return Network(self.subject.model, self.sublayers)

    @property
    def row_lengths(self) -> list[int]:
        """Real tokens of each row of the calibration set, of the first stack."""
        stack = self.sublayers[0].stack
        if stack.name in self.reading.tokens:
            return [self.reading.tokens[stack.name]] * self.data.rows
        return [length for batch in self.data.batches for length in row_lengths(batch, stack.mask)]


@dataclass(frozen=True)
class Pruned:
    """A pruned, recovered model and what happened to each of its sublayers.

    Attributes:
        model: of the dense model's class, with smaller matrices.
        sublayers: all of them at their new sizes, in the order of `Subject.sublayers`.
        results: of those that took part, in the order in which the model runs them.
        masks: of those, by name, [U] bool: which units of the dense model are kept.
    """

    model: nn.Module
    sublayers: list[Sublayer]
    results: list[SublayerResult]
    masks: dict[str, Tensor]
