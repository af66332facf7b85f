"""report.html of a family of budgets: what each keeps and how fast it is, on one page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from faster_pruner.report.headline import speed_up
from faster_pruner.report.page import words
from faster_pruner.report.page.drawing import (
    ROW,
    WIDTH,
    Axis,
    Picture,
    below,
    beside,
    dot,
    group,
    line,
    text,
    width_of,
)
from faster_pruner.report.page.layout import document, figure, section, side_by_side, tiles
from faster_pruner.report.page.markup import Markup, joined, table, tag
from faster_pruner.report.page.pictures import AXIS, LAYER, colour, plain
from faster_pruner.report.summary import COST_WORDS
from faster_pruner.results import PruneReport, SublayerResult

_LEFT, _TOP, _HIGH = 56.0, 10.0, 190.0
# What a member's place on the horizontal axis is, in percent of the dense model.
_SHARES: Mapping[str, Callable[[PruneReport], float]] = {
    "macs": lambda report: 100 * report.macs_kept,
    "parameters": lambda report: 100 * words.ratio(report.pruned.parameters, report.dense.parameters),
    "bytes": lambda report: 100 * words.ratio(report.pruned.bytes, report.dense.bytes),
}
_NARROWEST_COLUMN = 22.0


@dataclass(frozen=True)
class Member:
    """One budget.

    Attributes:
        name: of it.
        report: of its model; None where it could not be cut.
        link: to its own page; empty without one.
        failed: why it could not be cut.
    """

    name: str
    report: PruneReport | None
    link: str = ""
    failed: str = ""


def family_page(members: Sequence[Member]) -> str:
    """A page of several budgets of one model.

    Args:
        members: in the order in which they are listed; at least one has a report.
    """
    known = _known(members)
    first = known[0]
    title = f"{first.model}, pruned to {len(known)} budgets" if len(known) > 1 else f"{first.model}, pruned"
    drawn = {picture.name: picture for picture in family_pictures(members)}
    layers = drawn.pop("layers", None)
    notes = [f"{member.name}: {member.failed}" for member in members if member.failed]
    notes += [f"{m.name}: {note}" for m in members if m.report is not None for note in m.report.warnings]
    sections = [
        tag(
            "header",
            tag("h1", title),
            tag("p", f"{first.task}, preset {first.preset}, seed {_seed(first)}"),
            tiles(list(_tiles(members))),
        ),
        section("Against the budget", side_by_side(*map(figure, drawn.values()))) if drawn else None,
        section("All budgets", _table(members)),
        None if layers is None else section("What was removed", side_by_side(figure(layers))),
        section("To know before one is used", tag("ul", *(tag("li", each) for each in notes), class_="notes"))
        if notes
        else None,
    ]
    return document(title, *(each for each in sections if each is not None))


def _seed(report: PruneReport) -> str:
    return str((report.options.get("calibration") or {}).get("seed", words.UNKNOWN))


def _known(members: Sequence[Member]) -> list[PruneReport]:
    return [member.report for member in members if member.report is not None]


def _tiles(members: Sequence[Member]) -> Iterator[tuple[str, str, str]]:
    """The dense model, the smallest one, and the fastest."""
    known = [(member.name, member.report) for member in members if member.report is not None]
    first = known[0][1]
    for split, dense in first.before.items():
        name = dense.primary
        yield f"Dense {name}, {split}", words.metric(name, dense.value), f"on {dense.rows} rows"
        judged = [report for _, report in known if split in report.after]
        if judged:
            least = min(judged, key=lambda report: report.macs_kept)
            value, sure = least.after[split].value, least.confidence.get(split)
            more = f"{words.change(name, value - dense.value)} against the dense model"
            if sure is not None and sure.metric == name:
                more += f" (95%: {words.interval(name, sure.change, signed=True)})"
            yield f"{name} at {least.macs_kept:.0%} of the MACs", words.metric(name, value), more
    timed = [(budget, fast) for budget, report in known if (fast := speed_up(report)) is not None]
    if timed:
        budget, most = max(timed, key=lambda each: each[1])
        yield "Fastest", words.faster(most), f"{budget}, at the largest shape that was timed"


def _table(members: Sequence[Member]) -> Markup:
    """A line for the dense model and for each budget."""
    first = _known(members)[0]
    splits, shapes = list(first.before), [(each.batch, each.sequence) for each in first.latency]
    head = ["budget", "MACs", "parameters", "file"]
    for split in splits:
        head += [f"{split}: {first.before[split].primary}", "change", "95% interval"]
    head += [f"{batch} {words.TIMES} {sequence}" for batch, sequence in shapes]
    dense = [words.metric(first.before[split].primary, first.before[split].value) for split in splits]
    rows: list[list[str]] = [
        ["dense", "100%", words.count(first.dense.parameters), words.size(first.dense.bytes)]
        + [cell for value in dense for cell in (value, "", "")]
        + [words.faster(1.0) for _ in shapes]
    ]
    for member in members:
        name = tag("a", member.name, href=member.link) if member.link else member.name
        own = ["could not be cut"] if member.report is None else _cells(member.report, splits, shapes)
        rows.append([name, *own, *[""] * (len(head) - 1 - len(own))])
    caption = (
        "Change: against the dense model. The last columns: measured speed-up at rows \N{MULTIPLICATION SIGN} tokens."
    )
    return table(caption if shapes else "Change: against the dense model.", head, rows)


def _cells(report: PruneReport, splits: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[str]:
    """The figures of one budget."""
    found = [words.percent(report.macs_kept), words.count(report.pruned.parameters), words.size(report.pruned.bytes)]
    for split in splits:
        if split not in report.before or split not in report.after:
            found += ["", "", ""]
            continue
        before, after = report.before[split], report.after[split]
        sure = report.confidence.get(split)
        between = "" if sure is None else words.interval(before.primary, sure.change, signed=True)
        found += [
            words.metric(before.primary, after.value),
            words.change(before.primary, after.value - before.value),
            between,
        ]
    timed = {(each.batch, each.sequence): each.speed_up for each in report.latency}
    return found + [words.faster(timed[shape]) if shape in timed else "" for shape in shapes]


def family_pictures(members: Sequence[Member]) -> list[Picture]:
    """The metric of every split, the speed, and what is left of every layer, against the budget."""
    known = _known(members)
    limited = [cost for cost in _SHARES if all(any(each.cost == cost for each in r.limits) for r in known)]
    cost = limited[0] if limited else "macs"
    known = sorted(known, key=_SHARES[cost])
    found = [*(_quality(known, split, cost) for split in known[0].before), _speed(known, cost), _layers(known)]
    return [picture for picture in found if picture is not None]


def _across(known: Sequence[PruneReport], cost: str) -> tuple[Axis, Markup]:
    """The axis of the budgets up to the dense model, and its lines."""
    axis = Axis.over([100.0, *map(_SHARES[cost], known)], _LEFT, WIDTH - 14)
    return axis, below(axis, _TOP, _TOP + _HIGH, f"{COST_WORDS[cost]} kept, %")


def _curve(points: Sequence[tuple[float, float]]) -> Markup:
    """Straight lines from point to point."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=path, class_="curve pruned")


def _quality(known: Sequence[PruneReport], split: str, cost: str) -> Picture | None:
    """The primary metric with its intervals, and the dense model's."""
    dense = known[0].before[split]
    own = [report for report in known if split in report.after and math.isfinite(report.after[split].value)]
    if not own or not math.isfinite(dense.value):
        return None
    name = dense.primary
    sides = {id(report): report.confidence[split].after for report in own if split in report.confidence}
    values = [report.after[split].value for report in own]
    up = Axis.over([dense.value, *values, *(v for both in sides.values() for v in both)], _TOP + _HIGH, _TOP)
    axis, lines = _across(known, cost)
    at = [(axis.at(_SHARES[cost](report)), up.at(value)) for report, value in zip(own, values, strict=True)]
    level = up.at(dense.value)
    parts = [lines, beside(up, axis.start, axis.stop), line(axis.start, level, axis.stop, level, "dense", "dashed")]
    parts.append(_curve(at))
    for report, value, (x, y) in zip(own, values, at, strict=True):
        drawn = [dot(x, y, "pruned")]
        if id(report) in sides and all(map(math.isfinite, sides[id(report)])):
            low, high = sides[id(report)]
            drawn.insert(0, line(x, up.at(low), x, up.at(high), "span", "pruned"))
        parts.append(group(f"{_SHARES[cost](report):.1f}%: {words.metric(name, value)}", *drawn))
    parts.append(group(f"dense: {words.metric(name, dense.value)}", dot(axis.at(100.0), level, "dense")))
    told = [f"dense {words.metric(name, dense.value)}"]
    told += [f"{_SHARES[cost](r):.0f}%: {words.metric(name, v)}" for r, v in zip(own, values, strict=True)]
    note = "Lines: 95% bootstrap intervals. Dashed, and the grey dot: the dense model."
    title = f"{name} on {split}"
    return Picture(f"quality-{plain(split)}", title, "; ".join(told), joined(parts), _TOP + _HIGH + AXIS, note)


def _speed(known: Sequence[PruneReport], cost: str) -> Picture | None:
    """The measured speed-up at the largest shape."""
    timed = [(report, fast) for report in known if (fast := speed_up(report)) is not None and math.isfinite(fast)]
    if not timed:
        return None
    up = Axis.over([1.0, *(fast for _, fast in timed)], _TOP + _HIGH, _TOP)
    axis, lines = _across(known, cost)
    at = [(axis.at(_SHARES[cost](report)), up.at(fast)) for report, fast in timed]
    level = up.at(1.0)
    parts = [lines, beside(up, axis.start, axis.stop), line(axis.start, level, axis.stop, level, "dense", "dashed")]
    parts.append(_curve(at))
    for (report, fast), (x, y) in zip(timed, at, strict=True):
        parts.append(group(f"{_SHARES[cost](report):.1f}%: {words.faster(fast)}", dot(x, y, "pruned")))
    parts.append(group("dense", dot(axis.at(100.0), level, "dense")))
    shape = max(timed[0][0].latency, key=lambda each: each.batch * each.sequence)
    told = "; ".join(f"{_SHARES[cost](report):.0f}%: {words.faster(fast)}" for report, fast in timed)
    note = f"At {shape.batch} rows of {shape.sequence} tokens, PyTorch eager, both models in turn."
    return Picture("speed", "Measured speed-up", told, joined(parts), _TOP + _HIGH + AXIS, note)


def _layers(known: Sequence[PruneReport]) -> Picture | None:
    """Shares of the units that are left, by sublayer and budget, a panel for each kind."""
    by_name = [{s.name: s for s in report.sublayers} for report in known]
    kinds: dict[str, list[SublayerResult]] = {}
    for s in known[0].sublayers:
        kinds.setdefault(words.parts_of(s)[2], []).append(s)
    if not kinds:
        return None
    several = len({words.parts_of(s)[0] for s in known[0].sublayers}) > 1
    names = {s.name: ".".join(words.parts_of(s)[0 if several else 1 : 2]) for s in known[0].sublayers}
    left, gap = width_of(names.values()) + 12, 22.0
    panel = (WIDTH - left - gap * (len(kinds) - 1)) / len(kinds)
    every = max(1, math.ceil(_NARROWEST_COLUMN * len(known) / panel))
    rows = list(dict.fromkeys(names.values()))
    head = ROW + 4
    bottom = head + len(rows) * LAYER
    parts = [text(left - 8, head + (i + 0.5) * LAYER, name, "end", "small") for i, name in enumerate(rows)]
    for place, (kind, own) in enumerate(kinds.items()):
        x, wide = left + place * (panel + gap), panel / len(known)
        parts.append(text(x, ROW / 2, f"{kind}: {words.several(own[0].unit)}", "strong"))
        for column, (report, sublayers) in enumerate(zip(known, by_name, strict=True)):
            at = x + column * wide
            for s in own:
                y = head + rows.index(names[s.name]) * LAYER
                parts.append(_cell(sublayers.get(s.name), report, (at, y), wide))
            if column % every == 0:
                parts.append(text(at + wide / 2, bottom + 10, f"{100 * report.macs_kept:.0f}", "small", "middle"))
        parts.append(text(x + panel / 2, bottom + 27, "encoder's MACs kept, %", "small", "middle"))
    told = "; ".join(
        f"{100 * report.macs_kept:.0f}%: " + ", ".join(f"{kind} {_left(report, kind)}" for kind in kinds)
        for report in known
    )
    note = "The fuller the colour, the more units are left; an empty cell has none."
    return Picture("layers", "What is left of every layer", told, joined(parts), bottom + AXIS, note)


def _left(report: PruneReport, kind: str) -> str:
    own = [s for s in report.sublayers if words.parts_of(s)[2] == kind]
    return words.kept_of(own) if own else "none"


def _cell(s: SublayerResult | None, report: PruneReport, corner: tuple[float, float], wide: float) -> Markup:
    """One sublayer at one budget."""
    share = 0.0 if s is None else words.ratio(s.units, s.units_before)
    x, y = corner
    place = {"x": x + 0.5, "y": y + 0.5, "width": wide - 1, "height": LAYER - 1}
    ground = tag("rect", **place, class_="track")
    if s is None or not share > 0:
        return ground
    full = tag("rect", **place, class_=colour(words.parts_of(s)[2]), fill_opacity=0.15 + 0.85 * share)
    return group(f"{s.name} at {report.macs_kept:.0%}: {words.kept_of([s])}", ground, full)
