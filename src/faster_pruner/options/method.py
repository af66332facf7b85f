"""How units are chosen and how the rest is recovered. Presets are literals of `Method`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from faster_pruner.checks import at_least, made_of, one_of, shown, whole_number, yes_or_no
from faster_pruner.errors import OptionError

SelectionName = Literal["fisher", "second-order"]
RecoveryName = Literal["none", "scale", "weights"]
SolverName = Literal["auto", "cg", "jacobi-cg", "block-cg", "cholesky", "lsmr"]
TeacherName = Literal["dense", "sqrt"]
AllocationName = Literal["free", "bucketed", "uniform", "stock"]
AttentionUnit = Literal["group", "head"]
RuntimeName = Literal["torch", "compile", "onnx", "onnx-int8"]

SELECTIONS: tuple[SelectionName, ...] = ("fisher", "second-order")
RECOVERIES: tuple[RecoveryName, ...] = ("none", "scale", "weights")
SOLVERS: tuple[SolverName, ...] = ("auto", "cg", "jacobi-cg", "block-cg", "cholesky", "lsmr")
TEACHERS: tuple[TeacherName, ...] = ("dense", "sqrt")
ALLOCATIONS: tuple[AllocationName, ...] = ("free", "bucketed", "uniform", "stock")
ATTENTION_UNITS: tuple[AttentionUnit, ...] = ("group", "head")
# What runs a model: torch eagerly, torch.compile, onnxruntime, and that with int8 weights.
RUNTIMES: tuple[RuntimeName, ...] = ("torch", "compile", "onnx", "onnx-int8")


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
        one_of("solver", self.name, SOLVERS)
        for what in ("ridge", "tolerance", "damp"):
            at_least(what, getattr(self, what), 0.0)
        whole_number("max_iterations", self.max_iterations, 1, optional=True)


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """First-order selection: the Fisher information of the mask (Kwon et al. 2022, sections 4.1 and 4.2).

    Attributes:
        batch: examples whose mean gradient counts as one (32 in Kwon et al.'s code; 1 is the true Fisher per example).
        rearrange: swap units inside each sublayer after the search.
    """

    name: SelectionName = field(default="fisher", init=False)
    batch: int = 1
    rearrange: bool = False

    def __post_init__(self) -> None:
        whole_number("examples per gradient", self.batch, 1)
        yes_or_no("rearrange", self.rearrange)


@dataclass(frozen=True, kw_only=True)
class SecondOrder:
    """Second-order selection: elimination with the rest compensating, then a knapsack over the curves.

    Attributes:
        damping: share of the mean diagonal added to the input second moment.
        moment_tokens: second moments for the selection and the alignment are taken from the first rows that together
            hold this many tokens per unit column of the widest sublayer (some objectives need a multiple of them,
            `Objective.moment_factor`), and the backward pass is run for these only; None for all rows.
        block: most units removed per elimination step, where units are single columns.
        curvature: weigh what removing units changes of a sublayer's output by how the loss reacts to it. Without it
            every output counts alike, in every sublayer (G = I: layer-wise reconstruction, as in OSSCAR); for
            comparisons.
    """

    name: SelectionName = field(default="second-order", init=False)
    damping: float = 1e-2
    moment_tokens: int | None = None
    block: int = 16
    curvature: bool = True

    def __post_init__(self) -> None:
        at_least("damping", self.damping, 0.0)
        whole_number("moment tokens", self.moment_tokens, 1, optional=True)
        whole_number("elimination block", self.block, 1)
        yes_or_no("curvature", self.curvature)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Recovery by one scale per unit (mask tuning, Kwon et al. 2022, section 4.3).

    Attributes:
        solver: of its normal equations.
        teacher: whose branches it aims at: the dense model, or one pruned to the square root of the budget.
        limit: stop at the first sublayer with a scale beyond this (10 in the reference); None never stops.
        skip_first: leave the first sublayer out, as the reference does.
        read_tokens_only: fit on the tokens that the objective reads, in every sublayer; the reference does so in the
            last one only. Always so when the teacher is the dense model: its targets are kept for these alone.
        whole_targets: make the teacher's target of a sublayer that does not mix tokens of all the units that it has
            there, also of those that it leaves out of its own forward, as the reference's code does (the hook that
            records a feed-forward layer's neurons runs before the one that masks them).
    """

    name: RecoveryName = field(default="scale", init=False)
    solver: SolverOptions
    teacher: TeacherName = "dense"
    limit: float | None = None
    skip_first: bool = False
    read_tokens_only: bool = True
    whole_targets: bool = False

    def __post_init__(self) -> None:
        made_of("solver", self.solver, (SolverOptions,))
        one_of("teacher", self.teacher, TEACHERS)
        at_least("scale limit", self.limit, 0.0, optional=True)
        for what in ("skip_first", "read_tokens_only", "whole_targets"):
            yes_or_no(what, getattr(self, what))


@dataclass(frozen=True, kw_only=True)
class Descent:
    """All matrices of a sublayer are fitted to its target by Adam, between two least-squares fits of its projection.

    Attributes:
        epochs: over the calibration set.
        rate: of learning at the start, as a share of the root mean square of each matrix; it falls to zero.
        tokens_per_step: padded tokens of which a step takes the gradient, about.
        below: share of the dense model below which a budget is strong enough for it.
    """

    epochs: int = 4
    rate: float = 0.02
    tokens_per_step: int = 512
    below: float = 0.25

    def __post_init__(self) -> None:
        whole_number("epochs of the descent", self.epochs, 1)
        at_least("rate of the descent", self.rate, 0.0)
        whole_number("tokens per step of the descent", self.tokens_per_step, 1)
        at_least("share of a budget for a descent", self.below, 0.0)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Recovery by new output projections, aimed at the dense model.

    Attributes:
        solver: of the least-squares problems.
        align: before each sublayer is fitted, re-aim its producers: a linear map from the inputs that they get now to
            those that they got in the dense model is folded into their weights, with this relative ridge towards the
            identity. None leaves the producers alone.
        descent: at strong budgets; None for none.
    """

    name: RecoveryName = field(default="weights", init=False)
    solver: SolverOptions
    align: float | None = None
    descent: Descent | None = None

    def __post_init__(self) -> None:
        made_of("solver", self.solver, (SolverOptions,))
        at_least("alignment ridge", self.align, 0.0, optional=True)
        made_of("descent", self.descent, (Descent, type(None)))

    def at(self, share: float) -> Weights:
        """The same without a descent where a budget leaves so much of the dense model that it is not worth it."""
        mild = self.descent is not None and share >= self.descent.below
        return replace(self, descent=None) if mild else self


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Prune in several steps of equal ratio when the budget is strong, with new statistics before each step.

    Attributes:
        count: of steps.
        below: share of the dense model below which a budget is strong.
    """

    count: int = 1
    below: float = 0.25

    def __post_init__(self) -> None:
        whole_number("rounds", self.count, 1)
        at_least("share of a strong budget", self.below, 0.0)

    def exponents(self, share: float) -> list[float]:
        """Powers of the budget's share that the steps go to; the last one is 1."""
        count = self.count if share < self.below else 1
        return [step / count for step in range(1, count)] + [1.0]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to choose units and how to recover: all switches of a preset.

    Attributes:
        name: the preset that this started from.
        labels: take gradients of the loss of the given labels; otherwise the true Fisher of the model's own
            predictions.
        selection: how units are chosen.
        recovery: how what is left is repaired; None leaves it as it is.
        rounds: for strong budgets.
        round_to: numbers of neurons are a multiple of this, or all of them, when the budget does not say otherwise.
        attention_unit: where query heads share keys and values, what is removed: a "group" with all its query heads,
            or "head": of every group the same number of query heads, which leaves the cache as it is.
    """

    name: str
    labels: bool
    selection: Fisher | SecondOrder
    recovery: Scale | Weights | None
    rounds: Rounds = field(default_factory=Rounds)
    round_to: int = 1
    attention_unit: AttentionUnit = "group"

    def __post_init__(self) -> None:
        made_of("name of the method", self.name, (str,))
        one_of("attention unit", self.attention_unit, ATTENTION_UNITS)
        yes_or_no("labels", self.labels)
        made_of("selection", self.selection, (Fisher, SecondOrder))
        made_of("recovery", self.recovery, (Scale, Weights, type(None)))
        made_of("rounds", self.rounds, (Rounds,))
        whole_number("round_to", self.round_to, 1)

    @property
    def align(self) -> float | None:
        """Relative ridge of the alignment, None without."""
        return self.recovery.align if isinstance(self.recovery, Weights) else None

    def recovering(self, share: float, *, last: bool) -> Method:
        """The same for the recovery of one of its rounds, of a budget that leaves this share of the dense model."""
        if not isinstance(self.recovery, Weights):
            return self
        return replace(self, recovery=self.recovery.at(share) if last else replace(self.recovery, descent=None))

    @property
    def aims_at_dense(self) -> bool:
        """Whether the recovery aims at the dense model."""
        return isinstance(self.recovery, Weights) or (
            isinstance(self.recovery, Scale) and self.recovery.teacher == "dense"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Method:
        """What `to_dict` gave. Raises OptionError on anything else."""
        try:
            parts: dict[str, Any] = {**raw, "rounds": Rounds(**raw["rounds"])}
            selection: dict[str, Any] = dict(raw["selection"])
            parts["selection"] = {"fisher": Fisher, "second-order": SecondOrder}[selection.pop("name")](**selection)
            if raw["recovery"] is not None:
                recovery: dict[str, Any] = {**raw["recovery"], "solver": SolverOptions(**raw["recovery"]["solver"])}
                if recovery.get("descent") is not None:
                    recovery["descent"] = Descent(**recovery["descent"])
                parts["recovery"] = {"scale": Scale, "weights": Weights}[recovery.pop("name")](**recovery)
            return cls(**parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"this describes no method ({shown(error)}): {shown(raw)}") from error


_KWON_RECOVERY = Scale(
    solver=SolverOptions(name="lsmr", damp=1.0), teacher="sqrt", limit=10.0, skip_first=True, read_tokens_only=False
)
_KWON = Method(name="kwon2022", labels=True, selection=Fisher(batch=32, rearrange=True), recovery=_KWON_RECOVERY)
# The paper gives neither its tolerance, its damping nor its iteration limit: these are our choice (docs/decisions.md).
_LI_SOLVER = SolverOptions(name="cg", ridge=1e-3, tolerance=1e-6, max_iterations=1000)

PRESETS: dict[str, Method] = {
    "default": Method(
        name="default",
        labels=False,
        selection=SecondOrder(moment_tokens=8),
        recovery=Weights(solver=SolverOptions(name="auto", ridge=1e-2), align=1e-2, descent=Descent()),
        rounds=Rounds(count=2),
        round_to=8,
    ),
    "kwon2022": _KWON,
    "li2024": replace(_KWON, name="li2024", recovery=replace(_KWON_RECOVERY, solver=_LI_SOLVER)),
}


def preset(name: str) -> Method:
    """A preset by name.

    Args:
        name: default, kwon2022 or li2024.

    Raises:
        OptionError: there is no such preset.
    """
    one_of("preset", name, tuple(PRESETS))
    return PRESETS[name]


def as_method(given: Method | str) -> Method:
    """A preset by name; a method as it is. Raises OptionError."""
    made_of("method", given, (Method, str))
    return preset(given) if isinstance(given, str) else given


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Changes to a preset; None leaves a switch alone.

    Attributes:
        selection: one of `SELECTIONS`.
        recovery: one of `RECOVERIES`.
        labels: see `Method`.
        solver: of the recovery, one of `SOLVERS`.
        ridge: of that solver.
        descent: whether the recovery fits all matrices by descent, at whatever budget.
        attention_unit: see `Method`.
    """

    selection: str | None = None
    recovery: str | None = None
    labels: bool | None = None
    solver: str | None = None
    ridge: float | None = None
    descent: bool | None = None
    attention_unit: str | None = None

    def __post_init__(self) -> None:
        if self.selection is not None:
            one_of("selection", self.selection, SELECTIONS)
        if self.recovery is not None:
            one_of("recovery", self.recovery, RECOVERIES)
        if self.solver is not None:
            one_of("solver", self.solver, SOLVERS)
        if self.labels is not None:
            yes_or_no("labels", self.labels)
        if self.descent is not None:
            yes_or_no("descent", self.descent)
        at_least("ridge", self.ridge, 0.0, optional=True)


def customise(method: Method, switches: Switches) -> Method:
    """A preset with some of its switches replaced. Raises OptionError."""
    if switches.selection is not None and switches.selection != method.selection.name:
        if switches.selection == "fisher":
            # the published search, which leaves any number of neurons; multiples need the knapsack
            method = replace(method, selection=Fisher(), round_to=1)
        else:
            method = replace(method, selection=SecondOrder())
    given = {name: getattr(switches, name) for name in ("labels", "attention_unit")}
    method = replace(method, **{name: value for name, value in given.items() if value is not None})
    own = "none" if method.recovery is None else method.recovery.name
    if switches.recovery is not None and switches.recovery != own:
        method = replace(method, recovery=_RECOVERY_BY_NAME[switches.recovery])
    if method.recovery is None:
        return method
    solver = method.recovery.solver
    if switches.solver is not None:
        solver = replace(solver, name=cast(SolverName, switches.solver))
    if switches.ridge is not None:
        solver = replace(solver, ridge=switches.ridge)
    recovery = replace(method.recovery, solver=solver)
    if switches.descent is not None:
        if not isinstance(recovery, Weights):
            raise OptionError(
                f"a descent goes with the recovery 'weights', not with {recovery.name!r}; leave one of them out",
                option="descent",
            )
        recovery = replace(recovery, descent=Descent(below=1.0) if switches.descent else None)
    return replace(method, recovery=recovery)


# What a preset's recovery is replaced by when another one is asked for.
_RECOVERY_BY_NAME: dict[str, Scale | Weights | None] = {
    "none": None,
    "scale": Scale(solver=SolverOptions(name="auto", ridge=1e-3)),
    "weights": PRESETS["default"].recovery,
}
