"""What a person sees: progress while a run works, and its summary."""

from faster_pruner.report.console import make_progress
from faster_pruner.report.summary import print_evaluations, print_summary

__all__ = ["make_progress", "print_evaluations", "print_summary"]
