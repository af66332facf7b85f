"""The files of a tokenizer with fewer tokens: what names tokens is rewritten, everything else stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from faster_pruner.checkpoint.companions import Companions
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.tokens import ids_in, with_new_ids
from faster_pruner.errors import CheckpointError, UnsupportedModelError
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.vocabulary.choosing import Choice
from faster_pruner.vocabulary.document import ALGORITHMS, Document

_TOKENIZER = "tokenizer.json"
_GENERATION = "generation_config.json"
# Forms of the old vocabulary that nothing here writes; tokenizer.json says the same.
_NOT_WRITTEN = ("*.model", "spiece.*", "*.spm", "*.tiktoken", "bpe.codes", "tekken.json", "vocab.bpe", "vocab-*.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer.

    Attributes:
        document: tokenizer.json.
        companions: all companion files of the checkpoint.
    """

    document: Document
    companions: Companions

    def named(self) -> set[int]:
        """Ids of tokens that the files name beside listing them."""
        return self.document.named() | ids_in(_settings(self.companions.files.get(_GENERATION)))


def whole_tokenizer(tokenizer: object) -> Document:
    """A tokenizer as transformers has opened it. Raises UnsupportedModelError for one that is no fast one."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"a {type(tokenizer).__name__} is no fast tokenizer; vocabularies are pruned of those of the tokenizers "
            f"library ({', '.join(ALGORITHMS)}): save the model with a tokenizer that has a tokenizer.json"
        )
    fast: Any = tokenizer
    return Document.of(fast.backend_tokenizer)


def tokenizer_files(tokenizer: PreTrainedTokenizerBase, companions: Companions) -> TokenizerFiles:
    """The files of a checkpoint's tokenizer; what they lack transformers writes. Raises CheckpointError."""
    try:
        found = Document.read(companions.files[_TOKENIZER].decode())
        if dict(found.tokens) == tokenizer.get_vocab():
            return TokenizerFiles(found, companions)
    except (LookupError, ValueError, TypeError, AttributeError):
        pass  # none, or one that transformers reads in some other way
    try:
        with temporary_folder() as folder, quiet_transformers():
            tokenizer.save_pretrained(folder)
            written = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        document = Document.read(written[_TOKENIZER].decode())
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers raises whatever it comes across
        raise CheckpointError(f"the tokenizer of this model cannot be saved: {error}") from error
    return TokenizerFiles(document, replace(companions, files={**companions.files, **written}, whole=True))


def smaller(files: TokenizerFiles, choice: Choice) -> tuple[Companions, list[str]]:
    """The files with the tokens of a choice alone, and the names of those that are left out.

    Args:
        files: of the whole tokenizer.
        choice: the tokens that stay.
    """
    left_out = sorted(
        name for name in files.companions.files if any(fnmatch(name, pattern) for pattern in _NOT_WRITTEN)
    )
    document = files.document.with_ids(choice.new_ids)
    found: dict[str, bytes] = {}
    for name, content in files.companions.files.items():
        if name not in left_out:
            rewrite = _REWRITTEN.get(name)
            found[name] = content if rewrite is None else rewrite(content, document, choice.new_ids)
    return Companions(found, whole=True), left_out


def _settings(content: bytes | None) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found: Any = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _written(settings: object) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_json(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    del content, ids
    return document.text().encode()


def _tokenizer_config(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    """Which lists added tokens under their ids."""
    settings = _settings(content)
    listed: Any = settings.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return content
    own = {
        str(document.added.get(str(entry.get("content")), ids.get(int(i), i))): entry
        for i, entry in cast("dict[str, Any]", listed).items()
    }
    return _written({**settings, "added_tokens_decoder": own})


def _added_tokens(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    """Ids of added tokens."""
    del ids
    return _written({token: document.tokens[token] for token in _settings(content) if token in document.tokens})


def _generation_config(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    del document
    return _written(with_new_ids(_settings(content), ids))


def _vocab_txt(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    """A token per line, in the order of their ids."""
    del content, ids
    return "".join(f"{token}\n" for token, _ in sorted(document.words.items(), key=lambda entry: entry[1])).encode()


def _vocab_json(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    """Ids of tokens."""
    del content, ids
    return (json.dumps(dict(document.words), ensure_ascii=False) + "\n").encode()


def _merges_txt(content: bytes, document: Document, ids: Mapping[int, int]) -> bytes:
    """A pair per line, below the same first line."""
    del ids
    first = content.split(b"\n", 1)[0].decode()
    head = f"{first}\n" if first.startswith("#version") else ""
    return (head + "".join(f"{one} {other}\n" for one, other in document.merges)).encode()


# By the name of a file: it as it was, the smaller tokenizer and new ids by old ones -> the file as it is now.
_REWRITTEN: dict[str, Callable[[bytes, Document, Mapping[int, int]], bytes]] = {
    _TOKENIZER: _tokenizer_json,
    "tokenizer_config.json": _tokenizer_config,
    "added_tokens.json": _added_tokens,
    _GENERATION: _generation_config,
    "vocab.txt": _vocab_txt,
    "vocab.json": _vocab_json,
    "merges.txt": _merges_txt,
}
