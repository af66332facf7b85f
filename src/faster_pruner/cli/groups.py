"""Options that several commands share, written once: a group is a dataclass whose fields are options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from faster_pruner.checks import at_least
from faster_pruner.cli.printing import voice
from faster_pruner.data.glue import GLUE
from faster_pruner.errors import OptionError
from faster_pruner.options import PRECISIONS, PRESETS, RECOVERIES, SELECTIONS, SOLVERS, WEIGHTS

if TYPE_CHECKING:
    from faster_pruner.api.corpus import Vocabulary
    from faster_pruner.api.run import Run
    from faster_pruner.data.tasks import Data
    from faster_pruner.options import CalibrationOptions, Distillation, Method


# Headings of the options in --help.
_ROWS, _BUDGET, _METHOD, _TOKENS = "Rows", "Budget", "Method and calibration", "Vocabulary"

Model = Annotated[str, typer.Argument(help="Fine-tuned checkpoint: a local folder or a hub id.", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What rows a command works on."""

    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help=f"GLUE task: {', '.join(GLUE)}. Or what other data are for, by the hub's name, like "
            "token-classification. Default: what MODEL was made for.",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder with train and validation as jsonl, csv or parquet (.gz too), or a retrieval folder (BEIR). "
            "Default: the hub.",
            rich_help_panel=_ROWS,
        ),
    ] = None
    text_column: Annotated[
        str | None,
        typer.Option(
            "--text-column",
            help="Column of the first or only input. Default: the usual one of the task.",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None
    text_pair_column: Annotated[
        str | None, typer.Option("--text-pair-column", help="Column of the second text.", rich_help_panel=_ROWS)
    ] = None
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the label.", rich_help_panel=_ROWS)
    ] = None
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="A single file of texts (txt, jsonl, csv, parquet) in place of a folder; a part is held back.",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None
    hub_data: Annotated[
        str | None,
        typer.Option(
            "--hub-data",
            help="A data set on the hub in place of a folder: owner/name, or owner/name:configuration.",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None
    pooling: Annotated[
        str | None,
        typer.Option(
            help="How an encoder without a head makes one vector of many: mean, cls, max, lasttoken.",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None
    dims: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated lengths of prefixes that are embeddings, too (Matryoshka).",
            show_default=False,
            rich_help_panel=_ROWS,
        ),
    ] = None

    def value(self, unlabelled: Path | None = None, judged: int | None = None) -> Data:
        """What the options say, with a file of rows to distil on, and how many to evaluate on. Raises OptionError."""
        from faster_pruner.data.tasks import Columns, Data

        columns = Columns(text=self.text_column, text_pair=self.text_pair_column, label=self.label_column)
        dims = () if self.dims is None else tuple(numbers("--dims", self.dims))
        return Data(
            task=self.task,
            folder=self.data,
            columns=columns,
            file=self.text,
            hub=self.hub_data,
            pooling=self.pooling,
            dims=dims,
            unlabelled=unlabelled,
            judged=judged,
        )


EvalRows = Annotated[
    int | None,
    typer.Option("--eval-rows", help="Evaluate on so many rows of each split. Default: all.", rich_help_panel=_ROWS),
]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How much of the data a result is judged on."""

    eval_rows: EvalRows = None
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Evaluate nothing: only cut, time and verify.", rich_help_panel=_ROWS)
    ] = False

    @property
    def judged(self) -> int | None:
        """Rows of each split; None for all. Raises OptionError."""
        if self.no_eval and self.eval_rows is not None:
            raise OptionError("--no-eval evaluates nothing, --eval-rows does; give one of them")
        return 0 if self.no_eval else self.eval_rows


_HELD_OUT = "Share of the texts that has no say, and shows what happens to unseen ones."


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """Which tokens stay."""

    vocabulary: Annotated[
        list[Path],
        typer.Option(
            "--vocabulary",
            help="A file of texts: tokens that they do not need are removed, too; may be given several times. With "
            "--macs 1.0 nothing else is pruned, and no rows are read.",
            show_default=False,
            rich_help_panel=_TOKENS,
        ),
    ] = field(default_factory=list[Path])
    vocabulary_column: Annotated[
        str | None,
        typer.Option(
            "--vocabulary-column",
            help="Column of the text in these files. Default: text.",
            show_default=False,
            rich_help_panel=_TOKENS,
        ),
    ] = None
    held_out: Annotated[float, typer.Option(help=_HELD_OUT, rich_help_panel=_TOKENS)] = 0.1

    def value(self, seed: int) -> Vocabulary | None:
        """What the options say, with the seed of the run; None where all tokens stay. Raises OptionError."""
        from faster_pruner.api.corpus import Vocabulary
        from faster_pruner.data.tasks import Columns, Data

        columns = Columns(text=self.vocabulary_column)
        texts = [Data(file=file, columns=columns) for file in self.vocabulary]
        if not texts and self.vocabulary_column is not None:
            raise OptionError("--vocabulary-column names a column of files that --vocabulary gives; give these, too")
        return Vocabulary(texts=texts, held_out=self.held_out, seed=seed) if texts else None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts that say which tokens a vocabulary needs."""

    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder with train as jsonl, csv, parquet or txt (.gz too).", show_default=False),
    ] = None
    corpus: Annotated[
        list[Path],
        typer.Option("--corpus", help="A file of texts; may be given several times.", show_default=False),
    ] = field(default_factory=list[Path])
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Column of the text. Default: text.", show_default=False)
    ] = None
    held_out: Annotated[float, typer.Option(help=_HELD_OUT)] = 0.1
    seed: Annotated[int, typer.Option(help="Seed of which texts those are.")] = 0

    def value(self) -> list[Data]:
        """What the options say. Raises OptionError."""
        from faster_pruner.data.tasks import Columns, Data

        columns = Columns(text=self.text_column)
        found = [Data(file=file, columns=columns) for file in self.corpus]
        found += [] if self.data is None else [Data(folder=self.data, columns=columns)]
        if not found:
            raise OptionError("texts are needed that say which tokens stay; give --corpus FILE, or --data DIR")
        return found


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A preset, and what is replaced in it."""

    preset_name: Annotated[
        str, typer.Option("--preset", help=f"Method: {', '.join(PRESETS)}.", rich_help_panel=_METHOD)
    ] = "default"
    selection: Annotated[
        str | None,
        typer.Option(help=f"Replace the preset's selection: {', '.join(SELECTIONS)}.", rich_help_panel=_METHOD),
    ] = None
    recovery: Annotated[
        str | None,
        typer.Option(help=f"Replace the preset's recovery: {', '.join(RECOVERIES)}.", rich_help_panel=_METHOD),
    ] = None
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels", help="Use the calibration rows' labels, or none.", rich_help_panel=_METHOD
        ),
    ] = None
    solver: Annotated[
        str | None, typer.Option(help=f"Replace the recovery's solver: {', '.join(SOLVERS)}.", rich_help_panel=_METHOD)
    ] = None
    ridge: Annotated[
        float | None, typer.Option(help="Replace the recovery's relative ridge.", rich_help_panel=_METHOD)
    ] = None
    attention_unit: Annotated[
        str | None,
        typer.Option(
            help="Where query heads share keys and values, remove: group (default), or head: of each group as many.",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None
    descent: Annotated[
        bool | None,
        typer.Option(
            help="Recover all matrices by descent, too; by default at strong budgets.", rich_help_panel=_METHOD
        ),
    ] = None

    def value(self) -> Method:
        """The method. Raises OptionError."""
        from faster_pruner.options import Switches, customise, preset

        switches = Switches(
            selection=self.selection,
            recovery=self.recovery,
            labels=self.labels,
            solver=self.solver,
            ridge=self.ridge,
            descent=self.descent,
            attention_unit=self.attention_unit,
        )
        return customise(preset(self.preset_name), switches)


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Training after the recovery."""

    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            help="Then train towards MODEL without labels: on so many rows (16384), or for about so long (5min).",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled",
            help="File of rows for --distill, in place of training rows.",
            show_default=False,
            rich_help_panel=_METHOD,
        ),
    ] = None

    def value(self) -> Distillation | None:
        """What the options say. Raises OptionError."""
        from faster_pruner.options import Distillation

        if self.distill is None:
            if self.unlabelled is not None:
                raise OptionError("--unlabelled gives rows to distil on, and nothing is distilled; give --distill, too")
            return None
        return Distillation.parse(self.distill)


_MOST_GIB = 1e9
MaxLength = Annotated[int, typer.Option("--max-length", help="Truncate texts to this many tokens.")]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        help="Most GiB of hidden states kept in memory; the rest goes to temporary files. "
        "Default: half of what is free.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the pruned checkpoint.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is already in --output.")]


@dataclass(frozen=True, kw_only=True)
class CalibrationSetOptions:
    """The calibration set and its passes."""

    calibration_rows: Annotated[int, typer.Option(help="Training rows to calibrate on.", rich_help_panel=_METHOD)] = (
        2048
    )
    seed: Annotated[
        int, typer.Option(help="Seed of the calibration sample, and of the texts held out.", rich_help_panel=_METHOD)
    ] = 0
    max_length: MaxLength = 128
    precision: Annotated[
        str,
        typer.Option(
            help=f"Of the passes: {', '.join(PRECISIONS)}; auto is bfloat16 where that is clearly faster.",
            rich_help_panel=_METHOD,
        ),
    ] = "auto"
    memory_limit: MemoryLimit = None
    weights: Annotated[
        str, typer.Option(help=f"Where weights lie: {', '.join(WEIGHTS)}; auto is files where memory is too small.")
    ] = "auto"

    def value(self) -> CalibrationOptions:
        """The options. Raises OptionError."""
        from faster_pruner.options import CalibrationOptions, PrecisionName, WeightsName

        return CalibrationOptions(
            rows=self.calibration_rows,
            seed=self.seed,
            max_length=self.max_length,
            precision=cast(PrecisionName, self.precision),
            memory_limit=in_bytes(self.memory_limit),
            weights=cast(WeightsName, self.weights),
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a command runs."""

    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, ... Default: cuda when there is one.")] = (
        None
    )

    def value(self) -> Run:
        """Device and progress."""
        return run_on(self.device)


def run_on(device: str | None) -> Run:
    """A run that shows its progress."""
    from faster_pruner.api.run import Run
    from faster_pruner.progress import Silent
    from faster_pruner.report import make_progress

    return Run(device=device, progress=Silent() if voice.get().quiet else make_progress())


def in_bytes(gib: float | None) -> int | None:
    """GiB as bytes. Raises OptionError."""
    at_least("memory limit", gib, 0.0, optional=True)
    if gib is not None and gib > _MOST_GIB:
        raise OptionError(f"memory limit is {gib:g} GiB; it must be at most {_MOST_GIB:g}")
    return None if gib is None else int(gib * 2**30)


def numbers(option: str, text: str) -> list[int]:
    """The value of an option that is a list of numbers. Raises OptionError."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise OptionError(f"{option} is {text!r}; it must be numbers with commas between them, like 1,8,32")
    return [int(part) for part in parts]
