"""The pictures of one pruned model; each is None where the report has nothing for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from faster_pruner.report.page import words
from faster_pruner.report.page.drawing import (
    ROW,
    WIDTH,
    Axis,
    Bar,
    Picture,
    bars,
    below,
    beside,
    dot,
    group,
    line,
    rectangle,
    text,
    width_of,
)
from faster_pruner.report.page.markup import Markup, joined, tag
from faster_pruner.results import Confidence, DistillationResult, Lengths, PruneReport, SublayerResult

# Colours by kind of sublayer; all other kinds share one.
_KINDS = {"attention": "attention", "ffn": "ffn"}
AXIS = 36.0
# Units (heads, groups) are drawn one by one where there are at most so many.
_MOST_CELLS = 32
LAYER = 16.0

# One layer of a stack: its sublayers by kind.
Layers = dict[str, dict[str, SublayerResult]]


def colour(kind: str) -> str:
    """The class of a kind of sublayer."""
    return _KINDS.get(kind.split(":")[0], "other")


def moved(y: float, *parts: Markup) -> Markup:
    """Elements, further down."""
    return tag("g", *parts, transform=f"translate(0 {y:.0f})")


def by_stack(sublayers: Sequence[SublayerResult]) -> dict[str, Layers]:
    """Sublayers by stack, layer and kind, in their order."""
    found: dict[str, Layers] = {}
    for each in sublayers:
        stack, layer, kind = words.parts_of(each)
        found.setdefault(stack, {}).setdefault(layer, {})[kind] = each
    return found


def kept(report: PruneReport, masks: Mapping[str, str]) -> Picture | None:
    """Which units are left in every layer.

    Args:
        report: of the run.
        masks: by name of sublayer a digit for each unit, 1 kept; without one for a sublayer it is a bar.
    """
    if not report.sublayers:
        return None
    parts: list[Markup] = []
    top = 0.0
    stacks = by_stack(report.sublayers)
    for stack, layers in stacks.items():
        if len(stacks) > 1:
            parts.append(text(0, top + ROW / 2, stack or "elsewhere", "strong"))
            top += ROW
        drawn, height = _stack(layers, masks)
        parts.append(moved(top, drawn))
        top += height + 10
    told = "; ".join(f"{kind}: {words.kept_of(own)} kept" for kind, own in _by_kind(report.sublayers).items())
    singly = any(s.name in masks and s.units_before <= _MOST_CELLS for s in report.sublayers)
    note = "Filled: kept; empty: removed." + (
        " Heads are drawn one by one, the first one on the left." if singly else ""
    )
    return Picture("kept", "What is left of every layer", told, joined(parts), top, note)


def _by_kind(sublayers: Sequence[SublayerResult]) -> dict[str, list[SublayerResult]]:
    """Sublayers of each kind, over all stacks."""
    found: dict[str, list[SublayerResult]] = {}
    for each in sublayers:
        _, _, kind = words.parts_of(each)
        found.setdefault(kind, []).append(each)
    return found


def _stack(layers: Layers, masks: Mapping[str, str]) -> tuple[Markup, float]:
    """A panel for each kind of sublayer, a line for each layer; and how high that is."""
    kinds = list(dict.fromkeys(kind for layer in layers.values() for kind in layer))
    left, gap, head = width_of(layers) + 10, 18.0, 2 * ROW - 2
    panel = (WIDTH - left - gap * (len(kinds) - 1)) / len(kinds)
    parts: list[Markup] = []
    for column, kind in enumerate(kinds):
        x, own = left + column * (panel + gap), [layer[kind] for layer in layers.values() if kind in layer]
        parts += [
            rectangle(x, 5, 10, 10, colour(kind)),
            text(x + 15, ROW / 2, kind, "strong"),
            text(x, ROW * 1.4, words.kept_of(own), "small"),
        ]
        bar = panel - width_of(f"{s.units}/{s.units_before}" for s in own) - 8
        most = max(s.units_before for s in own)
        for row, layer in enumerate(layers.values()):
            if kind in layer:
                y = head + row * LAYER
                parts.append(_units(layer[kind], masks.get(layer[kind].name, ""), x, y, bar / max(1, most)))
                label = f"{layer[kind].units}/{layer[kind].units_before}"
                parts.append(text(x + panel, y + LAYER / 2, label, "end", "small"))
    for row, name in enumerate(layers):
        parts.append(text(left - 8, head + (row + 0.5) * LAYER, name, "end", "small"))
    return joined(parts), head + len(layers) * LAYER


def _units(sublayer: SublayerResult, mask: str, x: float, y: float, each: float) -> Markup:
    """The units of one sublayer, one by one or as a bar; each of them takes so many pixels."""
    _, _, kind = words.parts_of(sublayer)
    hint = f"{sublayer.name}: {words.kept_of([sublayer])} kept"
    high = LAYER - 4
    if len(mask) == sublayer.units_before <= _MOST_CELLS:
        cells = [
            rectangle(x + i * each + 0.75, y + 2, each - 1.5, high, colour(kind) if bit == "1" else "track")
            for i, bit in enumerate(mask)
        ]
        return group(hint, *cells)
    return group(
        hint,
        rectangle(x, y + 2, each * sublayer.units_before, high, "track"),
        rectangle(x, y + 2, each * sublayer.units, high, colour(kind)),
    )


def residuals(report: PruneReport) -> Picture | None:
    """The relative error of every sublayer before and after the recovery."""
    rows = [s for s in report.sublayers if s.residual_before is not None and s.residual_after is not None]
    if not rows:
        return None
    several = len({words.parts_of(s)[0] for s in rows}) > 1
    labels = [" ".join(filter(None, words.parts_of(s)[0 if several else 1 :])) for s in rows]
    left, height = min(WIDTH * 0.5, width_of(labels) + 12), len(rows) * LAYER
    axis = Axis.over([r for s in rows for r in _both(s)], left, WIDTH - 12, zero=True)
    parts = [below(axis, 0, height, "relative error against the dense model")]
    for place, (s, label) in enumerate(zip(rows, labels, strict=True)):
        y, (before, after) = (place + 0.5) * LAYER, _both(s)
        kind = colour(words.parts_of(s)[2])
        hint = f"{s.name}: {before:.3f} before, {after:.3f} after"
        looks = ((before, ("hollow", kind)), (after, (kind,)))
        spots = [dot(axis.at(value), y, *look) for value, look in looks if math.isfinite(value)]
        stroke = line(axis.at(before), y, axis.at(after), y, "span", kind)
        parts.append(group(hint, text(left - 10, y, label, "end", "small"), stroke, *spots))
    means = [sum(_both(s)[side] for s in rows) / len(rows) for side in (0, 1)]
    told = f"On average {means[0]:.3f} after cutting and {means[1]:.3f} after the recovery, over {len(rows)} sublayers"
    note = "Hollow: after cutting. Filled: after the recovery. In the order in which the model runs them."
    return Picture("residuals", "How well each sublayer was repaired", told, joined(parts), height + AXIS, note)


def _both(s: SublayerResult) -> tuple[float, float]:
    """Residuals before and after."""
    assert s.residual_before is not None
    assert s.residual_after is not None
    return s.residual_before, s.residual_after


def quality(report: PruneReport, split: str) -> Picture | None:
    """The primary metric of a split before and after with its intervals, and the interval of its change."""
    if split not in report.before or split not in report.after:
        return None
    before, after = report.before[split], report.after[split]
    name = before.primary
    sure = report.confidence.get(split)
    sure = sure if sure is not None and sure.metric == name else None
    rows = [("dense", before.value, None if sure is None else sure.before, "dense")]
    recovered = {} if report.distillation is None else report.distillation.recovered
    if split in recovered:
        rows.append(("not distilled", recovered[split].metrics[name], None, "dense"))
    rows.append(("pruned", after.value, None if sure is None else sure.after, "pruned"))
    told = [f"{label} {words.metric(name, value)}" for label, value, _, _ in rows]
    parts, height = _intervals(rows, name, f"{name}, {split}")
    found = [parts]
    if sure is not None and all(map(math.isfinite, (*sure.change, after.value, before.value))):
        drawn, more = _change(sure, after.value - before.value)
        found.append(moved(height + 8, drawn))
        height += 8 + more
        told.append(f"change {words.interval(name, sure.change, signed=True)}")
    note = "Dots: on all rows. Lines: 95% bootstrap intervals." if sure is not None else ""
    return Picture(f"quality-{plain(split)}", f"{name} on {split}", "; ".join(told), joined(found), height, note)


def plain(name: str) -> str:
    """A name as a part of a file's."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[:40]


def _intervals(
    rows: Sequence[tuple[str, float, tuple[float, float] | None, str]], name: str, title: str
) -> tuple[Markup, float]:
    """A dot and an interval for each of several values; and how high that is."""
    height, left = ROW * len(rows), 96.0
    values = [v for _, value, sure, _ in rows for v in (value, *(sure or ()))]
    axis = Axis.over(values, left, WIDTH - width_of(words.metric(name, row[1]) for row in rows) - 18)
    parts = [below(axis, 0, height, title)]
    for place, (label, value, sure, look) in enumerate(rows):
        y = (place + 0.5) * ROW
        own = [text(left - 10, y, label, "end")]
        if sure is not None and all(map(math.isfinite, sure)):
            own.append(line(axis.at(sure[0]), y, axis.at(sure[1]), y, "span", look))
        if math.isfinite(value):
            own.append(dot(axis.at(value), y, look))
        own.append(text(WIDTH, y, words.metric(name, value), "end"))
        parts.append(joined(own))
    return joined(parts), height + AXIS


def _change(sure: Confidence, value: float) -> tuple[Markup, float]:
    """The interval of a change, and where no change is."""
    label = words.change(sure.metric, value)
    axis = Axis.over([0.0, value, *sure.change], 96.0, WIDTH - width_of([label]) - 18)
    low, high = (axis.at(each) for each in sure.change)
    found = joined(
        [
            below(axis, 0, ROW, "change against the dense model"),
            line(axis.at(0), 0, axis.at(0), ROW, "mark"),
            text(86, ROW / 2, "change", "end"),
            line(low, ROW / 2, high, ROW / 2, "span", "pruned"),
            dot(axis.at(value), ROW / 2, "pruned"),
            text(WIDTH, ROW / 2, label, "end"),
        ]
    )
    return found, ROW + AXIS


def sizes(report: PruneReport) -> Picture:
    """What is left of the model by each measure, and what the budget asked for."""
    dense, pruned = report.dense, report.pruned
    asked = {limit.cost: words.ratio(limit.asked, limit.dense) for limit in report.limits}
    if report.macs_asked is not None:
        asked.setdefault("macs", report.macs_asked)
    known = [
        ("macs", "encoder's MACs", dense.macs, pruned.macs),
        ("", "encoder's parameters", dense.encoder_parameters, pruned.encoder_parameters),
        ("parameters", "all parameters", dense.parameters, pruned.parameters),
        ("bytes", "weights file", dense.bytes, pruned.bytes),
    ]
    own = {limit.cost: limit for limit in report.limits if limit.cost not in ("macs", "parameters", "bytes")}
    known += [(cost, cost, limit.dense, limit.spent) for cost, limit in own.items()]
    rows = [
        Bar(label, words.ratio(after, before), words.percent(words.ratio(after, before)), asked.get(cost))
        for cost, label, before, after in known
        if before
    ]
    drawn, height = bars(rows, most=_longest(rows))
    told = "; ".join(f"{row.label} {row.words}" for row in rows)
    note = "Share of the dense model. The line across a bar is what the budget allowed." if asked else ""
    return Picture("sizes", "What is left of the model", told, drawn, height, note)


def speed(report: PruneReport) -> Picture | None:
    """The measured speed-up at every shape."""
    if not report.latency:
        return None
    rows = [
        Bar(f"{each.batch} {words.TIMES} {each.sequence}", each.speed_up, words.faster(each.speed_up))
        for each in report.latency
    ]
    drawn, height = bars(rows, most=_longest(rows), at=1.0)
    told = "; ".join(f"{row.label} tokens {row.words}" for row in rows)
    note = "At rows \N{MULTIPLICATION SIGN} tokens, PyTorch eager, both models in turn. The line is the dense model."
    return Picture("speed", "Measured speed-up", told, drawn, height, note)


def _longest(rows: Sequence[Bar]) -> float:
    """Where bars end that show shares and multiples of the dense model, which is among them."""
    return max([1.0, *(row.value for row in rows if math.isfinite(row.value))])


def times(seconds: Mapping[str, float]) -> Picture | None:
    """Where the time of a run went."""
    rows = [Bar(stage, spent, words.seconds(spent)) for stage, spent in seconds.items()]
    if not rows:
        return None
    drawn, height = bars(rows, most=max(row.value for row in rows))
    told = "; ".join(f"{row.label} {row.words}" for row in rows)
    return Picture("times", "Where the time went", told, drawn, height)


def lengths(found: Lengths) -> Picture:
    """A histogram of the calibration rows by their length."""
    left, right, top, high = 52.0, WIDTH - 18, 6.0, 120.0
    across = Axis.over(found.edges, left, right)
    up = Axis.over(found.rows, high + top, top, zero=True)
    parts = [beside(up, left, right), below(across, high + top, high + top, "real tokens of a row")]
    for low, above, rows in zip(found.edges, found.edges[1:], found.rows, strict=False):
        x, to = across.at(low), across.at(above)
        what = str(low) if above == low + 1 else f"{low} to {above - 1}"
        own = rectangle(x + 0.5, up.at(rows), max(1.0, to - x - 1), high + top - up.at(rows), "pruned")
        parts.append(group(f"{what} tokens: {rows} rows", own))
    told = f"{sum(found.rows)} rows of {found.shortest} to {found.longest} tokens, the median {found.median:g}"
    return Picture("lengths", "How long the calibration rows are", told, joined(parts), high + top + AXIS)


def distilled(found: DistillationResult) -> Picture | None:
    """The divergence from the dense model on held-out rows over the steps of a distillation."""
    points = [(0, found.before), *((step, value) for step, value in found.history if step)]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) < 2:
        return None
    left, right, top, high = 60.0, WIDTH - 18, 8.0, 130.0
    across = Axis.over([step for step, _ in points], left, right, zero=True)
    up = Axis.over([value for _, value in points], high + top, top)
    path = "M" + "L".join(f"{across.at(step):.1f} {up.at(value):.1f}" for step, value in points)
    parts = [
        beside(up, left, right),
        below(across, high + top, high + top, "steps"),
        tag("path", d=path, class_="curve pruned"),
        *(_step(step, value, across, up, kept=step == found.best_step) for step, value in points),
    ]
    told = f"From {found.before:.4g} to {found.after:.4g}; what was kept is the state after step {found.best_step}"
    note = f"Mean divergence from the dense model on {found.held_out} held-out rows. Filled: the state that was kept."
    return Picture("distillation", "How the distillation went", told, joined(parts), high + top + AXIS, note)


def _step(step: int, value: float, across: Axis, up: Axis, *, kept: bool) -> Markup:
    """One evaluation of a distillation."""
    return group(f"step {step}: {value:.4g}", dot(across.at(step), up.at(value), "pruned" if kept else "pruned hollow"))


def of_a_model(report: PruneReport, masks: Mapping[str, str]) -> list[Picture]:
    """All that there are of one model."""
    found = [
        *(quality(report, split) for split in report.before),
        sizes(report),
        speed(report),
        kept(report, masks),
        residuals(report),
        None if report.distillation is None else distilled(report.distillation),
        times(report.seconds),
        None if report.lengths is None else lengths(report.lengths),
    ]
    return [picture for picture in found if picture is not None]
