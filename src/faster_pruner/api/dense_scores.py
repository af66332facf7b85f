"""What the dense model predicts for evaluation rows: asked before its statistics are kept, and kept with them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from faster_pruner.api.job import Job
from faster_pruner.checkpoint.opening import Opened
from faster_pruner.data.batches import EncodedRows
from faster_pruner.method.scores import Score, score_key
from faster_pruner.model.passes import device_of
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.objectives.objective import Objective, Predicted


def keys_of(opened: Opened, objective: Objective, splits: Mapping[str, EncodedRows]) -> dict[str, str]:
    """What tells the predictions of each split from those of other rows, or read in another way."""
    head, words = opened.head, f"{objective.name} {objective.pipeline_tag} {opened.scoring}"
    if head is not None:
        words += f" {head.similarity} {head.left_out} {head.dims}"
    modules = () if head is None else head.modules
    return {split: score_key(rows, device_of(opened.model), words, modules) for split, rows in splits.items()}


def asked(job: Job) -> dict[str, Score]:
    """Ask the dense model of a job, which then knows what it said; what it knows already is not asked."""
    subject = job.calibrated.subject
    found: dict[str, Score] = {}
    for split, key in job.score_keys.items():
        with suppress(Exception):  # what is wrong with rows or readout is told when they are evaluated
            if split not in job.said:
                job.said[split] = predict_rows(subject.model, subject.objective, job.splits[split])
            found[split] = Score(key, job.said[split])
    return found


def remembered(
    scores: Mapping[str, Score], keys: Mapping[str, str], splits: Mapping[str, EncodedRows]
) -> dict[str, Predicted]:
    """By split, what is known of exactly these rows."""
    return {
        split: replace(scores[split].said, context=rows.context)
        for split, rows in splits.items()
        if split in scores and scores[split].key == keys[split]
    }
