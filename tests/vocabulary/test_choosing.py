"""A smaller tokenizer encodes its corpus as before, and every other text somehow."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from badness import bad_input
from corpora import KINDS, LOSSLESS, sentences, train, words
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.vocabulary.choosing import Choice, affected, choose, same_tokens
from faster_pruner.vocabulary.document import Document


@cache
def chosen(kind: str) -> Choice:
    """The tokens that the Latin sentences use."""
    return choose(Document.of(train(kind)), sentences("latin"))


@cache
def both(kind: str) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers before and after, as the library opens them."""
    return train(kind), Tokenizer.from_str(chosen(kind).after.text())


def mapped(kind: str, text: str, **how: bool) -> list[int]:
    """The old tokenizer's ids under their new numbers."""
    return [chosen(kind).new_ids[i] for i in both(kind)[0].encode(text, **how).ids]


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_has_the_same_tokens_and_the_other_alphabet_is_gone(kind: str) -> None:
    old, new = both(kind)
    for text in sentences("latin"):
        before, after = old.encode(text), new.encode(text)
        assert before.tokens == after.tokens
        assert before.offsets == after.offsets
        assert mapped(kind, text) == after.ids
    assert new.get_vocab_size() < 0.8 * old.get_vocab_size()
    assert same_tokens(chosen(kind), Document.of(new), sentences("latin"))
    assert not same_tokens(chosen(kind), Document.of(old), sentences("latin"))
    # ids without a gap, in the order of the old ones
    kept = chosen(kind).kept
    assert list(kept) == sorted(kept)
    assert sorted(new.get_vocab().values()) == list(range(len(kept)))
    assert {new.id_to_token(i): old.token_to_id(new.id_to_token(i)) for i in range(len(kept))} == {
        new.id_to_token(i): number for i, number in enumerate(kept)
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_of_words_of_the_corpus_has_the_same_tokens(kind: str, data: st.DataObject) -> None:
    text = " ".join(data.draw(st.lists(st.sampled_from(words("latin")), max_size=8)))
    assert both(kind)[1].encode(text).ids == mapped(kind, text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(sentences("cyrillic")))
def test_any_other_text_is_still_encoded(kind: str, text: str) -> None:
    old, new = both(kind)
    encoded = new.encode(text)
    assert all(0 <= i < len(chosen(kind).kept) for i in encoded.ids)
    assert bool(encoded.ids) == bool(old.encode(text).ids)
    if kind in LOSSLESS:
        assert new.decode(encoded.ids) == old.decode(old.encode(text).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_letters_of_the_other_alphabet_are_no_unknown_words(kind: str) -> None:
    """Words that had tokens of their own are written in characters or bytes."""
    old, new = both(kind)
    unknown = old.token_to_id("<unk>"), new.token_to_id("<unk>")
    for word in words("cyrillic")[:40]:
        before, after = old.encode(word).ids, new.encode(word).ids
        assert (unknown[0] in before) == (unknown[1] in after) == False  # noqa: E712
        assert len(after) >= len(before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("BPE")])
def test_every_token_that_can_be_reached_by_merges_still_can(kind: str) -> None:
    """The library's own BPE on each token alone, without pre-tokenizer: the merge paths are whole."""
    choice = chosen(kind)
    found = []
    for document in (choice.before, choice.after):
        model = Tokenizer.from_str(json.dumps({**document.content, "pre_tokenizer": None, "normalizer": None}))
        model.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
        found.append(model)
    suffix = choice.before.affixes[1]
    for token in choice.after.words:
        text = token.removesuffix(suffix) if suffix else token
        before, after = (each.encode(text, add_special_tokens=False).tokens for each in found)
        if before == [token]:
            assert after == [token]


def test_posts_of_the_post_processor_and_padding_follow() -> None:
    core = train("WordPiece")
    core.enable_padding(pad_id=core.token_to_id("<pad>"), pad_token="<pad>", length=12)
    core.enable_truncation(6)
    after = Tokenizer.from_str(choose(Document.of(core), sentences("latin")[:3]).after.text())
    encoded = after.encode(sentences("latin")[0], "ba")
    assert encoded.tokens[0] == "<s>"
    assert encoded.tokens.count("</s>") == 2
    assert encoded.tokens[-1] == "<pad>"
    assert encoded.ids == [after.token_to_id(token) for token in encoded.tokens]
    assert len(encoded.ids) == 12


def test_an_unknown_word_stays_unknown() -> None:
    """`ab` is in no encoding, but without it `abc` would become `a` and `##bc`."""
    tokens = ["[UNK]", "a", "b", "ab", "##b", "##bc", "bbb"]
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    assert core.encode("abc bbc").tokens == ["[UNK]", "b", "##bc"]
    choice = choose(Document.of(core), ["abc bbc"])
    assert [tokens[i] for i in choice.kept] == ["[UNK]", "a", "b", "ab", "##b", "##bc"]
    assert choice.put_back == 1
    assert choice.after.tokenizer().encode("abc bbc").tokens == ["[UNK]", "b", "##bc"]


def test_what_is_unknown_costs_unigram_what_it_did() -> None:
    """The penalty hangs on the least likely token: without it the unknown letter would win over the rare token."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("xa", -18.0), ("zzz", -9.0), ("qqq", -30.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    assert core.encode("xa").tokens == ["xa"]
    choice = choose(Document.of(core), ["xa a"])
    assert "qqq" in choice.after.tokens
    assert "zzz" not in choice.after.tokens
    assert choice.after.tokenizer().encode("xa a").tokens == core.encode("xa a").tokens


def test_added_tokens_and_ids_that_are_asked_for_stay() -> None:
    core = train("BPE")
    core.add_tokens(["<new one>"])
    choice = choose(Document.of(core), ["ba"], always=[core.token_to_id("ста"), 5000])
    assert {"<new one>", "ста", *("<s>", "<mask>")} <= set(choice.after.tokens)
    # an id that no token has is a row of the model alone, and comes last
    assert choice.kept[-1] == 5000
    assert choice.after.tokenizer().encode("<new one>", add_special_tokens=False).ids == [
        choice.new_ids[core.token_to_id("<new one>")]
    ]


def test_merges_as_older_files_write_them() -> None:
    choice = chosen("BPE of bytes")
    old = dict(choice.before.content)
    old["model"] = {**old["model"], "merges": [" ".join(pair) for pair in choice.before.merges]}
    again = choose(Document(old), sentences("latin"))
    assert again.kept == choice.kept
    assert all(isinstance(each, str) for each in again.after.model["merges"])
    assert list(again.after.merges) == list(choice.after.merges)


def test_words_that_are_tokens_without_merges_stay_whole() -> None:
    """Llama 3's tokenizer takes whole words from the vocabulary, also such that no merges lead to."""
    whole = dict(Document.of(train("BPE of bytes")).content)
    word = "Ġ" + words("latin")[0]
    vocabulary = {**whole["model"]["vocab"]}
    vocabulary.setdefault(word, len(vocabulary))
    merges = [pair for pair in whole["model"]["merges"] if "".join(pair) != word]
    whole["model"] = {**whole["model"], "vocab": vocabulary, "merges": merges, "ignore_merges": True}
    old = Document(whole)
    assert word in old.tokenizer().encode(words("latin")[0]).tokens
    choice = choose(old, sentences("latin"))
    for text in sentences("latin"):
        before, after = (each.tokenizer().encode(text) for each in (old, choice.after))
        assert before.tokens == after.tokens
    assert word in choice.after.tokens
    assert choice.put_back == 0


def test_unseen_texts_are_counted() -> None:
    choice = chosen("WordPiece")
    seen, unseen = sentences("latin")[0], "ба"
    found = affected(choice, [seen, f"{seen} стадеме", unseen])
    assert found.texts == 3
    assert found.words == 2 * len(seen.split()) + 2
    hit = ["стадеме", *([] if both("WordPiece")[0].token_to_id("ба") in choice.kept else ["ба"])]
    # counted here word by word
    expected = [
        word
        for word in ("стадеме", "ба")
        if both("WordPiece")[0].encode(word).tokens != both("WordPiece")[1].encode(word).tokens
    ]
    assert found.affected_words == len(expected) == len(hit)
    assert found.affected_texts == len(expected)
    assert affected(choice, [seen]).affected_words == 0


@pytest.mark.parametrize("texts", [[], ["", "  \n"]], ids=["none", "blank"])
def test_a_corpus_without_text_is_refused(texts: list[str]) -> None:
    bad_input("empty corpus")
    with pytest.raises(DataError, match="holds no text"):
        choose(Document.of(train("BPE")), texts)


def test_unknown_algorithms_and_code_are_refused() -> None:
    bad_input("other tokenizers")
    with pytest.raises(UnsupportedModelError, match="is a 'Bigram'"):
        Document.read(json.dumps({"model": {"type": "Bigram"}}))
    core = train("BPE")
    core.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(UnsupportedModelError, match="parts that are code"):
        Document.of(core)
