"""report.html: one run on one page that needs nothing but itself.

No script, no font, no address: text, tables and pictures in SVG, in the reader's light or dark theme, on a phone and on
paper. The same result gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from faster_pruner.report.headline import headline, speed_up
from faster_pruner.report.page import pictures, words
from faster_pruner.report.page.drawing import Picture
from faster_pruner.report.page.layout import document, figure, section, side_by_side, tiles
from faster_pruner.report.page.markup import Markup, breakable, pairs, table, tag
from faster_pruner.report.page.tokens import tokens_section
from faster_pruner.report.page.tried import tried_section
from faster_pruner.report.summary import COST_WORDS, distilled
from faster_pruner.results import PruneReport
from faster_pruner.vocabulary.measured import VocabularyReport


def page(report: PruneReport, *, masks: Mapping[str, str], vocabulary: VocabularyReport | None = None) -> str:
    """What was asked for, what came out, and what was done to every layer.

    Args:
        report: of the run.
        masks: by name of sublayer a digit for each unit of the dense model, 1 kept, 0 removed; may be empty.
        vocabulary: what was measured of its tokens, where those were pruned, too.
    """
    name = Path(report.model).name or report.model
    title = f"{name}, pruned to {report.macs_kept:.0%} of its encoder's MACs"
    drawn = {picture.name: picture for picture in pictures.of_a_model(report, masks)}
    sections = [
        tag("header", tag("h1", title), tag("p", headline(report)), _tiles(report)),
        _notes(report.warnings),
        section("Quality", *_quality(report)) if report.before else None,
        section("Size and speed", *_sizes(drawn, report)),
        tried_section(report),
        None if vocabulary is None else tokens_section(vocabulary),
        section("Layer by layer", *_layers(drawn, report)) if report.sublayers else None,
        _distillation(drawn, report),
        section("Calibration", *_calibration(drawn, report)),
        section("Time", *_shown(drawn, "times")) if "times" in drawn else None,
        section("Provenance", _provenance(report)),
    ]
    return document(title, *(each for each in sections if each is not None))


def _shown(drawn: Mapping[str, Picture], *names: str) -> list[Markup]:
    return [side_by_side(*(figure(drawn[name]) for name in names if name in drawn))]


def _tiles(report: PruneReport) -> Markup:
    """Asked, and got."""
    found = [_asked(report)]
    for split, before in report.before.items():
        after, name = report.after[split], before.primary
        sure = report.confidence.get(split)
        moved = f"{words.change(name, after.value - before.value)} against {words.metric(name, before.value)} dense"
        if sure is not None and sure.metric == name:
            noise = ", within noise" if sure.change[0] <= 0 <= sure.change[1] else ""
            moved += f" (95%: {words.interval(name, sure.change, signed=True)}{noise})"
        found.append((f"{name}, {split}", words.metric(name, after.value), moved))
    if not report.before:
        found.append(("Accuracy", "not evaluated", "no rows were given to judge by, or none could be judged"))
    found.append(_speed(report))
    dense, pruned = report.dense, report.pruned
    saved = words.percent(1 - words.ratio(pruned.bytes, dense.bytes)).replace("-", words.MINUS)
    found.append(("Weights file", words.size(pruned.bytes), f"{words.size(dense.bytes)} dense; {saved} saved"))
    return tiles(found)


def _asked(report: PruneReport) -> tuple[str, str, str]:
    """The budget."""
    limits = [(COST_WORDS.get(each.cost, each.cost), each) for each in report.limits]
    if not limits:
        return "Asked for", "no budget", f"{words.percent(report.macs_kept)} of the encoder's MACs are left"
    first = " and ".join(f"{words.ratio(each.asked, each.dense):.0%}" for _, each in limits)
    more = "; ".join(
        f"of the {what}: {words.percent(words.ratio(each.spent, each.dense))} are left" for what, each in limits
    )
    return "Asked for", first, more


def _speed(report: PruneReport) -> tuple[str, str, str]:
    """The speed-up at the largest shape, and the range over all of them."""
    most = speed_up(report)
    if most is None:
        return "Measured speed-up", "not timed", "the latency was not measured"
    shape = max(report.latency, key=lambda each: each.batch * each.sequence)
    every = [each.speed_up for each in report.latency]
    more = f"at {shape.batch} {words.TIMES} {shape.sequence} (rows {words.TIMES} tokens)"
    if len(every) > 1:
        more += f"; {words.faster(min(every))} to {words.faster(max(every))} over {len(every)} shapes"
    return "Measured speed-up", words.faster(most), more


def _notes(warnings: Sequence[str]) -> Markup | None:
    """What to know before the model is trusted."""
    if not warnings:
        return None
    return section("To know before it is used", tag("ul", *(tag("li", each) for each in warnings), class_="notes"))


def _quality(report: PruneReport) -> Iterator[Markup]:
    """Pictures of the primary metrics, and all metrics in a table."""
    drawn = [figure(p) for split in report.before if (p := pictures.quality(report, split)) is not None]
    rows: list[list[str]] = []
    recovered = {} if report.distillation is None else report.distillation.recovered
    for split, before in report.before.items():
        sure = report.confidence.get(split)
        where = f"{split}: " if len(report.before) > 1 else ""
        for name, value in before.metrics.items():
            after = report.after[split].metrics[name]
            if split in recovered and name == before.primary:
                own = recovered[split].metrics[name]
                rows.append([f"{where}{name}, not distilled", words.metric(name, value), words.metric(name, own)])
                rows[-1] += [words.change(name, own - value), ""]
            sides = words.interval(name, sure.change, signed=True) if sure is not None and sure.metric == name else ""
            cells = [words.metric(name, value), words.metric(name, after), words.change(name, after - value)]
            rows.append([f"{where}{name}", *cells, sides])
    judged = ", ".join(f"{each.rows} rows of {split}" for split, each in report.before.items())
    head = ["metric", "dense", "pruned", "change", "95% interval"]
    metrics = table(
        f"All metrics, on {judged}. The interval is the change's, from a paired bootstrap over the rows.", head, rows
    )
    yield side_by_side(*drawn, metrics)


def _sizes(drawn: Mapping[str, Picture], report: PruneReport) -> Iterator[Markup]:
    """Pictures and figures of sizes, limits and latency."""
    yield from _shown(drawn, "sizes", "speed")
    dense, pruned = report.dense, report.pruned
    sizes = [
        ("encoder's MACs", words.count(dense.macs), words.count(pruned.macs)),
        ("encoder's parameters", words.count(dense.encoder_parameters), words.count(pruned.encoder_parameters)),
        ("all parameters", words.count(dense.parameters), words.count(pruned.parameters)),
        ("weights file", words.size(dense.bytes), words.size(pruned.bytes)),
    ]
    tables = [table(f"Sizes. MACs are of one row of {report.mean_length:.1f} tokens.", ["", "dense", "pruned"], sizes)]
    if report.latency:
        rows = [
            [
                f"{each.batch} {words.TIMES} {each.sequence}",
                f"{each.dense_ms:.2f} ms",
                f"{each.pruned_ms:.2f} ms",
                words.faster(each.speed_up),
            ]
            for each in report.latency
        ]
        head = [f"rows {words.TIMES} tokens", "dense", "pruned", "speed-up"]
        tables.append(table("Latency of one forward, the median.", head, rows))
    limits = [
        [
            f"{COST_WORDS.get(each.cost, each.cost)}{f', {each.where}' if each.where else ''}",
            words.amount(each, each.dense),
            words.amount(each, each.asked),
            words.amount(each, each.spent),
        ]
        for each in report.limits
    ]
    if limits:
        caption = "The budget. What cannot be pruned counts, too."
        tables.append(table(caption, ["limit on", "dense", "at most", "pruned"], limits))
    yield side_by_side(*tables, look="row")


def _layers(drawn: Mapping[str, Picture], report: PruneReport) -> Iterator[Markup]:
    """What was removed where, how well that was repaired, and how every solve ended."""
    ended: dict[str, int] = {}
    for s in report.sublayers:
        ended[s.status or "no recovery"] = ended.get(s.status or "no recovery", 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in ended.items())
    head = [
        "sublayer",
        "kept",
        "error before",
        "after",
        "inputs before",
        "after",
        "solver",
        "status",
        "steps",
        "residual",
    ]
    rows = [
        [
            s.name,
            f"{s.units} of {s.units_before}",
            *map(_three, (s.residual_before, s.residual_after, s.drift_before, s.drift_after)),
            s.solver,
            s.status,
            str(s.iterations or ""),
            "" if s.solve_residual is None else f"{s.solve_residual:.0e}".replace("-", words.MINUS),
        ]
        for s in report.sublayers
    ]
    caption = (
        f"{len(report.sublayers)} sublayers, {told}. Error: of what the sublayer adds, relative to the dense model. "
        "Inputs: the same of what it reads. Residual: of the linear system that was solved."
    )
    yield from _shown(drawn, "kept", "residuals")
    yield table(caption, head, rows, text=("solver", "status"))
    notes = [f"{s.name}: {s.note}" for s in report.sublayers if s.note]
    notes = [note for note in notes if note not in report.warnings]
    if notes:
        yield tag("ul", *(tag("li", note) for note in notes), class_="notes")


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _distillation(drawn: Mapping[str, Picture], report: PruneReport) -> Markup | None:
    """What training towards the dense model did."""
    found = report.distillation
    if found is None:
        return None
    told = distilled(found).removeprefix("distillation: ")
    more = [found.note] if found.note else []
    words_of_it = tag("div", *(tag("p", each) for each in (told, *more)))
    pictured = [figure(drawn["distillation"])] if "distillation" in drawn else []
    return section("Distillation", side_by_side(*pictured, words_of_it))


def _calibration(drawn: Mapping[str, Picture], report: PruneReport) -> Iterator[Markup]:
    """The rows that it was calibrated on."""
    options = cast("dict[str, Any]", report.options.get("calibration") or {})
    rows = [("rows", f"{report.calibration_rows} (of at most {options.get('rows', words.UNKNOWN)})")]
    if (found := report.lengths) is not None:
        cut = words.UNKNOWN
        if found.truncated is not None:
            cut = f"{found.truncated} ({words.percent(words.ratio(found.truncated, sum(found.rows)))})"
        rows += [
            ("tokens of a row", f"{found.shortest} to {found.longest}, the median {found.median:g}"),
            ("longest row allowed", str(options.get("max_length", words.UNKNOWN))),
            ("rows cut at it", cut),
        ]
    rows += [
        ("mean tokens of a row", f"{report.mean_length:.1f}"),
        ("SHA-256 of tokens and labels", report.calibration_hash or words.UNKNOWN),
    ]
    content = [figure(drawn["lengths"])] if "lengths" in drawn else []
    yield side_by_side(*content, pairs("The calibration set", rows))


def _provenance(report: PruneReport) -> Markup:
    """What went in, and what was checked."""
    rows = [
        ("dense model", report.model),
        ("task", report.task),
        ("preset", report.preset),
        ("verified", report.verified or "not saved"),
        ("plain transformers opens it", "yes" if report.opens_plain else "no"),
        ("passes in", report.precision or words.UNKNOWN),
        *report.environment.items(),
    ]
    options = [(breakable(path), value) for path, value in _flat(report.options)]
    return side_by_side(
        pairs("What it was made of and with. All figures are in result.json.", rows), pairs("Options", options)
    )


def _flat(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested options as lines: a path and a value."""
    for key, value in options.items():
        path = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{path}.")
        else:
            yield path, "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
