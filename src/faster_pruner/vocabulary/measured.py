"""What was measured of a vocabulary that was pruned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from faster_pruner.vocabulary.choosing import Affected

# Key in result.json.
VOCABULARY = "vocabulary"


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """Everything that was measured; `result.json` holds it.

    Attributes:
        model: name of the model.
        algorithm: of the tokenizer: WordPiece, BPE, Unigram or WordLevel.
        tokens_before: of the tokenizer.
        tokens: of the tokenizer, now.
        used: of those, how many the corpus uses; the others are special, characters, or on the way to a used one.
        put_back: of those, how many stay only because some text of the corpus would else be encoded in another way.
        rows_before: of the embeddings.
        rows: of the embeddings, now.
        texts: of the corpus, that say which tokens stay.
        held_out: what of the other texts of the corpus is encoded in another way; None where none are held out.
        bytes_before: of the weights, as they are stored.
        bytes: of the weights, now, before anything else is pruned.
        tensors: whose rows or columns belong to tokens, with their shapes now.
        left_out: files of the old tokenizer in forms that are not written.
        verified: what was compared, in words.
        seconds: by stage.
        environment: versions and hardware.
        warnings: sentences.
    """

    model: str
    algorithm: str
    tokens_before: int
    tokens: int
    used: int
    put_back: int
    rows_before: int
    rows: int
    texts: int
    held_out: Affected | None
    bytes_before: int
    bytes: int
    tensors: dict[str, list[int]]
    left_out: list[str] = field(default_factory=list[str])
    verified: str = ""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def bytes_saved(self) -> int:
        """Of the weights."""
        return self.bytes_before - self.bytes

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "bytes_saved": self.bytes_saved}
