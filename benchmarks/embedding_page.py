"""Tables and the plot of docs/embeddings.md, from what `embeddings.py` has measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import mean_and_spread, summary, write_table
from embedding_ideas import IDEAS

DOCS = Path(__file__).parents[1] / "docs"
SHAPES = ((1, 32), (32, 32), (32, 128))
_HEADS = {
    "sts-b spearman": "STS-B Spearman",
    "sts-b neighbours": "neighbours, STS-B sentences",
    "questions neighbours": "neighbours, questions",
    "questions cosine": "cosine, questions",
}
# What the plot is about.
_PLOTTED, _AGREEMENT = (32, 32), "questions neighbours"
STATIC = "static table"
# Whatever is faster stands at the edge of the plot, with its speed in the legend.
_FASTEST = 10.0

Records = Sequence[Mapping[str, Any]]


def write_page(found: Mapping[str, Records]) -> None:
    """All that there are figures for."""
    tables = {
        "quality": quality_table(found["quality"]),
        "others": others_table(found["others"]),
        "speed": speed_table(found["speed"]) if found["speed"] else [],
        "levers": lever_table(found["levers"]),
    }
    for part, lines in tables.items():
        write_table(DOCS / "embeddings.md", f"embeddings-{part}", lines)
    if found["speed"]:
        plot(found["speed"], found["others"], DOCS / "embeddings.png")


def _table(first: Sequence[str], lines: Sequence[Sequence[str]], last: Sequence[str] = ()) -> list[str]:
    """Markdown."""
    heads = [*first, *_HEADS.values(), *last]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(line)} |" for line in lines)]


def _over_seeds(figures: list[dict[str, float]]) -> list[str]:
    """Mean and spread of every figure; of a single run the figure."""
    if len(figures) == 1:
        return _once(figures[0])
    return [mean_and_spread(summary(figures), key) for key in _HEADS]


def _once(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[key]:.2f}" if key in figures else "" for key in _HEADS]


def quality_table(records: Records) -> list[str]:
    """Budgets, methods and calibration sizes."""
    runs: dict[tuple[str, int, float], list[dict[str, float]]] = defaultdict(list)
    for record in records:
        runs[record["method"], record["texts"], record["macs"]].append(record["figures"])
    ordered = sorted(runs.items(), key=lambda item: (item[0][0] != "dense", item[0][:2], -item[0][2]))
    lines = [[name, str(texts or ""), f"{share:g}", *_over_seeds(own)] for (name, texts, share), own in ordered]
    return _table(["method", "texts", "MACs kept"], lines)


def others_table(records: Records) -> list[str]:
    """What people do today."""
    lines: list[list[str]] = []
    for record in records:
        left_out = ", ".join(str(layer + 1) for layer in record.get("layers", ()))
        name = f"without layer {left_out}" if left_out else record["method"]
        lines.append([name, f"{record['macs']:.2f}", *_once(record["figures"])])
    return _table(["method", "MACs kept"], lines)


def speed_table(records: Records) -> list[str]:
    """Speed-ups over the dense model in the same runtime and over the dense model in PyTorch, with quality."""
    ms = _milliseconds(records)
    figures = {(r["runtime"], r["model"]): r["figures"] for r in records if "figures" in r}
    lines: list[list[str]] = []
    for runtime, model in figures:
        speeds: list[str] = []
        for shape in SHAPES:
            own, torch_dense = ms[runtime, model, shape], ms["torch", "dense", shape]
            speeds.append(f"{ms[runtime, 'dense', shape] / own:.2f}x ({torch_dense / own:.2f}x)")
        lines.append([runtime, model, *_once(figures[runtime, model]), *speeds])
    return _table(["runtime", "model"], lines, [f"{batch} x {tokens}" for batch, tokens in SHAPES])


def _milliseconds(records: Records) -> dict[tuple[str, str, tuple[int, int]], float]:
    """By runtime, model and shape."""
    return {(r["runtime"], r["model"], (r["shape"][0], r["shape"][1])): r["ms"] for r in records if "shape" in r}


def lever_table(records: Records) -> list[str]:
    """What was tried, in the order of the ideas."""
    runs: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for record in records:
        runs[record["idea"], record["macs"]].append(record["figures"])
    shares = sorted({share for _, share in runs}, reverse=True)
    keys = [(name, share) for share in shares for name in IDEAS if (name, share) in runs]
    return _table(
        ["variant", "MACs kept"], [[name, f"{share:g}", *_over_seeds(runs[name, share])] for name, share in keys]
    )


def plot(records: Records, others: Records, file: Path) -> None:
    """Neighbour agreement against speed, every way of being faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {(r["runtime"], r["model"]): r["figures"][_AGREEMENT] for r in records if r.get("figures")}
    found["torch", STATIC] = next(r["figures"][_AGREEMENT] for r in others if r["method"] == STATIC)
    ms = _milliseconds(records)
    speeds = {key: ms["torch", "dense", _PLOTTED] / ms[*key, _PLOTTED] for key in found}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for place, runtime in enumerate(dict.fromkeys(runtime for runtime, _ in found)):
        own = [model for other, model in found if other == runtime]
        budgets = [model for model in own if model == "dense" or model[0].isdigit()]
        points = sorted((speeds[runtime, model], found[runtime, model]) for model in budgets)
        axes.plot(*zip(*points, strict=True), "-o", color=f"C{place}", markersize=4, label=f"pruned, {runtime}")
        for model in (each for each in own if each not in budgets):
            speed, label = speeds[runtime, model], f"{model}, {runtime}"
            if speed > _FASTEST:
                speed, label = _FASTEST, f"{label} (at {speed:.0f}x)"
            marker = "*" if model == STATIC else "x"
            axes.plot(speed, found[runtime, model], marker, color=f"C{place}", label=label)
    axes.set(
        xlabel=f"speed-up over the dense model in PyTorch, {_PLOTTED[0]} x {_PLOTTED[1]} tokens",
        ylabel="nearest neighbours kept, %",
        title="all-MiniLM-L6-v2: the ten nearest of 3000 questions",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
