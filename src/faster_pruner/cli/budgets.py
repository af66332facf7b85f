"""The options that say what may be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from faster_pruner.errors import OptionError
from faster_pruner.options import ALLOCATIONS, AllocationName

if TYPE_CHECKING:
    from faster_pruner.costs.budget import Budget

_BUDGET = "Budget"


def _limit(flag: str, words: str) -> Any:
    """An option that limits one cost."""
    return typer.Option(flag, help=words, show_default=False, rich_help_panel=_BUDGET)


Allocation = Annotated[
    str,
    typer.Option(
        help=f"Sizes of the layers: {', '.join(ALLOCATIONS)} (stock: the same everywhere, and heads stay, so that "
        "plain transformers opens the result).",
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


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What may be left."""

    macs: Annotated[str | None, _limit("--macs", "Share of the encoder's MACs to keep, e.g. 0.5.")] = None
    params: Annotated[str | None, _limit("--params", "Parameters to keep: a share (0.6) or a number (12M).")] = None
    size: Annotated[
        str | None,
        _limit("--size", "Most bytes of the weights file: a share, or 40MB. With several of these three, all are met."),
    ] = None
    allocation: Allocation = "free"
    round_to: RoundTo = None

    def value(self) -> Budget:
        """The budget. Raises BudgetError, OptionError."""
        from faster_pruner.costs.amounts import limit_of, share_or_amount
        from faster_pruner.costs.budget import Budget, Limit

        share, limits = None, list[Limit]()
        if self.macs is not None:
            share, amount = share_or_amount(self.macs, "macs", option="--macs")
            limits += [] if amount is None else [Limit(cost="macs", amount=amount)]
        if self.params is not None:
            limits.append(limit_of(self.params, "parameters", option="--params"))
        if self.size is not None:
            limits.append(limit_of(self.size, "bytes", option="--size"))
        if share is None and not limits:
            raise OptionError("say what may be left: --macs 0.5, --params 12M or --size 40MB, or several of them")
        return Budget(
            macs=share,
            limits=tuple(limits),
            allocation=cast(AllocationName, self.allocation),
            round_to=self._multiple(),
        )

    def _multiple(self) -> int | Literal["auto"] | None:
        text = self.round_to
        if text is None or text == "auto":
            return text
        if not text.isdecimal():
            raise OptionError(f"--round-to is {text!r}; it must be a number, or auto")
        return int(text)


@dataclass(frozen=True, kw_only=True)
class BudgetsOptions:
    """Several budgets, one after the other."""

    macs: Annotated[
        str | None, _limit("--macs", "Shares of the encoder's MACs: 0.9:0.1:0.1 (from:to:step), or 0.7,0.5,0.3.")
    ] = None
    params: Annotated[str | None, _limit("--params", "Parameters: shares, or numbers (12M,9M).")] = None
    size: Annotated[
        str | None, _limit("--size", "Bytes of the weights file: shares, or 40MB,30MB. One of these three.")
    ] = None
    allocation: Allocation = "free"
    round_to: RoundTo = None

    def value(self) -> list[Budget]:
        """The budgets. Raises BudgetError, OptionError."""
        from faster_pruner.costs.amounts import several

        given = {name: getattr(self, name) for name in ("macs", "params", "size") if getattr(self, name) is not None}
        if len(given) != 1:
            raise OptionError("give one kind of budgets: --macs 0.9:0.1:0.1, --params 0.7,0.5 or --size 40MB,30MB")
        ((name, text),) = given.items()
        return [
            BudgetOptions(**{name: each}, allocation=self.allocation, round_to=self.round_to).value()
            for each in several(text, option=f"--{name}")
        ]
