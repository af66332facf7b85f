"""The options that say what may be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from faster_pruner.errors import OptionError
from faster_pruner.options import ALLOCATIONS, RUNTIMES, AllocationName, RuntimeName

if TYPE_CHECKING:
    from faster_pruner.costs.budget import Budget
    from faster_pruner.costs.latency import LatencyLimit

_BUDGET = "Budget"
# Kinds of budgets, and a range of each.
_KINDS = {
    "macs": "0.9:0.1:0.1",
    "params": "12M:6M:2M",
    "size": "40MB:20MB:10MB",
    "latency": "20ms:5ms:5ms",
    "speedup": "1.5:3:0.5",
}


def _limit(flag: str, words: str) -> Any:
    """An option that limits one cost."""
    return typer.Option(flag, help=words, show_default=False, rich_help_panel=_BUDGET)


Allocation = Annotated[
    str,
    typer.Option(
        help=f"Sizes of the layers: {', '.join(ALLOCATIONS)} (stock: the same everywhere, and only what the config "
        "can say, so that plain transformers opens the result).",
        rich_help_panel=_BUDGET,
    ),
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        help="Keep neurons in multiples of this number; auto measures. Default: the preset's, 8.",
        show_default=False,
        rich_help_panel=_BUDGET,
    ),
]


Macs = Annotated[str | None, _limit("--macs", "Share of the encoder's MACs to keep, e.g. 0.5.")]
Params = Annotated[str | None, _limit("--params", "Parameters to keep: a share (0.6) or a number (12M).")]
Size = Annotated[
    str | None, _limit("--size", "Most bytes of the weights file: a share, or 40MB. With several budgets, all are met.")
]
Batch = Annotated[int, typer.Option("--batch", help="Rows that a latency is of.", rich_help_panel=_BUDGET)]
Seq = Annotated[int, typer.Option("--seq", help="Tokens per row that a latency is of.", rich_help_panel=_BUDGET)]
Runtime = Annotated[
    str,
    typer.Option("--runtime", help=f"What a latency is measured in: {', '.join(RUNTIMES)}.", rich_help_panel=_BUDGET),
]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What may be left."""

    macs: Macs = None
    params: Params = None
    size: Size = None
    latency: Annotated[
        str | None, _limit("--latency", "Most time of a forward here, e.g. 8ms; measured (see the next three).")
    ] = None
    speedup: Annotated[str | None, _limit("--speedup", "Or how many times faster than the dense model: 2.")] = None
    batch: Batch = 1
    seq: Seq = 128
    runtime: Runtime = "torch"
    max_drop: Annotated[
        str | None,
        _limit("--max-drop", "Or as small as it goes while the metric loses at most this, for certain: 1%."),
    ] = None
    allocation: Allocation = "free"
    round_to: RoundTo = None

    def value(self) -> Budget:
        """The budget. Raises BudgetError, OptionError."""
        from faster_pruner.costs.amounts import drop, limit_of, share_or_amount
        from faster_pruner.costs.budget import Budget, Limit

        share, limits = None, list[Limit]()
        if self.macs is not None:
            share, amount = share_or_amount(self.macs, "macs", option="--macs")
            limits += [] if amount is None else [Limit(cost="macs", amount=amount)]
        if self.params is not None:
            limits.append(limit_of(self.params, "parameters", option="--params"))
        if self.size is not None:
            limits.append(limit_of(self.size, "bytes", option="--size"))
        time = self._time()
        lost = None if self.max_drop is None else drop(self.max_drop, option="--max-drop")
        if share is None and not limits and time is None and lost is None:
            raise OptionError(
                "say what may be left: --macs 0.5, --params 12M, --size 40MB, --latency 8ms or --speedup 2, or "
                "several; or --max-drop 1%"
            )
        return Budget(
            macs=share,
            limits=tuple(limits),
            latency=time,
            max_drop=lost,
            allocation=cast(AllocationName, self.allocation),
            round_to=self._multiple(),
        )

    def _time(self) -> LatencyLimit | None:
        """The limit on latency, if there is one. Raises BudgetError, OptionError."""
        from faster_pruner.costs.amounts import seconds, speed_up
        from faster_pruner.costs.latency import LatencyLimit

        if self.latency is None and self.speedup is None:
            if (self.batch, self.seq, self.runtime) != (1, 128, "torch"):
                raise OptionError("--batch, --seq and --runtime say where a --latency or a --speedup is measured")
            return None
        if self.latency is not None and self.speedup is not None:
            raise OptionError("--latency and --speedup limit the same; give one of them")
        return LatencyLimit(
            share=None if self.speedup is None else 1 / speed_up(self.speedup, option="--speedup"),
            seconds=None if self.latency is None else seconds(self.latency, option="--latency"),
            batch=self.batch,
            tokens=self.seq,
            runtime=cast(RuntimeName, self.runtime),
        )

    def _multiple(self) -> int | Literal["auto"] | None:
        text = self.round_to
        if text is None or text == "auto":
            return text
        if not text.isdecimal():
            raise OptionError(f"--round-to is {text!r}; it must be a number, or auto")
        return int(text)


@dataclass(frozen=True, kw_only=True)
class CountedBudgetOptions:
    """What may be left, of what can be counted before any work."""

    macs: Macs = None
    params: Params = None
    size: Size = None
    allocation: Allocation = "free"
    round_to: RoundTo = None

    def value(self) -> Budget:
        """The budget. Raises BudgetError, OptionError."""
        if self.macs is None and self.params is None and self.size is None:
            raise OptionError("say what may be left: --macs 0.5, --params 12M, --size 40MB, or several")
        return BudgetOptions(
            macs=self.macs, params=self.params, size=self.size, allocation=self.allocation, round_to=self.round_to
        ).value()


@dataclass(frozen=True, kw_only=True)
class BudgetsOptions:
    """Several budgets, one after the other."""

    macs: Annotated[
        str | None, _limit("--macs", "Shares of the encoder's MACs: 0.9:0.1:0.1 (from:to:step), or 0.7,0.5,0.3.")
    ] = None
    params: Annotated[str | None, _limit("--params", "Parameters: shares, or numbers (12M:6M:2M).")] = None
    size: Annotated[
        str | None, _limit("--size", "Bytes of the weights file: shares, or 40MB:20MB:10MB. Give one kind of budgets.")
    ] = None
    latency: Annotated[
        str | None, _limit("--latency", "Times of a forward, measured here: 20ms:5ms:5ms, or 20ms,10ms.")
    ] = None
    speedup: Annotated[str | None, _limit("--speedup", "Times faster than the dense model: 1.5:3:0.5, or 1.5,2,3.")] = (
        None
    )
    batch: Batch = 1
    seq: Seq = 128
    runtime: Runtime = "torch"
    allocation: Allocation = "free"
    round_to: RoundTo = None

    def value(self) -> list[Budget]:
        """The budgets. Raises BudgetError, OptionError."""
        from faster_pruner.costs.amounts import several

        given = {name: getattr(self, name) for name in _KINDS if getattr(self, name) is not None}
        if len(given) != 1:
            raise OptionError(
                "give one kind of budgets: --macs 0.9:0.1:0.1, --params 0.7,0.5, --size 40MB,30MB, --latency 20ms,10ms "
                "or --speedup 1.5,2,3"
            )
        ((name, text),) = given.items()
        common = {name: getattr(self, name) for name in ("batch", "seq", "runtime", "allocation", "round_to")}
        each = several(text, option=f"--{name}", example=_KINDS[name], shares=name not in ("latency", "speedup"))
        return [BudgetOptions(**{name: one}, **common).value() for one in each]
