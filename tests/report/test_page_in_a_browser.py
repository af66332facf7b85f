"""report.html as a browser shows it: nothing runs over, nothing is complained about, nothing is fetched.

Screenshots stay in the folder that `FASTER_PRUNER_SCREENSHOTS` names, or else in pytest's own temporary one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
import reports
from faster_pruner.report.page.family import Member, family_page
from faster_pruner.report.page.page import page
from faster_pruner.report.page.tokens import tokens_page

PROGRAM = browser.found()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian: chromium; or name it in $CHROMIUM)")

# What sticks out of the window or of the box that it belongs to, by element; what scrolls by itself does not count.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') || e.closest('svg') || e.tagName === 'WBR') return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map(e => e.tagName + ': ' + e.textContent.slice(0, 40))
"""
# Labels of pictures that are cut off at the edge of their picture.
CUT_OFF = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => {
    const own = t.getBoundingClientRect();
    return own.left < whole.left - 1 || own.right > whole.right + 1
      || own.top < whole.top - 1 || own.bottom > whole.bottom + 1;
  }).map(t => svg.getAttribute('aria-label').slice(0, 30) + ': ' + t.textContent);
})
"""
# Labels that lie upon each other, in the same picture.
OVERLAPPING = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const labels = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return labels.flatMap(([a, one], i) => labels.slice(i + 1).filter(([b, other]) =>
    Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 4).map(([b]) => a + ' / ' + b));
})
"""
NAMELESS = (
    "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label') || !s.querySelector('title'))"
)
# The contrast of all text with what is behind the page (WCAG 2, relative luminance).
FAINT = """
(() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const faint = [...document.querySelectorAll('p, td, th, dd, dt, li, h1, h2, caption, figcaption, text, a')]
    .filter(e => e.textContent.trim()).map(e => {
      const style = getComputedStyle(e);
      const own = luminance(e.tagName === 'text' ? style.fill : style.color);
      return [(Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05), e.tagName];
    });
  return faint.filter(([contrast]) => contrast < 4.5);
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of every kind, with long names and many layers."""
    family = [Member(name, report, link=f"{name}/report.html") for name, report in reports.family().items()]
    report = reports.report(distillation=reports.distillation())
    stranger = reports.HOSTILE + "a-name-without-a-place-to-break" * 8
    several = {name: reports.evaluation(80.0, name) for name in ("validation_matched", "validation_mismatched")}
    texts = {
        "one": page(report, masks=reports.masks(), vocabulary=reports.vocabulary()),
        "deep": page(reports.report(sublayers=reports.sublayers(48), before=several, after=several), masks={}),
        "bare": page(reports.report(before={}, after={}, latency=[], lengths=None, limits=[]), masks={}),
        "hostile": page(reports.report(model=stranger, task=stranger, warnings=[stranger]), masks={}),
        "family": family_page([*family, Member("macs-0.01", None, failed=stranger)]),
        "searched": page(reports.searched(), masks=reports.masks()),
        "tokens": tokens_page(reports.vocabulary()),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are kept."""
    named = os.environ.get("FASTER_PRUNER_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    assert PROGRAM is not None
    with browser.browsing(PROGRAM) as found:
        yield found


@pytest.mark.parametrize(
    ("width", "dark"), [(320, False), (390, True), (820, False), (1280, False), (1280, True)], ids=str
)
@pytest.mark.parametrize("name", ["one", "deep", "bare", "hostile", "family", "searched", "tokens"])
def test_it_is_shown_as_it_should(
    name: str, width: int, dark: bool, chromium: browser.Browser, pages: dict[str, Path], screenshots: Path
) -> None:
    chromium.open(pages[name], width=width, dark=dark)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value(STICKING_OUT) == []
    assert chromium.value(CUT_OFF) == []
    assert chromium.value(OVERLAPPING) == []
    assert chromium.value(NAMELESS) == []
    assert chromium.value(FAINT) == []
    assert chromium.said == []
    assert chromium.asked_for == [pages[name].resolve().as_uri()]
    # the theme is the reader's
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 150) == dark
    taken = chromium.picture(screenshots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert taken.read_bytes().startswith(b"\x89PNG")
    assert taken.stat().st_size > 10_000


def test_a_strangers_script_does_not_run(chromium: browser.Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["hostile"], width=1280)
    assert chromium.value("document.scripts.length + document.images.length") == 0
    assert "<script>alert('1')</script>" in chromium.value("document.body.innerText")


@pytest.mark.parametrize("name", ["one", "deep", "family"])
def test_it_can_be_printed(name: str, chromium: browser.Browser, pages: dict[str, Path], screenshots: Path) -> None:
    """On paper nothing scrolls: what is wider than a page would be lost."""
    # the width of A4 within its margins
    chromium.open(pages[name], width=680, dark=True)
    chromium.ask("Emulation.setEmulatedMedia", media="print", features=[])
    assert chromium.value("document.documentElement.scrollWidth") <= 681
    # ink on paper, whatever the reader's theme
    assert chromium.value("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    paper = chromium.printed(screenshots / f"{name}.pdf")
    assert paper.read_bytes().startswith(b"%PDF")
