"""Frozen results, and how they become JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Of a histogram of lengths.
_MOST_BINS = 32


def strict_json(value: Any) -> str:
    """JSON that every reader takes: what is NaN or infinite becomes null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class SublayerResult:
    """What happened to one sublayer.

    Attributes:
        name: `layers.<i>.<kind>`.
        units_before: units before pruning.
        units: units kept.
        unit: what one unit is called: "head", "neuron".
        residual_before: relative root-mean-square error against the target after slicing, before recovery; None
            without recovery.
        residual_after: the same after recovery.
        drift_before: relative error of the producers' inputs against the dense model's; None without alignment.
        drift_after: the same, of what the aligned producers make of them.
        solver: name of the solver that gave the result.
        status: status of its solve; `skipped`, `stopped` or `not reached` where recovery did not touch the sublayer.
        iterations: iterations of the solve.
        solve_residual: relative residual of the system that was solved, the largest over its right-hand sides; None
            where nothing was solved.
        note: advice or the reason for a fallback; empty when all went well.
    """

    name: str
    units_before: int
    units: int
    unit: str = "unit"
    residual_before: float | None = None
    residual_after: float | None = None
    drift_before: float | None = None
    drift_after: float | None = None
    solver: str = ""
    status: str = ""
    iterations: int = 0
    solve_residual: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one model on one split.

    Attributes:
        split: name of the split.
        rows: number of rows.
        metrics: by name, in percent for accuracies, F1 and correlations (times 100), natural units for `loss`.
        primary: the metric that the task is judged by.
    """

    split: str
    rows: int
    metrics: dict[str, float]
    primary: str

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary]


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """95 % bootstrap intervals, low and high.

    Attributes:
        metric: which metric.
        before: of the dense model.
        after: of the pruned model.
        change: of after - before on the same rows.
    """

    metric: str
    before: tuple[float, float]
    after: tuple[float, float]
    change: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured time of one forward at one shape, dense and pruned runs interleaved.

    Attributes:
        batch: rows.
        sequence: tokens per row.
        dense_ms: median of the dense model.
        pruned_ms: median of the pruned model.
        speed_up: median over the pairs of dense time / pruned time.
    """

    batch: int
    sequence: int
    dense_ms: float
    pruned_ms: float
    speed_up: float


@dataclass(frozen=True, kw_only=True)
class ExportStep:
    """One step on the way to another runtime.

    Attributes:
        name: `PyTorch`, `ONNX`, `ONNX int8`, `OpenVINO`.
        file: what was written; None for PyTorch.
        megabytes: size of the weights there.
        parity: largest difference of a returned value from PyTorch's; None where it is not promised.
        note: what is worth knowing about the file; mostly empty.
        metrics: on the first evaluation split; empty without data.
        ms: median latency per (batch, sequence).
        speed_up: PyTorch's median / this one's, per (batch, sequence).
    """

    name: str
    file: Path | None
    megabytes: float
    parity: float | None = None
    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    ms: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    speed_up: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; shapes are written "32x128"."""
        by_shape = {
            name: {f"{batch}x{sequence}": value for (batch, sequence), value in found.items()}
            for name, found in (("ms", self.ms), ("speed_up", self.speed_up))
        }
        return _finite({**asdict(self), **by_shape, "file": None if self.file is None else str(self.file)})


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One model in one runtime at one shape.

    Attributes:
        model: its name.
        runtime: one of `runtimes.RUNTIMES`.
        batch: rows.
        sequence: tokens per row.
        ms: median.
        low: 10th percentile, ms.
        high: 90th percentile, ms.
        speed_up: median over the turns of the first model's time in the same runtime / this time.
        ideal: what the multiply-accumulates would give; infinite where none is left.
        peak_mb: peak memory of one forward above the weights; None where it cannot be measured.
        launch_bound: arithmetic is a small part of the time: fewer multiply-accumulates cannot help much.
    """

    model: str
    runtime: str
    batch: int
    sequence: int
    ms: float
    low: float
    high: float
    speed_up: float
    ideal: float
    peak_mb: float | None
    launch_bound: bool


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """Size of one model.

    Attributes:
        macs: MACs of the encoder for one row of the calibration set's mean length.
        encoder_parameters: parameters of the prunable sublayers.
        parameters: all parameters.
        bytes: size of the weights file; 0 before it is saved.
    """

    macs: float
    encoder_parameters: int
    parameters: int
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class LimitResult:
    """One limit of the budget.

    Attributes:
        cost: its name.
        dense: what the dense model costs, parts that cannot be pruned included.
        asked: the most that was allowed.
        pruned: what the pruned model costs; of a time, what the table predicts.
        measured: what it was measured to take; None for what is counted.
        where: shape and runtime that it was measured at.
    """

    cost: str
    dense: float
    asked: float
    pruned: float
    measured: float | None = None
    where: str = ""

    @property
    def spent(self) -> float:
        """What the pruned model takes: as measured, or as counted."""
        return self.pruned if self.measured is None else self.measured


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One size that was tried on the way to the smallest model within a drop.

    Attributes:
        macs: share of the encoder's MACs.
        metric: the one that judges, on training rows that nothing is calibrated on.
        before: of the dense model.
        after: of the pruned one.
        low: of the 95 % interval of the change (paired bootstrap of the rows).
        high: of it.
        within: whether the whole interval is within the drop.
    """

    macs: float
    metric: str
    before: float
    after: float
    low: float
    high: float
    within: bool


@dataclass(frozen=True, kw_only=True)
class DistillationResult:
    """What training towards the dense model did.

    Attributes:
        rows: that it was trained on.
        held_out: rows that judged.
        planned: steps of the whole course.
        steps: that were taken; those after the best one were taken back.
        best_step: whose state was kept; 0 where none was better than what the recovery had left.
        before: mean divergence from the dense model on the held-out rows, before the first step.
        after: the same of what was kept.
        history: steps and the held-out divergence after them.
        status: "finished", "stopped: ..." and why.
        note: why what was done so far could not be kept for a run that goes on from there; empty when it could.
        fb: what it cost, in forwards and backwards of the dense model over the calibration set, by arithmetic.
        recovered: metrics before it, by split.
    """

    rows: int
    held_out: int
    planned: int
    steps: int
    best_step: int
    before: float
    after: float
    history: list[tuple[int, float]]
    status: str
    note: str = ""
    fb: float = 0.0
    recovered: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether anything of it was kept."""
        return self.best_step > 0


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the rows of a calibration set are, in real tokens.

    Attributes:
        edges: of the bins: bin i holds the rows of at least `edges[i]` and less than `edges[i + 1]` tokens.
        rows: in each bin.
        shortest: of all rows.
        median: of all rows.
        longest: of all rows.
        truncated: rows that were longer than a row may be, and were cut; None where nothing says so.
    """

    edges: list[int]
    rows: list[int]
    shortest: int
    median: float
    longest: int
    truncated: int | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], *, truncated: int | None = None) -> Lengths | None:
        """Of so many tokens per row; None without a row."""
        if not lengths:
            return None
        ordered = sorted(lengths)
        shortest, longest = ordered[0], ordered[-1]
        width = -(-(longest - shortest + 1) // _MOST_BINS)
        edges = list(range(shortest, longest + width + 1, width))
        rows = [0] * (len(edges) - 1)
        for length in ordered:
            rows[(length - shortest) // width] += 1
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        return cls(edges=edges, rows=rows, shortest=shortest, median=middle, longest=longest, truncated=truncated)


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """Everything a run has to say; written to `result.json` beside the checkpoint.

    Attributes:
        model: a hub id, or the name of its folder: a report does not tell where things lie on a machine.
        task: a task by name, or what the objective is for.
        preset: the method's name.
        options: budget, method and calibration.
        mean_length: real tokens per row of the calibration set (of the first stack).
        macs_asked: share of the encoder's MACs that was asked for; None where the budget limits something else.
        macs_kept: share that is left.
        dense: sizes before.
        pruned: sizes after.
        sublayers: in the order in which the model runs them.
        seconds: by stage.
        processes: the same of each process until the model was recovered, and what it waited; empty for one process.
        limits: of the budget, as they are met.
        probes: sizes that were tried, where the smallest model within a drop was asked for.
        before: metrics of the dense model, by split.
        after: metrics of the pruned model, by split.
        confidence: of the primary metric, by split.
        latency: measured, by shape.
        calibration_hash: of the rows.
        calibration_rows: rows that it was calibrated on: those asked for, as far as there were so many.
        precision: of the passes, as it was chosen; empty where that is not known.
        lengths: of those rows; None where they are not known.
        opens_plain: whether plain transformers opens the checkpoint.
        opener: the class that opens it: of sentence-transformers or an auto class; empty where that is not known.
        verified: what was verified, in words; empty for a result that was not saved.
        distillation: what it did; None without.
        environment: versions and hardware.
        warnings: sentences.
        resumed: what was taken over from an interrupted run; `seconds` are those of this one. Empty for a whole run.
    """

    model: str
    task: str
    preset: str
    options: dict[str, Any]
    mean_length: float
    macs_asked: float | None
    macs_kept: float
    dense: SizeResult
    pruned: SizeResult
    sublayers: list[SublayerResult]
    seconds: dict[str, float]
    processes: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    limits: list[LimitResult] = field(default_factory=list[LimitResult])
    probes: list[Probe] = field(default_factory=list[Probe])
    before: dict[str, Evaluation] = field(default_factory=dict)
    after: dict[str, Evaluation] = field(default_factory=dict)
    confidence: dict[str, Confidence] = field(default_factory=dict)
    latency: list[Latency] = field(default_factory=list)
    calibration_hash: str = ""
    calibration_rows: int = 0
    precision: str = ""
    lengths: Lengths | None = None
    opens_plain: bool = False
    opener: str = ""
    verified: str = ""
    distillation: DistillationResult | None = None
    environment: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list[str])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; what is NaN or infinite is None."""
        return _finite(asdict(self))
