"""Which vectors lie nearest to which, in blocks: similarities of all pairs are never there at once."""

from __future__ import annotations

import numpy as np

# Similarities that are there at once.
_AT_ONCE = 2**24
NONE = -1


def unit(values: np.ndarray) -> np.ndarray:
    """[N, d]: vectors of length 1; zeros stay."""
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-12)


def nearest(queries: np.ndarray, documents: np.ndarray, count: int, *, without: np.ndarray) -> np.ndarray:
    """The documents with the largest inner products, the largest first; of equal ones the first.

    Args:
        queries: [Q, d].
        documents: [N, d].
        count: how many, at least 1.
        without: [Q], place of a document that is none for this query, or `NONE`.

    Returns:
        [Q, min(count, N)] places of documents, `NONE` where there are no more.
    """
    count = min(count, len(documents))
    block, found = max(1, _AT_ONCE // len(documents)), list[np.ndarray]()
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ documents.T
        left_out = without[start : start + block]
        rows = np.flatnonzero(left_out != NONE)
        similarity[rows, left_out[rows]] = -np.inf
        # of documents that tie for the last place any may be in
        places = np.sort(np.argpartition(similarity, -count, axis=1)[:, -count:], axis=1)
        chosen = np.take_along_axis(similarity, places, axis=1)
        order = np.argsort(-chosen, axis=1, kind="stable")
        places[np.isneginf(chosen)] = NONE
        found.append(np.take_along_axis(places, order, axis=1))
    return np.concatenate(found)


def shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[Q, 1]: share of the neighbours of each query in one list [Q, k] that are in the other, too."""
    pairs = [(set(a) - {NONE}, set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return np.array([[len(a & b) / max(1, len(a))] for a, b in pairs])
