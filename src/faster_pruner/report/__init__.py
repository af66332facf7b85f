"""What a person sees: progress while a run works, its summary, the model card, and the tables of other commands."""

from faster_pruner.report.console import make_progress
from faster_pruner.report.deployment import print_steps, print_timings
from faster_pruner.report.inspection import print_inspection
from faster_pruner.report.plan import print_plan
from faster_pruner.report.search import print_searches
from faster_pruner.report.summary import how_to_open, print_evaluations, print_summary
from faster_pruner.report.sweep import draw_sweep, print_sweep
from faster_pruner.report.vocabulary import print_vocabulary

__all__ = [
    "draw_sweep",
    "how_to_open",
    "make_progress",
    "print_evaluations",
    "print_inspection",
    "print_plan",
    "print_searches",
    "print_steps",
    "print_summary",
    "print_sweep",
    "print_timings",
    "print_vocabulary",
]
