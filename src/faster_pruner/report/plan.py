"""What `plan` shows: what a run takes, and what it leaves."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from faster_pruner.planned import PlannedSublayer, PlanReport
from faster_pruner.report.summary import COST_WORDS, plain_table


def print_plan(plan: PlanReport, console: Console) -> None:
    """Time and memory in a line, sizes before and after, the sublayers, and the stages."""
    headline = f"{plan.model}, {plan.task}: about {duration(plan.total)} and {plan.memory / 1e6:.0f} MB of memory"
    console.print(Text(headline, style="bold"))
    console.print(Text(_rows(plan)))
    console.print()
    table = plain_table("what the budget leaves")
    for column in ("", "dense", "pruned", "share"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    dense, pruned = plan.dense, plan.pruned
    for what, before, after, unit in (
        ("encoder MACs", dense.macs, pruned.macs, "M"),
        ("encoder parameters", dense.encoder_parameters, pruned.encoder_parameters, "M"),
        ("all parameters", dense.parameters, pruned.parameters, "M"),
        ("weights file", dense.bytes, pruned.bytes, "MB"),
    ):
        share = f"{after / before:.1%}" if before else ""
        table.add_row(what, f"{before / 1e6:.2f} {unit}", f"{after / 1e6:.2f} {unit}", share)
    for limit in plan.limits:
        table.add_row(f"asked of {COST_WORDS.get(limit.cost, limit.cost)}", "", "", f"{limit.asked / limit.dense:.1%}")
    console.print(table)
    for line in _sublayers(plan.sublayers):
        console.print(Text(line))
    console.print(Text("the same share everywhere; the run spends the budget where its data say", style="dim"))
    console.print()
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in plan.seconds.items())
    console.print(Text(f"time: {stages}"))
    if plan.spilled:
        console.print(Text(f"temporary files: {plan.spilled / 1e6:.0f} MB of hidden states"))
    console.print(Text(f"foreseen in {duration(plan.took)}", style="dim"))
    for note in plan.notes:
        console.print(Text.assemble(("note", "yellow"), f": {note}"))


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3.5 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rows(plan: PlanReport) -> str:
    """How many rows it works on."""
    judged = ", ".join(f"{count} {split}" for split, count in plan.evaluation_rows.items())
    return (
        f"{plan.calibration_rows} calibration rows, about {plan.calibration_tokens} tokens; "
        f"evaluated on {f'{judged} rows' if judged else 'no rows'}"
    )


def _sublayers(sublayers: list[PlannedSublayer]) -> list[str]:
    """A line for each kind that is left alike."""
    kinds: dict[tuple[str, str], list[PlannedSublayer]] = {}
    for s in sublayers:
        prefix, _, kind = s.name.rpartition(".")
        kinds.setdefault((prefix.partition(".")[0], kind), []).append(s)
    found: list[str] = []
    for (stack, kind), group in kinds.items():
        runs = [(key, len(list(own))) for key, own in groupby(group, key=lambda s: (s.units, s.units_before))]
        counts = ", ".join(f"{n} x {units} of {before}" for (units, before), n in runs)
        found.append(f"{stack}, {kind}: {counts} {group[0].unit}s")
    return found
