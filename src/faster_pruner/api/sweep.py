"""One calibration, a whole family of pruned models: what each budget costs and keeps."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faster_pruner.api.job import Job, with_measured_multiple
from faster_pruner.api.outcome import cut_and_measure, save
from faster_pruner.api.page import check_page, link_to
from faster_pruner.api.prune import Asked, keep_statistics, prepared
from faster_pruner.api.run import Run
from faster_pruner.api.smallest import check_judged
from faster_pruner.api.weights import check_in_files, memory_for
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.costs.budget import Budget, as_budget
from faster_pruner.data.tasks import Data, as_data
from faster_pruner.errors import BudgetError, InputError, OptionError, OutputError, one_line
from faster_pruner.host import places
from faster_pruner.host.files import beside
from faster_pruner.host.folders import Output, as_output
from faster_pruner.host.launch import only_one
from faster_pruner.host.marks import PAGE_FILE
from faster_pruner.model.precision import usual_torch
from faster_pruner.options import CalibrationOptions, Method, as_calibration, as_method
from faster_pruner.progress import StageClock
from faster_pruner.report.page.family import Member, family_page
from faster_pruner.results import Evaluation, PruneReport, SizeResult, strict_json

_POINTS = "points"
_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One budget.

    Attributes:
        name: of the budget, and of its folder: "macs-0.5".
        report: as of `prune`; None where it could not be cut.
        folder: where the model was saved, if that was asked for.
        failed: why it could not be cut; empty when it was.
    """

    name: str
    report: PruneReport | None
    folder: Path | None = None
    failed: str = ""

    def row(self) -> dict[str, Any]:
        """Its figures by name, as a CSV has them."""
        found: dict[str, Any] = {"budget": self.name, "failed": self.failed}
        if self.report is None:
            return found
        report = self.report
        found |= _figures(report.macs_kept, report.pruned, report.after)
        for split, sure in report.confidence.items():
            low, high = sure.change
            found |= {f"{split}_change_low": low, f"{split}_change_high": high}
        found |= {f"speed_up_{each.batch}x{each.sequence}": each.speed_up for each in report.latency}
        return found


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What `sweep` gives back.

    Attributes:
        points: in the order in which they were asked for.
        page: report.html of all of them; None without an output, and where it could not be made.
        warnings: why it could not be made.
    """

    points: list[SweepPoint]
    page: Path | None = None
    warnings: list[str] = field(default_factory=list[str])

    @property
    def reports(self) -> list[PruneReport]:
        """Of the points that could be cut."""
        return [point.report for point in self.points if point.report is not None]

    def figures(self) -> dict[str, Any]:
        """What `to_json` writes."""
        points = [
            {**point.row(), "report": None if point.report is None else point.report.to_json()} for point in self.points
        ]
        return {_POINTS: points}

    def to_json(self) -> str:
        """Strict JSON: of every point its figures and the whole report."""
        return strict_json(self.figures())

    def to_csv(self) -> str:
        """One line per point, and one for the dense model."""
        rows = [self._dense(), *(point.row() for point in self.points)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _dense(self) -> dict[str, Any]:
        report = self.reports[0]
        return {"budget": "dense", "failed": "", **_figures(1.0, report.dense, report.before)}


def _figures(macs_kept: float, size: SizeResult, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What is said of the dense model and of every point, by name."""
    found: dict[str, Any] = {"macs_kept": macs_kept, "parameters": size.parameters, "bytes": size.bytes}
    for split, evaluation in evaluations.items():
        found |= {f"{split}_{name}": value for name, value in evaluation.metrics.items()}
    return found


@usual_torch()
def sweep(
    model: str | Path,
    data: str | Data,
    *,
    macs: Sequence[float | Budget],
    output: str | Path | Output | None = None,
    method: Method | str = "default",
    calibration: CalibrationOptions | None = None,
    run: Run | None = None,
) -> SweepResult:
    """Cut a model to several budgets from one calibration; evaluate, time, and on request save and verify each.

    Args:
        model: as in `prune`.
        data: as in `prune`; the dense model is evaluated once.
        macs: budgets, each as in `prune`.
        output: a folder that gets a checkpoint for every budget, in a folder of its own, and one report.html of all of
            them; None keeps none. What is finished stays when the run is interrupted.
        method: as in `prune`.
        calibration: as in `prune`.
        run: as in `prune`.

    Raises:
        InputError: see its subclasses in `errors`; a budget that cannot be met is told in its point, unless none can.
    """
    only_one("a sweep")
    budgets = {name_of(budget): budget for budget in (as_budget(each) for each in macs)}
    if not budgets:
        raise OptionError("a sweep needs budgets, for instance 0.9, 0.7 and 0.5 of the MACs")
    for budget in budgets.values():
        check_judged(budget)
    place, target, run = as_place(model), as_output(output), run or Run()
    target.check_anew("a sweep")
    first = next(iter(budgets.values()))
    given = as_data(data)
    folders = {
        name: Output(folder=None if target.path is None else target.path / name, overwrite=target.overwrite)
        for name in budgets
    }
    for folder in folders.values():
        folder.check(reads=[place], rows=given.folder)
    if target.path is not None:
        check_page(target.path / PAGE_FILE)
    asked = Asked(
        place=place,
        data=given,
        budget=first,
        # companions are read, and what cannot be saved is told at once
        output=replace(folders[next(iter(budgets))], statistics=target.statistics),
        method=as_method(method),
        calibration=as_calibration(calibration),
    )
    asked.output.check(reads=[place], rows=given.folder)
    clock = run.clock(run.on())
    with memory_for(asked.calibration, place, run.on()):
        for budget in budgets.values():
            check_in_files(budget)
        job = prepared(asked, run, clock)
        keep_statistics(job, asked.output, clock)
        # what is common to all has its own clock: each report says what its point took
        points = [_point(job, name, budget, folders[name], run.clock(run.on())) for name, budget in budgets.items()]
    if all(point.report is None for point in points):
        raise BudgetError(f"none of these budgets can be met; the first one: {points[0].failed}")
    found = SweepResult(points=points)
    return found if target.path is None else _with_page(found, target.path / PAGE_FILE)


def _with_page(found: SweepResult, file: Path) -> SweepResult:
    """Write one page of all points; where that fails, the models are there all the same."""
    members = [
        Member(
            point.name,
            point.report,
            link="" if point.folder is None else link_to(point.folder),
            failed=point.failed,
        )
        for point in found.points
    ]
    try:
        text = family_page(members)
        write(file, lambda staging: staging.write_text(text, encoding="utf-8"))
    except Exception as error:  # names are strangers' texts, and disks fill up
        return replace(found, warnings=[f"there is no {PAGE_FILE}: {one_line(error)}"])
    return replace(found, page=file)


def _point(job: Job, name: str, budget: Budget, output: Output, clock: StageClock) -> SweepPoint:
    """Cut to one budget."""
    own = replace(job, budget=with_measured_multiple(budget, job.calibrated.subject, clock))
    try:
        outcome = cut_and_measure(own, clock)
    except InputError as error:
        return SweepPoint(name=name, report=None, failed=str(error))
    report = outcome.report if output.path is None else save(own, outcome, output, clock)
    return SweepPoint(name=name, report=report, folder=output.path)


def name_of(budget: Budget) -> str:
    """What a budget is called, as a folder may be."""
    parts = [
        f"{limit.name}-{limit.share:g}" if limit.share is not None else f"{limit.name}-{limit.amount or 0:.6g}"
        for limit in budget.all_limits
    ]
    if budget.latency is not None:
        kind = "latency" if budget.latency.share is None else "speed-up"
        parts.append(f"{kind}-{budget.latency.wanted.removesuffix('x').replace(' ', '')}")
    return "-".join(parts)


def check_files(json_file: Path | None, others: Sequence[Path | None], *, overwrite: bool) -> None:
    """Before any work: the files of a sweep may be written. Raises OutputError."""
    if json_file is not None:
        places.check_json(json_file, {_POINTS})
    for file in others:
        if file is None:
            continue
        places.check_file(file)
        if file.exists() and not overwrite:
            raise OutputError(
                f"{str(file)!r} is there already; choose another name, or overwrite it", option="overwrite"
            )


def check_picture(file: Path | None) -> None:
    """Before any work: a plot can be drawn into this file. Raises OptionError."""
    if file is None:
        return
    if file.suffix not in _PICTURES:
        raise OptionError(f"the plot is {str(file)!r}; it must end in {', '.join(_PICTURES)}", option="plot")
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise OptionError("a plot needs matplotlib, which is not installed; install faster-pruner[plot]") from error


def write(file: Path, how: Callable[[Path], object]) -> None:
    """A file, as a whole or not at all. Raises OutputError.

    Args:
        file: it.
        how: writes into a file of that name.
    """
    with beside(file) as staging:
        how(staging)
