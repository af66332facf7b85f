"""Option values: frozen, keyword-only, validated where they are made. Presets are literals of `Method`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from faster_pruner.errors import BudgetError, OptionError

SelectionName = Literal["fisher", "second-order"]
RecoveryName = Literal["none", "scale", "weights"]
SolverName = Literal["auto", "cg", "jacobi-cg", "block-cg", "cholesky", "lsmr"]
TeacherName = Literal["dense", "sqrt"]
PrecisionName = Literal["auto", "float32", "bfloat16"]

SELECTIONS: tuple[SelectionName, ...] = ("fisher", "second-order")
RECOVERIES: tuple[RecoveryName, ...] = ("none", "scale", "weights")
SOLVERS: tuple[SolverName, ...] = ("auto", "cg", "jacobi-cg", "block-cg", "cholesky", "lsmr")

AllocationName = Literal["free", "bucketed", "uniform", "stock"]
ALLOCATIONS: tuple[AllocationName, ...] = ("free", "bucketed", "uniform", "stock")
PRECISIONS: tuple[PrecisionName, ...] = ("auto", "float32", "bfloat16")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise OptionError when `value` is not allowed."""
    if value not in allowed:
        raise OptionError(f"{what} {value!r} does not exist; choose one of: {', '.join(allowed)}")


def _at_least(what: str, value: float, least: float) -> None:
    """Raise OptionError when `value` is below `least`."""
    if not value >= least:
        raise OptionError(f"{what} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """A solver of the recovery stage by name, with its hyper-parameters (see `linalg`).

    Attributes:
        name: one of `SOLVERS`; `auto` lets a measured rule pick one by the size of the system.
        ridge: relative ridge, a share of the mean diagonal.
        tolerance: relative residual at which an iterative solver stops.
        max_iterations: limit of an iterative solver; None for its default.
        damp: LSMR's absolute damping.
    """

    name: SolverName
    ridge: float = 0.0
    tolerance: float = 1e-6
    max_iterations: int | None = None
    damp: float = 0.0

    def __post_init__(self) -> None:
        _one_of("solver", self.name, SOLVERS)
        _at_least("ridge", self.ridge, 0.0)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to choose units and how to recover, all switches of a preset.

    Attributes:
        name: the preset this started from.
        selection: first-order Fisher search, or second-order elimination with a knapsack.
        labels: take gradients of the loss of the given labels; otherwise the true Fisher of the model's own
            predictions.
        fisher_batch: examples whose mean gradient counts as one (32 in Kwon et al.'s code, 1 is the true per-
            example Fisher).
        rearrange: swap units inside each layer after a Fisher search.
        recovery: nothing, one scale per unit (mask tuning), or new output projections.
        teacher: whose outputs the recovery aims at: the dense model, or one pruned to the square root of the
            budget (Kwon et al.).
        solver: of the recovery.
        scale_limit: stop mask tuning at the first sublayer with a scale beyond this (10 in the reference); None
            never stops.
        skip_first_attention: leave the first layer's attention out of the recovery, as the reference does.
        only_read_tokens: recover on the tokens that the loss reads, in every sublayer; the reference does so in
            the last FFN only. Always so when the teacher is the dense model: its targets are kept for these alone.
        damping: share of the mean diagonal added to the input second moment in second-order selection.
        moment_tokens: second moments for the selection and the alignment are taken from the first rows that together
            hold this many tokens per neuron of the widest sublayer, and the backward pass is run for these only; None
            for all rows. First-order selection always takes all rows.
        elimination_block: most neurons removed per elimination step.
        align: before each sublayer is fitted, re-aim its producers: a linear map from the inputs that they get now to
            those that they got in the dense model is folded into their weights. Goes with recovery of weights.
        align_ridge: relative ridge of that map towards the identity.
        rounds: prune in this many steps of equal ratio when the budget is below `rounds_below`, with new statistics
            of the half-pruned, recovered model before each step.
        rounds_below: see `rounds`.
        round_to: numbers of neurons are a multiple of this, or all of them, when the budget does not say otherwise.
    """

    name: str
    selection: SelectionName
    labels: bool
    fisher_batch: int = 1
    rearrange: bool = False
    recovery: RecoveryName
    teacher: TeacherName = "dense"
    solver: SolverOptions
    scale_limit: float | None = None
    skip_first_attention: bool = False
    only_read_tokens: bool = True
    damping: float = 1e-2
    moment_tokens: int | None = None
    elimination_block: int = 16
    align: bool = False
    align_ridge: float = 1e-2
    rounds: int = 1
    rounds_below: float = 0.25
    round_to: int = 1

    def __post_init__(self) -> None:
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("recovery", self.recovery, RECOVERIES)
        _at_least("fisher_batch", self.fisher_batch, 1)
        _at_least("elimination_block", self.elimination_block, 1)
        _at_least("rounds", self.rounds, 1)
        _at_least("moment_tokens", 1 if self.moment_tokens is None else self.moment_tokens, 1)

    @property
    def aligns(self) -> bool:
        """Whether producers are re-aimed: only towards the dense model, and only when weights are recovered."""
        return self.align and self.recovery == "weights" and self.teacher == "dense"

    def schedule(self, share: float) -> list[float]:
        """Budgets of the rounds, the last one `share`."""
        rounds = self.rounds if share < self.rounds_below else 1
        return [share ** (step / rounds) for step in range(1, rounds)] + [share]


_KWON = Method(
    name="kwon2022",
    selection="fisher",
    labels=True,
    fisher_batch=32,
    rearrange=True,
    recovery="scale",
    teacher="sqrt",
    solver=SolverOptions(name="lsmr", damp=1.0),
    scale_limit=10.0,
    skip_first_attention=True,
    only_read_tokens=False,
)

PRESETS: dict[str, Method] = {
    "default": Method(
        name="default",
        selection="second-order",
        labels=False,
        recovery="weights",
        solver=SolverOptions(name="auto", ridge=1e-2),
        align=True,
        moment_tokens=8,
        rounds=2,
        round_to=8,
    ),
    "kwon2022": _KWON,
    # The paper gives neither its tolerance, its damping nor its iteration limit: these are our choice
    # (docs/decisions.md).
    "li2024": replace(
        _KWON, name="li2024", solver=SolverOptions(name="cg", ridge=1e-3, tolerance=1e-6, max_iterations=1000)
    ),
}


def preset(name: str) -> Method:
    """A preset by name. Raises OptionError."""
    _one_of("preset", name, tuple(PRESETS))
    return PRESETS[name]


# The solver that goes with a recovery when a preset's recovery is replaced by another one.
_SOLVER_OF_RECOVERY: dict[str, SolverOptions] = {
    "none": SolverOptions(name="auto"),
    "scale": SolverOptions(name="auto", ridge=1e-3),
    "weights": SolverOptions(name="auto", ridge=1e-2),
}


def customise(
    method: Method,
    *,
    selection: str | None = None,
    recovery: str | None = None,
    labels: bool | None = None,
    solver: str | None = None,
    ridge: float | None = None,
) -> Method:
    """A preset with some of its switches replaced; None leaves a switch alone. Raises OptionError."""
    changes: dict[str, Any] = {}
    if selection is not None:
        changes["selection"] = selection
        if selection == "fisher":
            # the published search, which leaves any number of neurons; multiples need the knapsack
            changes["round_to"] = 1
    if labels is not None:
        changes["labels"] = labels
    chosen = method.solver
    if recovery is not None and recovery != method.recovery:
        _one_of("recovery", recovery, RECOVERIES)
        changes["recovery"] = recovery
        chosen = _SOLVER_OF_RECOVERY[recovery]
    if solver is not None:
        _one_of("solver", solver, SOLVERS)
        chosen = replace(chosen, name=cast(SolverName, solver))
    if ridge is not None:
        chosen = replace(chosen, ridge=ridge)
    return replace(method, solver=chosen, **changes)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The calibration set and how it is run.

    Attributes:
        rows: training rows drawn without replacement.
        seed: of the draw and of everything else that is random.
        max_length: longest row in tokens; longer ones are truncated.
        tokens_per_batch: padded tokens per batch.
        precision: of the matrix products in forwards and backwards; `auto` takes bfloat16 where the hardware has it.
        memory_limit: most bytes of hidden states kept in memory, the others go to temporary files; None for half of
            the memory that is free.
        keep: folder to keep the statistics in, for later cuts to other budgets (`cut`); None keeps nothing.
    """

    rows: int = 2048
    seed: int = 0
    max_length: int = 128
    tokens_per_batch: int = 4096
    precision: PrecisionName = "auto"
    memory_limit: int | None = None
    keep: str | None = None

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _at_least("memory limit", 0 if self.memory_limit is None else self.memory_limit, 0)
        _at_least("calibration rows", self.rows, 1)
        _at_least("max length", self.max_length, 3)
        _at_least("tokens per batch", self.tokens_per_batch, 1)
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned model may cost, and which sizes its sublayers may have.

    Attributes:
        macs: share of the encoder's MACs to keep, inside (0, 1).
        allocation: `free` lets every sublayer have its own size; `bucketed` takes sizes from a small set (quarters of
            the heads, eighths of the neurons); `uniform` gives all layers the same size; `stock` does so, too, and
            removes only what the stock config can express.
        round_to: numbers of neurons are a multiple of this, or all of them; "auto" measures which multiple the device
            likes; None leaves it to the method.
    """

    macs: float
    allocation: AllocationName = "free"
    round_to: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        _one_of("allocation", self.allocation, ALLOCATIONS)
        if isinstance(self.round_to, str):
            _one_of("--round-to", self.round_to, ("auto", "a number"))
        elif self.round_to is not None:
            _at_least("--round-to", self.round_to, 1)
        if not 0.0 < self.macs < 1.0:
            raise BudgetError(
                f"--macs is {self.macs:g}; it is the share of the encoder's MACs to keep, between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Everything that decides what a pruning run computes."""

    budget: Budget
    method: Method = field(default_factory=lambda: PRESETS["default"])
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
