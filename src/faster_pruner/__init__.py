"""faster-pruner: a fine-tuned transformer and a budget in, a physically smaller, verified, faster checkpoint out.

>>> from faster_pruner import prune, load                                       # doctest: +SKIP
>>> prune("my-finetuned-bert", "sst2", macs=0.5, output="smaller")              # doctest: +SKIP
>>> model = load("smaller")                                                     # doctest: +SKIP

The import is light: what a name stands for is loaded when it is first used. From then on, and as soon as anybody
imports them, transformers' own auto classes open pruned folders (`checkpoint.auto`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from faster_pruner.checkpoint.auto import watch as _watch

if TYPE_CHECKING:
    from faster_pruner.api.corpus import Vocabulary
    from faster_pruner.api.cut import cut_again
    from faster_pruner.api.evaluate import evaluate
    from faster_pruner.api.in_memory import PrunedModel, prune_model
    from faster_pruner.api.inspect import inspect
    from faster_pruner.api.outcome import PruneResult
    from faster_pruner.api.plan import plan
    from faster_pruner.api.prune import prune
    from faster_pruner.api.run import Run
    from faster_pruner.api.sweep import SweepResult, sweep
    from faster_pruner.api.vocabulary import VocabularyResult, prune_vocabulary
    from faster_pruner.checkpoint.opening import load
    from faster_pruner.costs.budget import Budget, Limit
    from faster_pruner.costs.latency import LatencyLimit
    from faster_pruner.data.tasks import Columns, Data
    from faster_pruner.host.folders import Output
    from faster_pruner.objectives.objective import Objective, Predictions
    from faster_pruner.options import CalibrationOptions, Distillation, Method, SolverOptions, preset

# Where each public name lives.
_HOMES = {
    "Budget": "costs.budget",
    "CalibrationOptions": "options",
    "Columns": "data.tasks",
    "Data": "data.tasks",
    "Distillation": "options",
    "LatencyLimit": "costs.latency",
    "Limit": "costs.budget",
    "Method": "options",
    "Objective": "objectives.objective",
    "Output": "host.folders",
    "Predictions": "objectives.objective",
    "PruneResult": "api.outcome",
    "PrunedModel": "api.in_memory",
    "Run": "api.run",
    "SolverOptions": "options",
    "SweepResult": "api.sweep",
    "Vocabulary": "api.corpus",
    "VocabularyResult": "api.vocabulary",
    "cut_again": "api.cut",
    "evaluate": "api.evaluate",
    "inspect": "api.inspect",
    "load": "checkpoint.opening",
    "plan": "api.plan",
    "preset": "options",
    "prune": "api.prune",
    "prune_model": "api.in_memory",
    "prune_vocabulary": "api.vocabulary",
    "sweep": "api.sweep",
}

__all__ = [
    "Budget",
    "CalibrationOptions",
    "Columns",
    "Data",
    "Distillation",
    "LatencyLimit",
    "Limit",
    "Method",
    "Objective",
    "Output",
    "Predictions",
    "PruneResult",
    "PrunedModel",
    "Run",
    "SolverOptions",
    "SweepResult",
    "Vocabulary",
    "VocabularyResult",
    "cut_again",
    "evaluate",
    "inspect",
    "load",
    "plan",
    "preset",
    "prune",
    "prune_model",
    "prune_vocabulary",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Load what a public name stands for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


_watch()
