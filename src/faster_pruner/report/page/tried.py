"""What was tried on the way to the smallest model within a drop: a picture and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.report.page import words
from faster_pruner.report.page.drawing import WIDTH, Axis, Picture, below, beside, dot, group, line
from faster_pruner.report.page.layout import figure, section, side_by_side
from faster_pruner.report.page.markup import Markup, joined, table
from faster_pruner.results import Probe, PruneReport

_LEFT, _TOP, _HIGH, _AXIS = 60.0, 10.0, 150.0, 36.0


def tried_section(report: PruneReport) -> Markup | None:
    """The sizes that were tried; None where none was."""
    return section("What was tried", side_by_side(*_content(report))) if report.probes else None


def _content(report: PruneReport) -> Iterator[Markup]:
    drawn = tried(report)
    if drawn is not None:
        yield figure(drawn)
    first = report.probes[0]
    rows = [
        [
            words.percent(probe.macs),
            words.metric(probe.metric, probe.after),
            words.change(probe.metric, probe.after - probe.before),
            words.interval(probe.metric, (probe.low, probe.high), signed=True),
            "yes" if probe.within else "no",
        ]
        for probe in report.probes
    ]
    caption = (
        f"In the order in which they were tried; {first.metric} of the dense model: "
        f"{words.metric(first.metric, first.before)}, on training rows that nothing was calibrated on. A size is "
        "within the drop where its whole interval is."
    )
    yield table(caption, ["MACs", first.metric, "change", "95% interval", "within"], rows, text=("within",))


def tried(report: PruneReport) -> Picture | None:
    """The change of the metric with its interval, against the share of the MACs."""
    probes = [p for p in report.probes if all(map(math.isfinite, (p.macs, p.before, p.after, p.low, p.high)))]
    if not probes:
        return None
    name, allowed = probes[0].metric, _allowed(report, probes[0])
    values = [v for p in probes for v in (p.after - p.before, p.low, p.high)]
    up = Axis.over([0.0, *values, *([] if allowed is None else [allowed])], _TOP + _HIGH, _TOP)
    across = Axis.over([0.0, 100.0, *(100 * p.macs for p in probes)], _LEFT, WIDTH - 14)
    parts = [below(across, _TOP, _TOP + _HIGH, "encoder's MACs asked for, %"), beside(up, across.start, across.stop)]
    parts.append(line(across.start, up.at(0.0), across.stop, up.at(0.0), "dense", "dashed"))
    if allowed is not None:
        parts.append(line(across.start, up.at(allowed), across.stop, up.at(allowed), "mark"))
    for probe in sorted(probes, key=lambda each: each.macs):
        parts.append(_spot(probe, across, up))
    verdicts = (
        f"{words.percent(p.macs)}: {words.change(name, p.after - p.before)}, {'within' if p.within else 'not within'}"
        for p in probes
    )
    note = "Filled: within the drop; hollow: not. Lines: 95% bootstrap intervals. Dashed: the dense model."
    note += "" if allowed is None else " The mark: what may be lost."
    title = f"Change of {name}, by size"
    return Picture("tried", title, "; ".join(verdicts), joined(parts), _TOP + _HIGH + _AXIS, note)


def _spot(probe: Probe, across: Axis, up: Axis) -> Markup:
    """One size."""
    x, value = across.at(100 * probe.macs), probe.after - probe.before
    hint = (
        f"{words.percent(probe.macs)} of the MACs: {words.change(probe.metric, value)} "
        f"({words.interval(probe.metric, (probe.low, probe.high), signed=True)})"
    )
    look = ("pruned",) if probe.within else ("pruned", "hollow")
    stroke = line(x, up.at(probe.low), x, up.at(probe.high), "span", "pruned")
    return group(hint, stroke, dot(x, up.at(value), *look))


def _allowed(report: PruneReport, probe: Probe) -> float | None:
    """The change that was allowed; None where the options do not say."""
    budget = report.options.get("budget")
    drop = cast("Mapping[str, Any]", budget).get("max_drop") if isinstance(budget, Mapping) else None
    if not isinstance(drop, int | float) or not math.isfinite(drop):
        return None
    return drop * abs(probe.before) if probe.metric in IN_NATURAL_UNITS else -100.0 * drop
