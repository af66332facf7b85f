"""Evaluate a decoder on tasks of EleutherAI's language model evaluation harness (`lm-eval`), where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.checks import whole_number
from faster_pruner.data.sources import without_bars
from faster_pruner.errors import DataError, OptionError, UnsupportedModelError, one_line
from faster_pruner.model.passes import inference
from faster_pruner.model.precision import usual_torch
from faster_pruner.results import Evaluation

# Rows of a batch, and what the harness calls metrics that are shares of the rows.
_ROWS = 8
_SHARES = ("acc", "exact_match", "f1", "mc1", "mc2")


@usual_torch()
def evaluate_tasks(
    model: str | Path, tasks: Sequence[str], *, rows: int | None = None, run: Run | None = None
) -> dict[str, Evaluation]:
    """Evaluate a checkpoint of a causal language model on tasks of the harness.

    Args:
        model: local folder or hub id, dense or pruned.
        tasks: names that the harness knows, or paths of task files (yaml).
        rows: most rows of each task; None for all.
        run: device and listener.

    Returns:
        By name of task its metrics, shares in percent.

    Raises:
        OptionError: lm-eval is not installed, or knows no such task.
        UnsupportedModelError: the model generates no text.
        DataError: the rows of a task cannot be had.
    """
    place = as_place(model)
    whole_number("rows to evaluate on", rows, 1, optional=True)
    if not tasks:
        raise OptionError("no task of the harness is named; name one, like hellaswag")
    try:
        lm_eval: Any = import_module("lm_eval")
        models: Any = import_module("lm_eval.models.huggingface")
    except ImportError as error:
        raise OptionError(
            f"tasks of the harness need the package lm-eval ({one_line(error)}): pip install lm-eval"
        ) from error
    run = run or Run()
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        opened = open_checkpoint(place, device=device)
        if not opened.model.can_generate() or not isinstance(opened.processor, PreTrainedTokenizerBase):
            raise UnsupportedModelError(
                f"a {type(opened.model).__name__} generates no text; tasks of the harness are for causal decoders"
            )
    with clock.stage("evaluation"), _quiet(), inference(opened.model):
        # without a wrapper for devices or processes: the model is where it is
        wrapped: Any = models.HFLM(
            pretrained=opened.model, tokenizer=opened.processor, batch_size=_ROWS, device=str(device)
        )
        try:
            found: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(tasks), limit=rows, bootstrap_iters=0, log_samples=False
            )
        except KeyError as error:
            raise OptionError(f"the harness has no such task: {one_line(error)}", option="tasks") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"the tasks {', '.join(tasks)} cannot be run: {one_line(error)}") from error
    counts: Mapping[str, Any] = found["n-samples"]
    named = {name: _evaluation(name, said, counts.get(name, {})) for name, said in found["results"].items()}
    return {name: each for name, each in named.items() if each.metrics}


def _evaluation(name: str, said: Mapping[str, Any], counts: Mapping[str, int]) -> Evaluation:
    """What the harness says of one task."""
    metrics: dict[str, float] = {}
    for key, value in said.items():
        metric, _, how = key.partition(",")
        if not how or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        label = metric if how == "none" else f"{metric} ({how})"
        metrics[label] = 100.0 * value if metric.startswith(_SHARES) else float(value)
    return Evaluation(
        split=name, rows=int(counts.get("effective", 0)), metrics=metrics, primary=next(iter(metrics), "")
    )


@contextmanager
def _quiet() -> Generator[None]:
    """The harness and the datasets library log nothing below an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with without_bars():
            yield
    finally:
        logging.disable(disabled)
