"""How the one score that a reranker gives a query and a text is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the folder of a CrossEncoder says beside its model; as it stands, what goes for one that says nothing.

    Attributes:
        identity: the score is used as the model gives it; otherwise its sigmoid is, which is a relevance by itself.
        longest: most tokens of a query and a text together; None for as many as the tokenizer says.
        prompt: put in front of every query.
    """

    identity: bool = False
    longest: int | None = None
    prompt: str = ""
