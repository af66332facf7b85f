"""The demo of embeddings: the encoder itself is pruned, on texts alone, and searches for docstrings.

What is searched are docstrings that it was not calibrated on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from faster_pruner.api.outcome import PruneResult
from faster_pruner.api.rows import encoded
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import Source, load_split
from faster_pruner.data.tasks import Task
from faster_pruner.objectives.embedding import objective_for
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.objectives.neighbours import NONE, nearest
from faster_pruner.report.search import Hit, Search

# What the standard library of any Python has answers to.
QUERIES = (
    "draw a circle",
    "start a new log file when the old one is full",
    "wait until every task has finished",
)
_SHOWN = 3


def write_texts(folder: Path, docstrings: Mapping[str, Sequence[str]], *, train_share: float, seed: int) -> None:
    """train.jsonl and validation.jsonl: docstrings, each with the package that it comes from."""
    texts = [f"{package}: {text}" for package, own in docstrings.items() for text in own]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    split = int(train_share * len(texts))
    folder.mkdir()
    for name, chosen in (("train", order[:split]), ("validation", order[split:])):
        lines = "".join(json.dumps({"text": texts[i]}) + "\n" for i in chosen)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def searches(encoder: Path, result: PruneResult, data: Path, *, max_length: int, run: Run) -> tuple[Search, ...]:
    """What the dense and the pruned encoder find.

    Args:
        encoder: folder of the dense one.
        result: its pruning.
        data: folder of the texts; those that are held back are searched.
        max_length: most tokens of a text.
        run: device and listener.
    """
    texts = [row["text"] for row in load_split(Source(folder=data), ("validation",))]
    device = run.on()
    dense = open_checkpoint(encoder, device=device)
    assert dense.head is not None
    rows = Rows([{"text": text} for text in [*texts, *QUERIES]])
    inputs = encoded(rows, Task(name="", label_column=""), dense, max_length, labelled=False)
    ranks: list[np.ndarray] = []
    with run.clock(device).stage("search", total=2):
        for model in (dense, replace(dense, model=result.model)):
            vectors = predict_rows(model.model, objective_for(dense.head), inputs).values
            ranks.append(_ranks(vectors[len(texts) :], vectors[: len(texts)]))
            run.progress.step()
    return tuple(_search(texts, query, ranks[0][i], ranks[1][i]) for i, query in enumerate(QUERIES))


def _ranks(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """[Q, N]: rank of each document, from 0."""
    order = nearest(queries, documents, len(documents), without=np.full(len(queries), NONE))
    return np.argsort(order, axis=1)


def _search(texts: Sequence[str], query: str, before: np.ndarray, after: np.ndarray) -> Search:
    """The texts that are among the first in either model, in the dense model's order."""
    chosen = sorted(np.flatnonzero((before < _SHOWN) | (after < _SHOWN)).tolist(), key=lambda i: int(before[i]))
    return Search(query, tuple(Hit(texts[i], int(before[i]) + 1, int(after[i]) + 1) for i in chosen))
