"""Tasks: which columns hold text and label, which metrics judge it, and how rows become tokens."""

from faster_pruner.tasks.encode import encode
from faster_pruner.tasks.glue import GLUE
from faster_pruner.tasks.metrics import compute_metrics
from faster_pruner.tasks.task import Task, find_task

__all__ = ["GLUE", "Task", "compute_metrics", "encode", "find_task"]
