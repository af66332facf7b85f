"""What `plan` foresees of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from faster_pruner.results import LimitResult, SizeResult


@dataclass(frozen=True, kw_only=True)
class PlannedSublayer:
    """One sublayer where every one is left the same share of its units.

    Attributes:
        name: `layers.<i>.<kind>`.
        unit: what one unit is called.
        units_before: units of the dense model.
        units: that would be left.
    """

    name: str
    unit: str
    units_before: int
    units: int


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What a run of `prune` will take and give, as far as that can be told before it.

    Attributes:
        model: a hub id, or the name of its folder.
        task: what it is pruned for.
        preset: the method's name.
        options: budget, method and calibration.
        sublayers: sizes that the budget means without any data: every sublayer is left the same share. A run spends the
            same budget where it is worth most.
        dense: sizes of the model as it is.
        pruned: sizes of what will be left.
        limits: of the budget, as these sizes meet them.
        seconds: of the run, by stage, from the first row of the model's folder to the result on disk.
        memory: bytes that the run's process holds at its most, on the device.
        spilled: bytes of hidden states that go to temporary files on the way.
        calibration_rows: how many there are.
        calibration_tokens: real tokens in them, about.
        evaluation_rows: by split.
        took: seconds that the plan itself took.
        environment: versions and hardware.
        notes: what could not be foreseen, in sentences.
    """

    model: str
    task: str
    preset: str
    options: dict[str, Any]
    sublayers: list[PlannedSublayer]
    dense: SizeResult
    pruned: SizeResult
    limits: list[LimitResult]
    seconds: dict[str, float]
    memory: int
    spilled: int
    calibration_rows: int
    calibration_tokens: int
    evaluation_rows: dict[str, int]
    took: float
    environment: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"total": self.total}
