"""report.html of a folder that is there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from faster_pruner.errors import DataError, OutputError
from faster_pruner.host import places
from faster_pruner.host.files import beside
from faster_pruner.host.marks import MASKS_FILE, PAGE_FILE, RESULT_FILE, is_our_file
from faster_pruner.report.page.drawing import Picture
from faster_pruner.report.page.family import Member, family_page, family_pictures
from faster_pruner.report.page.page import page
from faster_pruner.report.page.pictures import of_a_model
from faster_pruner.report.page.stored import Stored, read_result
from faster_pruner.report.page.tokens import tokens_left, tokens_page
from faster_pruner.report.page.tried import tried


def write_page(folder: str | Path, *, pictures: str | Path | None = None) -> list[Path]:
    """Write, or write again, report.html of a folder of results, from its result.json alone.

    Args:
        folder: that `prune`, `cut`, `sweep` or `vocabulary` wrote.
        pictures: a folder that takes the pictures as SVG files, too.

    Returns:
        The files that were written, the page first.

    Raises:
        DataError: the folder holds no results, or they are not what was written.
        OutputError: something else is in the way, or the place cannot be written.
    """
    place = Path(folder)
    target = place / PAGE_FILE
    check_page(target)
    text, drawn = _content(place)
    others = [] if pictures is None else [Path(pictures) / f"{picture.name}.svg" for picture in drawn]
    for file in others:
        places.check_file(file)
    with beside(target) as staging:
        staging.write_text(text, encoding="utf-8")
    for file, picture in zip(others, drawn, strict=False):
        with beside(file) as staging:
            staging.write_text(picture.standalone(), encoding="utf-8")
    return [target, *others]


def check_page(file: Path) -> None:
    """Before any work: a report may be written there, and replaces nothing but a report. Raises OutputError."""
    places.check_file(file)
    if file.exists() and not is_our_file(file):
        raise OutputError(f"{str(file)!r} is there already, and no report of ours; it is not replaced: move it away")


def link_to(folder: Path) -> str:
    """From beside a folder to its report; empty where it has none."""
    return f"{quote(folder.name)}/{PAGE_FILE}" if (folder / PAGE_FILE).is_file() else ""


def page_of(folder: Path) -> str:
    """The page of a folder of results. Raises DataError."""
    return _content(folder)[0]


def _content(folder: Path) -> tuple[str, list[Picture]]:
    """The page of a folder and its pictures. Raises DataError."""
    if (folder / RESULT_FILE).is_file():
        found = read_result(folder, MASKS_FILE)
        return _whatever_it_says(lambda: _of_one(found), folder)
    inside = sorted(each.parent for each in folder.glob(f"*/{RESULT_FILE}"))
    members = [Member(each.name, read_result(each, MASKS_FILE).report, link=link_to(each)) for each in inside]
    known = _largest_first(member for member in members if member.report is not None)
    if not known:
        raise DataError(f"{str(folder)!r} has no {RESULT_FILE}, and no folder in it has: give a folder of results")
    of = {(member.report.model, member.report.task) for member in known if member.report is not None}
    if len(of) > 1:
        raise DataError(f"the folders in {str(folder)!r} hold results of {len(of)} models or tasks: give one of them")
    return _whatever_it_says(lambda: (family_page(known), family_pictures(known)), folder)


def _largest_first(members: Iterable[Member]) -> list[Member]:
    return sorted(members, key=lambda member: 0.0 if member.report is None else -member.report.macs_kept)


def _of_one(found: Stored) -> tuple[str, list[Picture]]:
    """The page of one result, and its pictures."""
    tokens = [] if found.vocabulary is None else [tokens_left(found.vocabulary)]
    if found.report is None:
        assert found.vocabulary is not None
        return tokens_page(found.vocabulary), tokens
    text = page(found.report, masks=found.masks, vocabulary=found.vocabulary)
    probed = tried(found.report)
    more = tokens if probed is None else [probed, *tokens]
    return text, [*of_a_model(found.report, found.masks), *more]


def _whatever_it_says(make: Callable[[], tuple[str, list[Picture]]], folder: Path) -> tuple[str, list[Picture]]:
    """A page of figures that anybody may have changed. Raises DataError."""
    try:
        return make()
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"what {str(folder / RESULT_FILE)!r} says makes no page: {error}") from error
