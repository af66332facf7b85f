"""Examples in the documentation run as they stand, and links inside it lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLES = _BLOCK.findall((ROOT / "docs" / "python.md").read_text())


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", range(3))
def test_an_example_runs(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick_latency: None
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[place], f"docs/python.md, example {place + 1}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert place == 1 or printed
    assert "Traceback" not in printed


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target
