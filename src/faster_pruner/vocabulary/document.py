"""What a tokenizer consists of: its JSON, as the tokenizers library writes it, read and rewritten for other ids.

Only what names tokens or ids is looked at: the model's vocabulary and merges, added tokens, the post-processor's and
the padding's ids. Normaliser, pre-tokenizer and decoder stay as they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tokenizers import Tokenizer

from faster_pruner.errors import UnsupportedModelError

BPE, WORD_PIECE, UNIGRAM, WORD_LEVEL = "BPE", "WordPiece", "Unigram", "WordLevel"
ALGORITHMS = (WORD_PIECE, BPE, UNIGRAM, WORD_LEVEL)
_VOCABULARY, _MERGES, _ADDED = "vocab", "merges", "added_tokens"
# Keys of a pair (token, id) in post-processors, and of lists of ids beside their tokens.
_PAIRS, _IDS = ("sep", "cls"), "ids"


@dataclass(frozen=True)
class Document:
    """A tokenizer's JSON.

    Attributes:
        content: all of it.
    """

    content: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Document:
        """That of a tokenizer. Raises UnsupportedModelError when it has parts that cannot be written down."""
        try:
            return cls.read(tokenizer.to_str())
        except UnsupportedModelError:
            raise
        except Exception as error:  # parts that are Python code, of which the library says no more
            raise UnsupportedModelError(
                f"this tokenizer has parts that are code and in no file ({error}); vocabularies are pruned of "
                "tokenizers that a tokenizer.json describes in full"
            ) from error

    @classmethod
    def read(cls, text: str) -> Document:
        """That in a file. Raises ValueError when it is none, UnsupportedModelError for an unknown algorithm."""
        found: Any = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("model"), dict):  # pyright: ignore[reportUnknownMemberType]
            raise ValueError("it holds no tokenizer")
        document = cls(cast("dict[str, Any]", found))
        if document.algorithm not in ALGORITHMS:
            raise UnsupportedModelError(
                f"this tokenizer is a {str(document.algorithm)[:40]!r}; vocabularies can be pruned of "
                f"{', '.join(ALGORITHMS)}"
            )
        return document

    @property
    def model(self) -> Mapping[str, Any]:
        """The part that turns words into tokens."""
        return self.content["model"]

    @cached_property
    def algorithm(self) -> str:
        """One of `ALGORITHMS`; old files do not say which, and are known by what they hold."""
        stated = self.model.get("type")
        if stated is not None:
            return str(stated)
        if isinstance(self.model.get(_VOCABULARY), list):
            return UNIGRAM
        if _MERGES in self.model:
            return BPE
        return WORD_PIECE if "continuing_subword_prefix" in self.model else WORD_LEVEL

    @cached_property
    def words(self) -> Mapping[str, int]:
        """Ids of the model's tokens."""
        found = self.model[_VOCABULARY]
        if isinstance(found, list):
            return {str(entry[0]): i for i, entry in enumerate(cast("list[Any]", found))}
        return cast("dict[str, int]", found)

    @cached_property
    def added(self) -> Mapping[str, int]:
        """Ids of tokens that are found in a text before anything else happens: special ones, and others."""
        return {str(each["content"]): int(each["id"]) for each in self.content.get(_ADDED) or ()}

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """Ids of all tokens."""
        return {**self.words, **self.added}

    @cached_property
    def merges(self) -> Sequence[tuple[str, str]]:
        """Pairs that are joined, the first ones first; none but of BPE."""
        return [_pair(each) for each in self.model.get(_MERGES) or ()]

    @property
    def affixes(self) -> tuple[str, str]:
        """What starts a token inside a word, and what ends one at its end."""
        prefix, suffix = (self.model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        return str(prefix or ""), str(suffix or "")

    def named(self) -> set[int]:
        """Ids of tokens that have a meaning of their own: added ones, and those that other parts name."""
        found = set(self.added.values())
        unknown = self.model.get("unk_token")
        if isinstance(unknown, str) and unknown in self.words:
            found.add(self.words[unknown])
        padding = self.content.get("padding")
        numbers = [self.model.get("unk_id"), padding.get("pad_id") if padding else None]
        found |= {number for number in numbers if isinstance(number, int)}
        return found | set(_ids_in(self.content.get("post_processor")))

    def with_ids(self, ids: Mapping[int, int]) -> Document:
        """The same tokenizer with fewer tokens.

        Args:
            ids: new ones by old ones, of the tokens that stay; both in the same order.
        """
        content: dict[str, Any] = {key: copy.deepcopy(v) for key, v in self.content.items() if key != "model"}
        content["model"] = self._model_with(ids)
        content[_ADDED] = [{**each, "id": ids[each["id"]]} for each in content.get(_ADDED) or ()]
        content["post_processor"] = _with_ids(content.get("post_processor"), ids)
        if content.get("padding"):
            content["padding"]["pad_id"] = ids.get(content["padding"]["pad_id"], content["padding"]["pad_id"])
        return Document({key: content[key] for key in self.content})

    def _model_with(self, ids: Mapping[int, int]) -> dict[str, Any]:
        model: dict[str, Any] = dict(self.model)
        found = self.model[_VOCABULARY]
        if isinstance(found, list):
            model[_VOCABULARY] = [entry for i, entry in enumerate(cast("list[Any]", found)) if i in ids]
        else:
            kept = sorted((ids[i], token) for token, i in self.words.items() if i in ids)
            model[_VOCABULARY] = {token: i for i, token in kept}
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = ids[model["unk_id"]]
        if _MERGES in model:
            given: Sequence[Any] = self.model[_MERGES]
            left: Mapping[str, int] = model[_VOCABULARY]
            model[_MERGES] = [
                each
                for each, (one, other) in zip(given, self.merges, strict=True)
                if one in left and other in left and self.merged(one, other) in left
            ]
        return model

    def merged(self, one: str, other: str) -> str:
        """What two tokens of BPE are joined to."""
        return one + other[len(self.affixes[0]) :]

    def text(self) -> str:
        """As a file holds it."""
        return json.dumps(self.content, ensure_ascii=False, indent=2) + "\n"

    def tokenizer(self) -> Tokenizer:
        """As the library runs it, on whole texts: nothing is cut off, nothing padded."""
        found = Tokenizer.from_str(json.dumps(self.content, ensure_ascii=False))
        found.no_truncation()
        found.no_padding()
        return found


def _pair(entry: Any) -> tuple[str, str]:
    """One merge: a pair, or in older files a text with a space between the two."""
    one, other = entry.split(" ") if isinstance(entry, str) else entry
    return one, other


def _ids_in(part: Any) -> Iterator[int]:
    """Ids that a post-processor names."""
    if isinstance(part, dict):
        for key, value in cast("dict[str, Any]", part).items():
            if key in _PAIRS and isinstance(value, list):
                yield value[1]
            elif key == _IDS and isinstance(value, list):
                yield from cast("list[int]", value)
            else:
                yield from _ids_in(value)
    elif isinstance(part, list):
        for each in cast("list[Any]", part):
            yield from _ids_in(each)


def _with_ids(part: Any, ids: Mapping[int, int]) -> Any:
    """A post-processor with other ids."""
    if isinstance(part, list):
        return [_with_ids(each, ids) for each in cast("list[Any]", part)]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", part).items():
        if key in _PAIRS and isinstance(value, list):
            found[key] = [value[0], ids[value[1]]]
        elif key == _IDS and isinstance(value, list):
            found[key] = [ids[each] for each in cast("list[int]", value)]
        else:
            found[key] = _with_ids(value, ids)
    return found
