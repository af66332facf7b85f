"""report.html: every section, the figures in its pictures, and nothing of a stranger's that is markup."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import reports
from badness import bad_input
from faster_pruner.errors import DataError
from faster_pruner.report.page import pictures, tried, words
from faster_pruner.report.page.drawing import Axis, Picture
from faster_pruner.report.page.family import Member, family_page, family_pictures
from faster_pruner.report.page.markup import escaped, tag
from faster_pruner.report.page.page import page
from faster_pruner.report.page.stored import read_result
from faster_pruner.report.page.tokens import tokens_page
from faster_pruner.results import Lengths, LimitResult, PruneReport, strict_json

SPLIT = "validation"


def parsed(text: str) -> ElementTree.Element:
    """A page, which is XML, too."""
    head, _, rest = text.partition("\n")
    assert head == "<!doctype html>"
    return ElementTree.fromstring(rest)


def drawn(picture: Picture | None) -> ElementTree.Element:
    """A picture as elements."""
    assert picture is not None
    return ElementTree.fromstring(picture.inline())


def said(element: ElementTree.Element) -> str:
    """All text in an element."""
    return " ".join(" ".join(element.itertext()).split())


def titles(text: str) -> list[str]:
    """Of the sections."""
    return [said(each) for each in parsed(text).iter("h2")]


def of_class(element: ElementTree.Element, name: str, element_name: str = "rect") -> list[ElementTree.Element]:
    return [each for each in element.iter(element_name) if name in each.get("class", "").split()]


def whole(**changes: object) -> str:
    return page(reports.report(**changes), masks=reports.masks())


def test_every_section_is_there() -> None:
    report = reports.report(distillation=reports.distillation())
    text = page(report, masks=reports.masks(), vocabulary=reports.vocabulary())
    assert titles(text) == [
        "To know before it is used",
        "Quality",
        "Size and speed",
        "Vocabulary",
        "Layer by layer",
        "Distillation",
        "Calibration",
        "Time",
        "Provenance",
    ]
    shown = said(parsed(text))
    for figure in (
        "−0.57 against 92.43 dense (95%: −1.61 to +0.46, within noise)",
        "1.89×",
        "267.2 MB",
        "438.0 MB dense; 39.0% saved",
        "of the encoder's MACs: 49.8% are left",
        "24 sublayers, 22 converged, 2 max-iterations",
        "12 (0.6%)",
        "31337 of 250002",
        "9f" * 32,
        "what the reopened checkpoint returns is bit-equal on 310 rows",
        "second-order",
    ):
        assert figure in shown, figure


def test_what_was_tried_is_shown() -> None:
    """The sizes on the way to the smallest model within a drop: a line for each, and a picture."""
    text = page(reports.searched(), masks=reports.masks())
    assert "What was tried" in titles(text)
    assert "What was tried" not in titles(whole())
    shown = said(parsed(text))
    for figures in ("50.0% 92.20 −0.40 −0.90 to +0.10 yes", "25.0% 90.10 −2.50 −3.40 to −1.60 no"):
        assert figures in shown
    assert "accuracy of the dense model: 92.60" in shown


def test_the_picture_of_what_was_tried() -> None:
    """Filled where it is within the drop, each at its share and its change, and a line at what may be lost."""
    picture = tried.tried(reports.searched())
    found = drawn(picture)
    spots = found.findall(".//{*}circle") or list(found.iter("circle"))
    by_share = sorted(reports.probes(), key=lambda probe: probe.macs)
    assert ["hollow" not in spot.get("class", "") for spot in spots] == [probe.within for probe in by_share]
    across = [float(spot.get("cx", "")) for spot in spots]
    per_percent = (across[-1] - across[0]) / (50 - 25)
    assert across == pytest.approx([across[0] + per_percent * (100 * p.macs - 25) for p in by_share], abs=0.2)
    # the dense model's line is at no change, the mark at a point less: heights are linear in the change
    (dense,), (mark,) = (of_class(found, name, "line") for name in ("dashed", "mark"))
    zero, point = float(dense.get("y1", "")), float(mark.get("y1", ""))
    heights = [float(spot.get("cy", "")) for spot in spots]
    changes = [probe.after - probe.before for probe in by_share]
    assert heights == pytest.approx([zero - (point - zero) * change for change in changes], abs=0.3)
    # where the options say nothing of a drop, or a loss is judged
    assert not of_class(drawn(tried.tried(reports.report(probes=reports.probes()))), "mark", "line")
    broken = [replace(probe, low=math.nan) for probe in reports.probes()]
    assert tried.tried(reports.report(probes=broken)) is None
    assert "not known" in said(parsed(whole(probes=broken)))


def test_limits_in_time_have_their_unit() -> None:
    limit = LimitResult(
        cost="latency", dense=0.02, asked=0.008, pruned=0.0077, measured=0.00812, where="1 x 128 in torch"
    )
    shown = said(parsed(whole(limits=[limit])))
    assert "latency, 1 x 128 in torch 20 ms 8 ms 8.12 ms" in shown
    assert "of the latency: 40.6% are left" in shown


def test_a_change_beyond_the_noise_is_not_called_noise() -> None:
    sure = replace(reports.report().confidence[SPLIT], change=(-3.0, -1.0))
    assert "within noise" not in whole(confidence={SPLIT: sure})
    assert "within noise" in whole()


def test_what_was_not_measured_is_said() -> None:
    text = whole(before={}, after={}, confidence={}, latency=[], lengths=None, seconds={}, limits=[], warnings=[])
    assert titles(text) == ["Size and speed", "Layer by layer", "Calibration", "Provenance"]
    assert "not evaluated" in text
    assert "not timed" in text
    without_masks = page(reports.report(lengths=replace(lengths(), truncated=None)), masks={})
    assert "not known" in said(parsed(without_masks))


def lengths() -> Lengths:
    found = Lengths.of([3, 4, 4, 9])
    assert found is not None
    return found


def test_the_same_result_gives_the_same_bytes() -> None:
    assert whole() == whole()
    assert whole(seconds={"load": 2.0}) != whole()


@pytest.mark.parametrize("make", ["page", "family", "tokens"])
def test_it_needs_nothing_but_itself(make: str) -> None:
    """No script, no frame, no font, no address that a browser would fetch."""
    text = {
        "page": whole,
        "family": lambda: family_page(members()),
        "tokens": lambda: tokens_page(reports.vocabulary()),
    }[make]()
    names = {each.tag for each in parsed(text).iter()}
    assert not names & {"script", "iframe", "img", "object", "embed", "base", "form", "use", "image"}
    assert not re.search(r"@import|url\(|https?://|//[a-z]", text)
    for each in parsed(text).iter():
        assert not any(name.startswith("on") or name == "src" for name in each.attrib)
        assert each.get("href", "data:,") == "data:," or not each.get("href", "").startswith(
            ("/", "http", "javascript")
        )
    assert "default-src 'none'" in text.replace("&#x27;", "'")


def test_both_themes_and_paper_are_described() -> None:
    text = whole()
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text
    assert 'name="viewport"' in text
    assert 'content="light dark"' in text
    # every colour of the light theme has one in the dark theme
    light, dark = (set(re.findall(r"(--[a-z]+): #", part)) for part in text.split("@media screen", 1))
    assert light == dark != set()


@pytest.mark.parametrize("make", ["page", "family", "tokens"])
def test_whoever_does_not_see_it_is_told(make: str) -> None:
    made = {
        "page": whole,
        "family": lambda: family_page(members()),
        "tokens": lambda: tokens_page(reports.vocabulary()),
    }[make]()
    root = parsed(made)
    assert root.get("lang") == "en"
    images = list(root.iter("svg"))
    assert images
    for each in images:
        assert each.get("role") == "img"
        assert len(each.get("aria-label", "")) > 30
        assert said(each[0])
        assert each[0].tag == "title"
    for table in root.iter("table"):
        assert table[0].tag == "caption"
        assert said(table[0])
        assert all(row[0].tag == "th" for row in table.iter("tr"))


def test_a_strangers_names_are_text() -> None:
    bad = reports.HOSTILE
    bad_input("a report of a model with a hostile name")
    report = reports.report(
        model=bad,
        task=bad,
        preset=bad,
        verified=bad,
        warnings=[bad],
        environment={bad: bad},
        options={bad: {bad: [bad]}},
        before={bad: reports.evaluation(90.0, bad, bad)},
        after={bad: reports.evaluation(89.0, bad, bad)},
        seconds={bad: 1.0},
        calibration_hash=bad,
        sublayers=[replace(s, name=bad + s.name, note=bad, solver=bad, unit=bad) for s in reports.sublayers()],
    )
    names = {each.tag for each in parsed(page(report, masks={})).iter()}
    assert not names & {"script", "img"}
    family = [Member(bad, report, link="javascript:alert(1)", failed=bad), Member(bad, None, failed=bad)]
    assert not {each.tag for each in parsed(family_page(family)).iter()} & {"script", "img"}
    for picture in [*pictures.of_a_model(report, {}), *family_pictures(family)]:
        ElementTree.fromstring(picture.standalone())
        assert re.fullmatch(r"[A-Za-z0-9-]+", picture.name)


def test_nothing_escapes_the_escaping() -> None:
    assert escaped("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    assert escaped("\x00\ud800\u202eb") == "\N{REPLACEMENT CHARACTER}" * 3 + "b"
    assert tag("p", "<b>", tag("b", "x"), class_='"') == '<p class="&quot;">&lt;b&gt;<b>x</b></p>'


def test_heads_are_drawn_as_they_are_left() -> None:
    """Each filled cell is a unit that is left; bars are as long as what is left."""
    report, masks = reports.report(), reports.masks()
    picture = drawn(pictures.kept(report, masks))
    hints = {said(g[0]).split(":")[0]: g for g in picture.iter("g") if g and g[0].tag == "title"}
    for s in report.sublayers:
        group = hints[s.name]
        assert f"{s.units} of {s.units_before}" in said(group)
        if s.name in masks:
            cells = list(group.iter("rect"))
            assert "".join("1" if "attention" in cell.get("class", "") else "0" for cell in cells) == masks[s.name]
        else:
            (full,), (left,) = of_class(group, "track"), of_class(group, "ffn")
            share = float(left.get("width", "")) / float(full.get("width", ""))
            assert share == pytest.approx(s.units / s.units_before, abs=2e-3)
    heads = sum(s.units for s in report.sublayers if s.unit == "head")
    assert f"attention: {heads} of 144 heads kept" in picture.get("aria-label", "")
    assert len(of_class(picture, "attention")) == heads + 1  # and the legend


def test_stacks_and_other_kinds_have_panels_of_their_own() -> None:
    own = [
        replace(s, name=s.name.replace("layers", stack).replace("ffn", kind))
        for stack, kind in (("encoder", "ffn"), ("decoder", "cross-attention"))
        for s in reports.sublayers(2)
    ]
    for picture in (
        pictures.kept(reports.report(sublayers=own), {}),
        pictures.residuals(reports.report(sublayers=own)),
    ):
        text = said(drawn(picture))
        assert all(word in text for word in ("encoder", "decoder", "cross-attention", "ffn"))
    odd = [replace(s, name=f"something{i}") for i, s in enumerate(reports.sublayers(2))]
    assert "something3" in said(drawn(pictures.kept(reports.report(sublayers=odd), {})))
    assert pictures.kept(reports.report(sublayers=[]), {}) is None


def test_residuals_are_where_the_axis_says() -> None:
    report = reports.report()
    picture = drawn(pictures.residuals(report))
    ticks = {
        float(said(each)): float(each.get("x", ""))
        for each in of_class(picture, "middle", "text")
        if re.fullmatch(r"[\d.]+", said(each))
    }
    (low, high), at = (min(ticks), max(ticks)), {}
    for group in (g for g in picture.iter("g") if g and g[0].tag == "title"):
        dots = sorted(group.iter("circle"), key=lambda dot: "hollow" not in dot.get("class", ""))
        at[said(group[0]).split(":")[0]] = [float(dot.get("cx", "")) for dot in dots]
    for s in report.sublayers:
        for value, x in zip((s.residual_before, s.residual_after), at[s.name], strict=True):
            assert value is not None
            wanted = ticks[low] + (value - low) / (high - low) * (ticks[high] - ticks[low])
            assert x == pytest.approx(wanted, abs=0.02)
    nowhere = [replace(s, residual_before=None) for s in report.sublayers]
    assert pictures.residuals(reports.report(sublayers=nowhere)) is None


def test_bars_are_as_long_as_their_figures() -> None:
    report = reports.report()
    picture = drawn(pictures.sizes(report))
    widths = [float(each.get("width", "")) for each in of_class(picture, "pruned")]
    full = {float(each.get("width", "")) for each in of_class(picture, "track")}.pop()
    shares = [
        report.pruned.macs / report.dense.macs,
        report.pruned.encoder_parameters / report.dense.encoder_parameters,
        report.pruned.parameters / report.dense.parameters,
        report.pruned.bytes / report.dense.bytes,
    ]
    assert [width / full for width in widths] == pytest.approx(shares, abs=1e-3)
    # what was asked for is marked once: of the MACs
    assert len(of_class(picture, "mark", "line")) == 1
    seconds = drawn(pictures.times(report.seconds))
    bars = [float(each.get("width", "")) for each in of_class(seconds, "pruned")]
    assert [bar / max(bars) for bar in bars] == pytest.approx([s / 61 for s in report.seconds.values()], abs=1e-3)


def test_a_histogram_counts_every_row_once() -> None:
    values = [5 + (i * i) % 61 for i in range(2048)]
    found = Lengths.of(values, truncated=3)
    assert found is not None
    assert sum(found.rows) == len(values)
    for low, above, rows in zip(found.edges, found.edges[1:], found.rows, strict=False):
        assert rows == sum(low <= value < above for value in values)
    assert (found.shortest, found.longest) == (min(values), max(values))
    assert found.median == sorted(values)[1023] / 2 + sorted(values)[1024] / 2
    heights = [float(each.get("height", "")) for each in of_class(drawn(pictures.lengths(found)), "pruned")]
    most = max(found.rows)
    assert [height / max(heights) for height in heights] == pytest.approx([n / most for n in found.rows], abs=1e-3)
    same = Lengths.of([197] * 7)
    assert same is not None
    assert (same.edges, same.rows) == ([197, 198], [7])
    assert Lengths.of([]) is None
    assert pictures.lengths(same).height > 0


def test_a_distillation_is_shown_with_the_state_that_was_kept() -> None:
    picture = drawn(pictures.distilled(reports.distillation()))
    dots = list(picture.iter("circle"))
    assert len(dots) == 6
    assert [i for i, dot in enumerate(dots) if "hollow" not in dot.get("class", "").split()] == [4]
    assert pictures.distilled(reports.distillation(history=[])) is None
    text = page(reports.report(distillation=reports.distillation(note="it could not be kept")), masks={})
    assert "not distilled" in text
    assert "it could not be kept" in text


def members() -> list[Member]:
    found = [Member(name, report, link=f"{name}/report.html") for name, report in reports.family().items()]
    return [*found, Member("macs-0.01", None, failed="the smallest that can be built takes more")]


def test_a_family_is_shown_against_its_budgets() -> None:
    root = parsed(family_page(members()))
    shown = said(root)
    assert "accuracy at 10% of the MACs 86.20 −6.23 against the dense model (95%: −7.13 to −5.33)" in shown
    assert "macs-0.01: the smallest that can be built takes more" in shown
    assert [each.get("href") for each in root.iter("a")] == [f"macs-{s}/report.html" for s in (0.9, 0.7, 0.5, 0.3, 0.1)]
    quality, speed, layers = family_pictures(members())
    # a dot for each model and one for the dense one; an interval for each model
    assert len(list(drawn(quality).iter("circle"))) == 6
    assert len(of_class(drawn(quality), "span", "line")) == 5
    assert "10%: 86.20; 30%: 90.10; 50%: 91.86" in quality.description
    assert "10%: 9.50×" in speed.description
    assert len(of_class(drawn(layers), "track")) == 5 * 24
    opacities = [float(each.get("fill-opacity", 1)) for each in of_class(drawn(layers), "attention")]
    assert max(opacities) > min(opacities)


def test_a_family_of_file_sizes_is_drawn_over_file_sizes() -> None:
    limits = [replace(reports.report().limits[0], cost="bytes")]
    found = family_pictures([Member(n, replace(r, limits=limits)) for n, r in reports.family().items()])
    assert "weights file kept" in said(drawn(found[0]))
    unjudged = [Member(n, replace(r, before={}, after={}, confidence={})) for n, r in reports.family().items()]
    assert [picture.name for picture in family_pictures(unjudged)] == ["speed", "layers"]
    family_page([Member(n, replace(r, latency=[], sublayers=[], before={})) for n, r in reports.family().items()])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300, -5.0])
def test_odd_figures_are_shown_all_the_same(value: float) -> None:
    bad_input(f"a metric of {value}")
    report = reports.report(
        after={SPLIT: reports.evaluation(value)},
        confidence={SPLIT: replace(reports.report().confidence[SPLIT], change=(value, value))},
        latency=[replace(each, speed_up=value) for each in reports.report().latency if value > 0 or math.isnan(value)],
        sublayers=[replace(s, residual_after=value, solve_residual=value) for s in reports.sublayers(2)],
        seconds={"load": value},
        distillation=reports.distillation(history=[(0, value), (5, value)], after=value),
    )
    parsed(page(report, masks={}))
    parsed(family_page([Member("a", report)]))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([92.43, 91.86, 90.6], [90.5, 91, 91.5, 92, 92.5]),
        ([7.0], [6.6, 6.8, 7.0, 7.2, 7.4]),
        ([3, 3000], [0, 1000, 2000, 3000]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], ticks: list[float]) -> None:
    axis = Axis.over(values, 10.0, 110.0)
    assert axis.ticks == pytest.approx(ticks)
    assert all(axis.low <= value <= axis.high for value in values)
    assert (axis.at(axis.low), axis.at(axis.high)) == (10.0, 110.0)
    assert [float(axis.label(tick)) for tick in axis.ticks] == pytest.approx(ticks)


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    report = reports.report(distillation=reports.distillation())
    odd = replace(report, after={SPLIT: reports.evaluation(math.nan)})
    for each in (report, odd):
        found = {**each.to_json(), "vocabulary": reports.vocabulary().to_json(), "files": ["x"], "of the future": 1}
        (tmp_path / "result.json").write_text(strict_json(found))
        (tmp_path / "masks.json").write_text(json.dumps(reports.masks()))
        stored = read_result(tmp_path, "masks.json")
        assert stored.report is not None
        assert stored.report.to_json() == each.to_json()
        assert stored.vocabulary == reports.vocabulary()
        assert stored.masks == reports.masks()
    assert page(stored.report, masks={}) == page(odd, masks={})


def test_a_result_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    found = reports.report().to_json()
    for name in ("lengths", "distillation", "limits"):
        del found[name]
    for s in found["sublayers"]:
        del s["unit"], s["solve_residual"]
    (tmp_path / "result.json").write_text(strict_json(found))
    (tmp_path / "masks.json").write_text('{"layers.0.attention": "x", "layers.1.attention": 3}')
    stored = read_result(tmp_path, "masks.json")
    assert isinstance(stored.report, PruneReport)
    assert stored.masks == {}
    assert "units" in page(stored.report, masks=stored.masks)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sublayers": 3}, "sublayers is not what it should be"),
        ({"sublayers": [{"name": "x"}]}, "sublayers.units_before is missing"),
        ({"dense": []}, "dense is no object"),
        ({"macs_kept": "half"}, "macs_kept"),
        ({"macs_kept": True}, "macs_kept"),
        ({"before": {"validation": None}}, "before is no object"),
        ({"confidence": {"v": {"metric": "a", "before": [1], "after": [1, 2], "change": [1, 2]}}}, "confidence.before"),
        ({"lengths": {"edges": [1.5]}}, "lengths.edges"),
        ({"vocabulary": [1]}, "no object"),
        (None, "no result of a pruned model"),
    ],
)
def test_what_is_no_result_is_said(change: dict[str, object] | None, reason: str, tmp_path: Path) -> None:
    found = {} if change is None else {**reports.report().to_json(), **change}
    (tmp_path / "result.json").write_text(strict_json(found))
    bad_input(f"a result.json with {change}")
    with pytest.raises(DataError, match=re.escape(reason)):
        read_result(tmp_path, "masks.json")


@pytest.mark.parametrize("content", [None, "", "[", "null", "3", "[" * 100_000])
def test_what_is_no_json_is_said(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    bad_input(f"result.json: {str(content)[:20]}")
    with pytest.raises(DataError, match=r"result\.json"):
        read_result(tmp_path, "masks.json")


def test_numbers_are_written_as_people_write_them() -> None:
    assert words.change("accuracy", -0.5) == "−0.50"
    assert words.change("loss", 0.5) == "+0.5000"
    assert words.metric("accuracy", math.nan) == "not known"
    assert words.count(85_054_464) == "85.05 M"
    assert words.size(267_210_112) == "267.2 MB"
    assert words.seconds(600.0) == "10.0 min"
