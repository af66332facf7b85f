"""The calibration set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from faster_pruner.checks import LARGEST_SEED, made_of, one_of, whole_number

PrecisionName = Literal["auto", "float32", "bfloat16"]
# What `auto` has become once it is decided.
Arithmetic = Literal["float32", "bfloat16"]
PRECISIONS: tuple[PrecisionName, ...] = ("auto", "float32", "bfloat16")
WeightsName = Literal["auto", "memory", "files"]
WEIGHTS: tuple[WeightsName, ...] = ("auto", "memory", "files")
# What a row is truncated to holds at least a token beside the two that mark its ends.
FEWEST_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The calibration set.

    Attributes:
        rows: training rows drawn without replacement.
        seed: of the draw and of everything else that is random.
        max_length: longest row in tokens; longer ones are truncated.
        tokens_per_batch: padded tokens per batch.
        precision: of the matrix products in forwards and backwards; `auto` takes bfloat16 where it is clearly
            faster: a GPU has it, or products were timed on this CPU.
        memory_limit: most bytes of hidden states kept in memory, the others go to temporary files; None for half of
            the memory that is free.
        weights: where weights, their copies and statistics lie: in `memory`, or in `files`, for models that memory (or
            a GPU) does not hold; `auto` takes files where it would not. Results are the same.
    """

    rows: int = 2048
    seed: int = 0
    max_length: int = 128
    tokens_per_batch: int = 4096
    precision: PrecisionName = "auto"
    memory_limit: int | None = None
    weights: WeightsName = "auto"

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("weights", self.weights, WEIGHTS)
        whole_number("memory limit", self.memory_limit, 0, optional=True)
        for what, value, least, most in (
            ("calibration rows", self.rows, 1, None),
            ("max length", self.max_length, FEWEST_TOKENS, None),
            ("tokens per batch", self.tokens_per_batch, 1, None),
            ("seed", self.seed, 0, LARGEST_SEED),
        ):
            whole_number(what, value, least, most)


def as_calibration(given: CalibrationOptions | None) -> CalibrationOptions:
    """The options, or the defaults. Raises OptionError."""
    made_of("calibration", given, (CalibrationOptions, type(None)))
    return given or CalibrationOptions()
