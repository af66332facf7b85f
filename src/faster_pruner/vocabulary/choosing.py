"""Which tokens stay: those that a corpus uses and all that they need, proved on the corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Encoding, Tokenizer

from faster_pruner.errors import DataError, VerificationError
from faster_pruner.vocabulary.document import Document
from faster_pruner.vocabulary.needs import closed, within

# Texts that are encoded at once.
_TEXTS = 1000
# No token; ids start at 0.
_GONE = -1


@dataclass(frozen=True)
class Choice:
    """The tokens of a tokenizer that stay.

    Attributes:
        before: the whole tokenizer.
        kept: their ids in the whole tokenizer; a token's place is its new id. Ids that no token has come last.
        used: of those, how many the corpus uses.
        put_back: of those, how many it does not use, but without which some of it would be encoded in another way.
    """

    before: Document
    kept: tuple[int, ...]
    used: int
    put_back: int

    @cached_property
    def new_ids(self) -> Mapping[int, int]:
        """New id by old id."""
        return {old: new for new, old in enumerate(self.kept)}

    @cached_property
    def after(self) -> Document:
        """The tokenizer with those tokens alone."""
        return self.before.with_ids(self.new_ids)


@dataclass(frozen=True, kw_only=True)
class Affected:
    """What of other texts is encoded in another way.

    Attributes:
        texts: in all.
        affected_texts: with such a word in them.
        words: in all, as spaces separate them.
        affected_words: of those, how many.
    """

    texts: int
    affected_texts: int
    words: int
    affected_words: int


def choose(document: Document, texts: Sequence[str], *, always: Collection[int] = ()) -> Choice:
    """Find the tokens that stay, and prove that every text gets the same tokens as before.

    Args:
        document: the whole tokenizer.
        texts: the corpus.
        always: further ids that stay, also such as no token has.

    Raises:
        DataError: the corpus is empty.
        VerificationError: no smaller tokenizer gives the same tokens.
    """
    if not any(text.strip() for text in texts):
        raise DataError("the corpus holds no text, so that no token would be left; give texts")
    whole = document.tokenizer()
    used = {i for encodings in _encoded(whole, texts) for encoding in encodings for i in encoding.ids}
    ids = closed(document, used | set(always))
    first = len(ids)
    while True:
        choice = Choice(document, _in_order(document, ids), len(used), len(ids) - first)
        small = choice.after.tokenizer()
        wrong = [(t, a, b) for t, a, b in _pairs(whole, small, texts) if _mapped(a, choice.new_ids) != b.ids]
        if not wrong:
            return choice
        wider = closed(document, ids | _possible(choice, whole, wrong, words_only=True))
        if wider == ids:
            wider = closed(document, ids | _possible(choice, whole, wrong, words_only=False))
        if wider == ids:
            raise VerificationError(
                f"{len(wrong)} texts are encoded in another way by every smaller tokenizer, like {wrong[0][0][:60]!r}; "
                "nothing was written. Please report this"
            )
        ids = wider


def _possible(
    choice: Choice, whole: Tokenizer, wrong: Sequence[tuple[str, Encoding, Encoding]], *, words_only: bool
) -> set[int]:
    """Ids of all tokens that an encoding of such texts may look at: with those it is what it was.

    Args:
        choice: the tokenizer that gives others.
        whole: the one before.
        wrong: texts with their encodings before and after.
        words_only: look at the words that differ alone.
    """
    longest = max(map(len, choice.before.words), default=0)
    found: set[int] = set()
    for text, before, after in wrong:
        for piece in _pieces(whole, text, _changed_words(before, after, choice.new_ids) if words_only else []):
            found |= within(choice.before, piece, longest)
    return found


def _in_order(document: Document, ids: Collection[int]) -> tuple[int, ...]:
    """Ids of tokens, as they were ordered; those that no token has come last, for tokens are numbered without a gap."""
    named = set(document.tokens.values())
    return (*sorted(i for i in ids if i in named), *sorted(i for i in ids if i not in named))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Sequence[Encoding]]:
    """Texts in groups, without the places of their tokens."""
    for group in _groups(texts):
        yield tokenizer.encode_batch_fast(group)


def _pairs(one: Tokenizer, other: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[str, Encoding, Encoding]]:
    """Every text with both tokenizers' encodings."""
    for group in _groups(texts):
        yield from zip(group, one.encode_batch(group), other.encode_batch(group), strict=True)


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _TEXTS):
        yield list(texts[start : start + _TEXTS])


def _mapped(encoding: Encoding, ids: Mapping[int, int]) -> list[int]:
    """Tokens of a text under their new ids."""
    return [ids.get(i, _GONE) for i in encoding.ids]


def _placed(encoding: Encoding, ids: list[int]) -> set[tuple[int, tuple[int, int]]]:
    """Tokens with their places in the text."""
    return set(zip(ids, encoding.offsets, strict=True))


def _changed(before: Encoding, after: Encoding, ids: Mapping[int, int]) -> list[tuple[int, int]]:
    """Places in a text, from and to, where the tokens are others."""
    changed = _placed(before, _mapped(before, ids)) ^ _placed(after, list(after.ids))
    return sorted({place for _, place in changed})


def _changed_words(before: Encoding, after: Encoding, ids: Mapping[int, int]) -> list[tuple[int, int]]:
    """Places of the words, as the pre-tokenizer finds them, with other tokens."""
    found: set[tuple[int, int]] = set()
    for encoding in (before, after):
        for start, end in _changed(before, after, ids):
            word = encoding.char_to_word(start) if end > start else None
            place: Any = None if word is None else encoding.word_to_chars(word)
            found.add(place or (start, end))
    return sorted(found)


def _pieces(tokenizer: Tokenizer, text: str, places: Sequence[tuple[int, int]]) -> Iterator[str]:
    """What the model is given of some places of a text."""
    for start, end in places or [(0, len(text))]:
        part = text[start:end]
        if tokenizer.normalizer is not None:
            part = tokenizer.normalizer.normalize_str(part)
        if tokenizer.pre_tokenizer is None:
            yield part
        else:
            yield from (piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(part))


def affected(choice: Choice, texts: Sequence[str]) -> Affected:
    """How much of other texts the smaller tokenizer encodes in another way: into smaller pieces, or as unknown."""
    words = affected_words = affected_texts = 0
    for text, before, after in _pairs(choice.before.tokenizer(), choice.after.tokenizer(), texts):
        own = _words(text)
        changed = _changed(before, after, choice.new_ids)
        hit = sum(any(start < end_ and start_ < end for start_, end_ in changed) for start, end in own)
        words, affected_words = words + len(own), affected_words + hit
        affected_texts += bool(changed)
    return Affected(texts=len(texts), affected_texts=affected_texts, words=words, affected_words=affected_words)


def _words(text: str) -> list[tuple[int, int]]:
    """From where to where each word goes."""
    found: list[tuple[int, int]] = []
    end = 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        found.append((start, end))
    return found


def same_tokens(choice: Choice, opened: Document, texts: Sequence[str]) -> bool:
    """Whether a tokenizer that was opened again has the chosen tokens, and gives every text the same ones as before."""
    if opened.tokens != choice.after.tokens:
        return False
    pairs = _pairs(choice.before.tokenizer(), opened.tokenizer(), texts)
    return all(_mapped(before, choice.new_ids) == after.ids for _, before, after in pairs)
