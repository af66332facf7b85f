"""Evaluate a dense or pruned checkpoint."""

from __future__ import annotations

from pathlib import Path

from faster_pruner.api.rows import describe, evaluation_splits, objective_for
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.checks import whole_number
from faster_pruner.data.tasks import Data, as_data
from faster_pruner.errors import OptionError
from faster_pruner.model.precision import usual_torch
from faster_pruner.objectives.evaluation import evaluate as score
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.options import FEWEST_TOKENS
from faster_pruner.results import Evaluation


@usual_torch()
def evaluate(
    model: str | Path, data: str | Data, *, max_length: int = 128, run: Run | None = None
) -> dict[str, Evaluation]:
    """Evaluate a checkpoint on the evaluation splits of a task.

    Args:
        model: local folder or hub id.
        data: as in `prune`.
        max_length: longest row in tokens; longer ones are truncated.
        run: device and listener.

    Raises:
        InputError: see its subclasses in `errors`.
    """
    place = as_place(model)
    run, given = run or Run(), as_data(data)
    whole_number("max length", max_length, FEWEST_TOKENS)
    if given.judged == 0:
        raise OptionError("there is nothing to evaluate on 0 rows; give 1 or more", option="eval_rows")
    task = describe(given)
    source = given.source(task)
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        opened = open_checkpoint(place, device=device, pooling=given.pooling, dims=given.dims)
        objective = objective_for(opened, task)
        splits = evaluation_splits(source, task, opened, max_length)
    found: dict[str, Evaluation] = {}
    with clock.stage("evaluation", total=len(splits)):
        for split, rows in splits.items():
            predicted = predict_rows(opened.model, objective, rows)
            found[split] = score(predicted, objective, split=split, rows=rows.judged)
            clock.progress.step()
    return found
