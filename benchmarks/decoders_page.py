"""The table of docs/decoders.md, from what `decoders.py` has saved."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from common import summary


def table(found: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """The table of docs/decoders.md: perplexities by budget, and what the pruning took."""
    runs = found["runs"]
    budgets = sorted({run["macs"] for run in runs}, reverse=True)
    heads = [f"{share:g}" for share in budgets]
    lines = [f"| method, MACs kept | {' | '.join(heads)} | seconds | MB |", "|---" * (len(heads) + 3) + "|"]
    dense = [f"{runs[0]['dense']:.2f}"] * len(heads)
    lines.append(f"| dense | {' | '.join(dense)} | | |")
    for name in methods:
        own = [run for run in runs if run["method"] == name]
        if not own:
            continue
        cells = [cell([run for run in own if run["macs"] == share]) for share in budgets]
        took = summary([{"seconds": run["seconds"]} for run in own])["mean"]["seconds"]
        known = [run["memory_mb"] for run in own if run["memory_mb"] is not None]
        held = f"{statistics.mean(known):.0f}" if known else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {took:.0f} | {held} |")
    return lines


def cell(runs: list[dict[str, Any]]) -> str:
    """Perplexity of several seeds, and the rise of its logarithm."""
    if not runs:
        return "–"
    found = summary([{key: run[key] for key in ("perplexity", "rise")} for run in runs])
    mean, spread = found["mean"], found["spread"]
    about_seeds = f" ± {spread['perplexity']:.2f}" if len(runs) > 1 else ""
    return f"{mean['perplexity']:.2f}{about_seeds} ({mean['rise']:+.3f})"
