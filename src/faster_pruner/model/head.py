"""What makes one vector of what an encoder returns for the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Head:
    """Modules of sentence-transformers, which take and give dictionaries of features.

    Attributes:
        modules: in order: pooling first, then maybe a Dense layer and a normalisation.
        similarity: what embeddings are compared by: "cosine" or "dot".
        longest: most tokens of a text; None for as many as the model takes.
        prompt: put in front of every text.
        query_prompt, document_prompt: in place of it where texts are known to be queries, or documents.
        dims: lengths of prefixes that are embeddings, too, shorter than the whole (Matryoshka).
        left_out: tokens of the prompt, where pooling leaves the prompt out; else 0.
        lower: whether case is ignored.
    """

    modules: tuple[nn.Module, ...]
    similarity: str = "cosine"
    longest: int | None = None
    prompt: str = ""
    dims: tuple[int, ...] = ()
    left_out: int = 0
    lower: bool = False
    query_prompt: str = ""
    document_prompt: str = ""

    def __call__(self, returned: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, d]: embeddings, as they are compared."""
        tokens: Tensor = returned.last_hidden_state
        mask = inputs.get("attention_mask")
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if mask is None else mask
        features: Any = {**inputs, "token_embeddings": tokens, "attention_mask": mask}
        if self.left_out:
            features["prompt_length"] = self.left_out
        for module in self.modules:
            features = module.to(tokens.device)(features)
        return self.compared(features["sentence_embedding"].float())

    def compared(self, vectors: Tensor) -> Tensor:
        """[B, d]: vectors as their similarity sees them."""
        return functional.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors
