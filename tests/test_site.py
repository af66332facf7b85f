"""The pages as a site: it builds without a warning, fetches nothing, and shows lists and tables as such."""

from __future__ import annotations

import dataclasses
import html
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import faster_pruner
from documented import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

# Attributes of elements that a browser fetches by itself.
_FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """What a page fetches, the images without a text, and the paragraphs of the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.without_text: list[str] = []
        self.paragraphs: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in _FETCHED and found.get(_FETCHED[tag]) and found.get("rel") != "canonical":
            self.fetched.append(found[_FETCHED[tag]] or "")
        if tag == "img" and not found.get("alt"):
            self.without_text.append(found.get("src") or "")
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


def read(file: Path) -> _Page:
    """A page of the site."""
    page = _Page()
    page.feed(file.read_text())
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does."""
    place = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return place


def test_every_page_is_there(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for file in site.glob("*.html"):
        page = read(file)
        assert page.fetched
        assert not [each for each in page.fetched if re.match(r"(?:\w+:)?//", each)], file.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet.name


def test_images_have_texts(site: Path) -> None:
    assert [each for file in site.glob("*.html") for each in read(file).without_text] == []


def test_no_list_or_table_is_taken_for_a_paragraph(site: Path) -> None:
    """Markdown wants an empty line before each; a paragraph that begins a line like one has swallowed it."""
    for file in site.glob("*.html"):
        for text in read(file).paragraphs:
            assert not re.search(r"^(?:[*] |\|[ -]|- |#+ |\d+\. |```)", text, re.MULTILINE), (
                f"{file.name}: {text[:200]}"
            )


def test_public_docstrings_name_every_argument_and_field() -> None:
    missing: list[str] = []
    for name in faster_pruner.__all__:
        public: Any = getattr(faster_pruner, name)
        if dataclasses.is_dataclass(public):
            known = [field.name for field in dataclasses.fields(public) if not field.name.startswith("_")]
        else:
            known = list(inspect.signature(public).parameters)
        missing += [f"{name}.{each}" for each in known if not re.search(rf"^ +{each}: ", public.__doc__, re.MULTILINE)]
    assert missing == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = html.unescape((site / "reference.html").read_text())
    for name in faster_pruner.__all__:
        assert f'id="faster_pruner.{name}"' in page, name
    # sections of docstrings were read, not shown as they stand
    assert not re.search(r"<p>(?:Args|Attributes|Raises|Returns):", page)
