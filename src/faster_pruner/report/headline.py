"""The one line that a run comes down to."""

from __future__ import annotations

from faster_pruner.objectives.metrics import IN_NATURAL_UNITS
from faster_pruner.results import PruneReport


def headline(report: PruneReport) -> str:
    """For instance "1.9x faster, 24 % smaller file, accuracy 88.9 -> 88.8 (within noise)"."""
    return ", ".join([*_speed(report), _size(report), *_quality(report)])


def speed_up(report: PruneReport) -> float | None:
    """Measured at the largest shape; None where nothing was."""
    if not report.latency:
        return None
    return max(report.latency, key=lambda shape: shape.batch * shape.sequence).speed_up


def _speed(report: PruneReport) -> list[str]:
    """In words."""
    ratio = speed_up(report)
    if ratio is None:
        return []
    return [f"{ratio:.1f}x faster" if ratio >= 1 else f"{1 / ratio:.1f}x slower"]


def _size(report: PruneReport) -> str:
    """Of the weights file."""
    saved = 1 - report.pruned.bytes / report.dense.bytes
    return f"{saved:.0%} smaller file" if saved >= 0 else f"{-saved:.0%} larger file"


def _quality(report: PruneReport) -> list[str]:
    """The primary metric of every split, and whether its change stands out from the noise of the rows."""
    found: list[str] = []
    for split, before in report.before.items():
        after, name = report.after[split], before.primary
        digits = 3 if name in IN_NATURAL_UNITS else 1
        where = f"{split} " if len(report.before) > 1 else ""
        text = f"{where}{name} {before.value:.{digits}f} -> {after.value:.{digits}f}"
        sure = report.confidence.get(split)
        if sure is not None and sure.metric == name:
            low, high = sure.change
            text += " (within noise)" if low <= 0 <= high else f" (change {low:+.{digits}f} to {high:+.{digits}f})"
        found.append(text)
    return found
