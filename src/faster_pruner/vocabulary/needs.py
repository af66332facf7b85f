"""What an algorithm needs beside the tokens that a corpus uses.

So that the corpus is encoded as before: BPE joins pairs step by step, so every step on the way to a token stays
(Sennrich et al. 2016, arXiv 1508.07909). Of the pairs that can be joined the first one in the list always is, and
those that are gone were never joined on the corpus: the same pairs are joined in the same order. WordPiece takes the
longest token that fits, Unigram the most likely sequence (Kudo 2018, arXiv 1804.10959): taking others away leaves
those where they are. Unigram's penalty for what is unknown is counted from its least likely token, which stays.

So that any other text is encoded: bytes, and single characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from faster_pruner.vocabulary.document import BPE, UNIGRAM, Document

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def characters(document: Document) -> set[int]:
    """Ids of the tokens that are single bytes or characters."""
    prefix, suffix = document.affixes

    def single(token: str) -> bool:
        body = token.removeprefix(prefix) if len(token) > len(prefix) else token
        body = body.removesuffix(suffix) if len(body) > len(suffix) else body
        return len(body) == 1 or _BYTE.fullmatch(token) is not None

    return {i for token, i in document.words.items() if single(token)}


def closed(document: Document, ids: Iterable[int]) -> set[int]:
    """Tokens with all that they need.

    Args:
        document: the whole tokenizer.
        ids: of tokens that stay.
    """
    found = set(ids) | document.named() | characters(document)
    if document.algorithm == UNIGRAM:
        found |= _least_likely(document.model["vocab"])
    if document.algorithm == BPE:
        ranks = {pair: rank for rank, pair in reversed(list(enumerate(document.merges)))}
        names = {i: token for token, i in document.words.items()}
        for i in list(found):
            for step in _merge_path(names.get(i, ""), document, ranks):
                if step in document.words:
                    found.add(document.words[step])
    return found


def _least_likely(entries: list[tuple[str, float]]) -> set[int]:
    """Id of the token with the lowest score."""
    return {min(range(len(entries)), key=lambda i: entries[i][1])} if entries else set()


def _merge_path(token: str, document: Document, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """What BPE makes on its way from characters to a token: its encoding of that token alone, step by step.

    Whatever stands around a token in a text changes nothing of it: a pair across its border that was joined would
    have made another token.
    """
    symbols = _symbols(token, *document.affixes)
    yield from symbols
    while len(symbols) > 1:
        known = [(ranks[pair], i) for i in range(len(symbols) - 1) if (pair := (symbols[i], symbols[i + 1])) in ranks]
        if not known:
            return
        place = min(known)[1]
        symbols[place : place + 2] = [document.merged(symbols[place], symbols[place + 1])]
        yield symbols[place]


def _symbols(token: str, prefix: str, suffix: str) -> list[str]:
    """The characters that BPE starts with."""
    inside, at_end = bool(prefix) and token.startswith(prefix), bool(suffix) and token.endswith(suffix)
    body = token[len(prefix) if inside else 0 : len(token) - (len(suffix) if at_end else 0)]
    last = len(body) - 1
    return [
        (prefix if prefix and (i or inside) else "") + letter + (suffix if at_end and i == last else "")
        for i, letter in enumerate(body)
    ]


def within(document: Document, piece: str, longest: int) -> set[int]:
    """Ids of all tokens that an encoding of a piece of text can possibly consist of, or look at on its way.

    Args:
        document: the whole tokenizer.
        piece: as the pre-tokenizer leaves it.
        longest: characters of the longest token.
    """
    prefix, suffix = document.affixes
    words: Mapping[str, Any] = document.words
    found: set[int] = set()
    for start in range(len(piece)):
        for end in range(start + 1, min(len(piece), start + longest) + 1):
            part = piece[start:end]
            for form in {part, prefix + part, part + suffix, prefix + part + suffix}:
                if form in words:
                    found.add(words[form])
    return found
