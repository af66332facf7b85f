"""faster-pruner: a fine-tuned transformer and a budget in, a physically smaller, verified, faster checkpoint out.

>>> from faster_pruner import prune, load                                       # doctest: +SKIP
>>> prune("my-finetuned-bert", task="sst2", macs=0.5, output="smaller")         # doctest: +SKIP
>>> model = load("smaller")                                                     # doctest: +SKIP
"""

from faster_pruner.checkpoint import load
from faster_pruner.checkpoint import register as _register
from faster_pruner.inputs import Columns
from faster_pruner.job import PruneResult, cut_again, evaluate, prune
from faster_pruner.options import Budget, CalibrationOptions, Method, SolverOptions, preset

__all__ = [
    "Budget",
    "CalibrationOptions",
    "Columns",
    "Method",
    "PruneResult",
    "SolverOptions",
    "cut_again",
    "evaluate",
    "load",
    "preset",
    "prune",
]

_register()
