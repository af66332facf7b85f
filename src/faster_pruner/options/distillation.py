"""Distillation after the recovery."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from faster_pruner.checks import at_least, made_of, one_of, shown, whole_number
from faster_pruner.errors import OptionError

MatchName = Literal["streams", "predictions"]
MATCHES: tuple[MatchName, ...] = ("streams", "predictions")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Training of the pruned model towards the dense one, on many rows without labels.

    Attributes:
        rows: that it is trained on; None where `seconds` says it.
        seconds: about how long it may take; so many rows are taken as this machine gets through.
        epochs: how often every row is seen.
        learning_rate: the highest, of AdamW; it rises over the first steps and falls linearly.
        rows_per_step: of one gradient.
        match: "streams", the hidden states after every layer, which say more of each row than its prediction does, or
            "predictions" (docs/distillation.md).
        held_out: rows that are not trained on and decide what is kept; None for as many as there are to train on, at
            most 1024.
    """

    rows: int | None = None
    seconds: float | None = None
    epochs: int = 2
    learning_rate: float = 1e-4
    rows_per_step: int = 32
    match: MatchName = "streams"
    held_out: int | None = None

    def __post_init__(self) -> None:
        whole_number("rows to distil on", self.rows, 1, optional=True)
        at_least("seconds of distillation", self.seconds, 1.0, optional=True)
        if (self.rows is None) == (self.seconds is None):
            raise OptionError("distillation takes either a number of rows or a time, one of the two")
        one_of("what is matched", self.match, MATCHES)
        at_least("learning rate", self.learning_rate, 0.0)
        for what, value in (("epochs", self.epochs), ("rows per step", self.rows_per_step)):
            whole_number(what, value, 1)
        whole_number("rows held out", self.held_out, 1, optional=True)

    @classmethod
    def parse(cls, text: str) -> Distillation:
        """From a number of rows, "16384", or a time, "90s", "5min", "1h". Raises OptionError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|sec|min|m|h)?", text.strip())
        if found is None or (found[2] is None and not found[1].isdecimal()):
            raise OptionError(
                f"distillation of {shown(text)}; it takes a number of rows, like 16384, or a time, like 90s or 5min",
                option="distill",
            )
        if found[2] is None:
            return cls(rows=int(found[1]))
        return cls(seconds=float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2][0]])


def as_distillation(given: Distillation | int | str | None) -> Distillation | None:
    """A number of rows or a time as the options; options and None as they are. Raises OptionError."""
    made_of("distillation", given, (Distillation, int, str, type(None)))
    if isinstance(given, str | int):
        return Distillation.parse(str(given))
    return given
