"""What was done to a vocabulary, as a part of a page and as a page of its own."""

from __future__ import annotations

from faster_pruner.report.page import words
from faster_pruner.report.page.drawing import Bar, Picture, bars
from faster_pruner.report.page.layout import document, figure, section, side_by_side, tiles
from faster_pruner.report.page.markup import Markup, pairs, tag
from faster_pruner.report.page.pictures import times
from faster_pruner.vocabulary.measured import VocabularyReport


def tokens_left(report: VocabularyReport) -> Picture:
    """What is left of tokens and weights."""
    known = (
        ("tokens", report.tokens, report.tokens_before),
        ("embeddings", report.rows, report.rows_before),
        ("weights", report.bytes, report.bytes_before),
    )
    rows = [
        Bar(label, words.ratio(after, before), words.percent(words.ratio(after, before)))
        for label, after, before in known
        if before
    ]
    drawn, height = bars(rows, most=1.0)
    told = "; ".join(f"{row.label} {row.words}" for row in rows)
    note = "Share of what there was. Weights: with these tokens, before anything else is pruned."
    return Picture("vocabulary", "What is left of the vocabulary", told, drawn, height, note)


def tokens_table(report: VocabularyReport) -> Markup:
    """Its figures."""
    rows = [
        ("tokens", f"{report.tokens} of {report.tokens_before}"),
        ("used by the corpus", str(report.used)),
        ("put back so that every text is encoded as before", str(report.put_back)),
        ("embeddings", f"{report.rows} of {report.rows_before}"),
        ("weights", f"{words.size(report.bytes)} of {words.size(report.bytes_before)}"),
        ("texts that say which tokens stay", str(report.texts)),
    ]
    if (unseen := report.held_out) is not None:
        share = words.percent(words.ratio(unseen.affected_words, unseen.words))
        rows.append((f"words of {unseen.texts} other texts that are encoded in another way", share))
    rows += [("tokenizer", report.algorithm), ("verified", report.verified or words.UNKNOWN)]
    rows += [(name, " \N{MULTIPLICATION SIGN} ".join(map(str, shape))) for name, shape in report.tensors.items()]
    return pairs("The vocabulary", rows)


def tokens_section(report: VocabularyReport) -> Markup:
    """A part of a page."""
    return section("Vocabulary", side_by_side(figure(tokens_left(report)), tokens_table(report)))


def tokens_page(report: VocabularyReport) -> str:
    """A page of a model of which nothing but the vocabulary was pruned."""
    saved = words.percent(words.ratio(report.bytes_saved, report.bytes_before))
    found = [
        (
            "Tokens",
            f"{report.tokens}",
            f"of {report.tokens_before}: those that {report.texts} texts use, and others need",
        ),
        ("Weights", words.size(report.bytes), f"{words.size(report.bytes_before)} before; {saved} saved"),
    ]
    if (unseen := report.held_out) is not None:
        share = words.percent(words.ratio(unseen.affected_words, unseen.words))
        more = f"of the words of {unseen.texts} texts that had no say are encoded in another way"
        found.append(("Texts not seen", share, more))
    title = f"{report.model}, with {words.percent(words.ratio(report.tokens, report.tokens_before))} of its tokens"
    spent = times(report.seconds)
    environment = [("model", report.model), *((name, str(value)) for name, value in report.environment.items())]
    return document(
        title,
        tag("header", tag("h1", title), tiles(found)),
        tokens_section(report),
        *([] if spent is None else [section("Time", side_by_side(figure(spent)))]),
        section("Provenance", pairs("Everything else is in result.json.", environment)),
    )
